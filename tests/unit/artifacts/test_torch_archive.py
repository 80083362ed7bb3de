"""Files of `torch.save` from strangers: what torch writes is read, and what would run or claim anything is one line."""

import collections
import os
import pickle
import random
import re
import struct
import zipfile

import pytest
import torch

from masp.artifacts import torch_archive
from masp.artifacts.released_format import read_released_soft_prompt
from masp.artifacts.torch_archive import MAX_PICKLE_BYTES, NotAnArchive, Refused, read_archive
from masp.errors import InputError
from tests.runs import REPOSITORY

LIMIT = 1 << 30


def read(path):
    return read_archive(path, LIMIT)


def test_what_torch_writes_is_read(tmp_path):
    table = torch.randn(50, 6)
    attention = torch.nn.MultiheadAttention(4, 1)
    content = {
        "row": table[7],
        "column": table[:, 2],
        "part": table[3:9, 1:4].t(),
        "halves": table.half(),
        "brain": table.bfloat16(),
        "wide": table.double(),
        "numbers": torch.arange(5),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(table.clone()),
        "state": attention.state_dict(),
        "plain": [None, True, False, 1, 300, -(2**40), 1.5, "words", (), (1, 2), (1, 2, 3, 4), {1: {}}],
    }
    torch.save(content, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt")
    for name in ("row", "column", "part", "halves", "brain", "wide", "numbers", "scalar", "parameter"):
        assert torch.equal(found[name], content[name]) and found[name].dtype == content[name].dtype, name
    assert found["state"].keys() == content["state"].keys()
    assert all(torch.equal(found["state"][name], tensor) for name, tensor in content["state"].items())
    assert found["plain"] == content["plain"]


def operations(text: bytes) -> bytes:
    """A pickle of protocol 2."""
    return b"\x80\x02" + text + b"."


def archive(path, data: bytes, compression: int = zipfile.ZIP_STORED, storage: bytes = bytes(32), order="little"):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", data)
        file.writestr("a/byteorder", order)
        file.writestr("a/data/0", storage)
        file.writestr("a/version", "3\n")
    return path


def number(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def string(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def storage(count: int, kind: bytes = b"ctorch\nFloatStorage\n", key: bytes | None = None) -> bytes:
    return b"(" + string("storage") + kind + (key or string("0")) + string("cpu") + number(count) + b"tQ"


def tensor(count=8, offset=0, shape=(8,), strides=(1,), stored: bytes | None = None) -> bytes:
    sizes = b"(" + b"".join(map(number, shape)) + b"t(" + b"".join(map(number, strides)) + b"t"
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = b"(" + (stored or storage(count)) + number(offset) + sizes + b"\x89" + hooks + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def test_the_operations_of_a_tensor(tmp_path):
    values = torch.arange(8.0)
    path = archive(tmp_path / "a.pt", operations(tensor()), storage=values.numpy().tobytes())
    assert torch.equal(read(path), values)


EXPLOITS = {
    # a storage that is not there: torch itself reads whatever lies behind the member in memory
    "a storage larger than its member": (tensor(1 << 30, shape=(1 << 30,)), "has 32 bytes, and data.pkl claims 4,294"),
    "a tensor behind its storage": (tensor(offset=1), "claims more than its storage '0' has, which is 8 numbers"),
    "a tensor far behind": (tensor(offset=1 << 61), "claims more than its storage"),
    "a tensor before its storage": (tensor(offset=-4), "odd shape, strides or offset"),
    "a stride out of it": (tensor(shape=(2, 2), strides=(8, 1)), "claims more than its storage"),
    "a stride back": (tensor(shape=(2,), strides=(-1,)), "odd shape, strides or offset"),
    "all memory from eight numbers": (tensor(shape=(1 << 40,), strides=(0,)), "claims more than its storage"),
    "sizes that overflow": (tensor(shape=(1 << 61,) * 8, strides=(0,) * 8), "claims more than its storage"),
    "no numbers in wild dimensions": (tensor(shape=(0, 1 << 61), strides=(1, 1)), "is empty"),
    "many dimensions": (tensor(shape=(1,) * 9, strides=(1,) * 9), "has 9 dimensions"),
    "more strides than dimensions": (tensor(shape=(1,), strides=(1, 1)), "has 1 dimensions"),
    "a negative storage": (tensor(-1), "names a storage in another way"),
    # persistent ids
    "an id of words": (string("storage") + b"Q", "names a storage in another way"),
    "an id of a number": (number(3) + b"Q", "names a storage in another way"),
    "an id of a module": (
        b"(" + string("module") + b"ctorch\nFloatStorage\n" + string("/etc/passwd") * 2 + b"tQ",
        "names a storage in another way",
    ),
    "an id of six": (b"(" + storage(8)[1:-2] + b"NtQ", "names a storage in another way"),
    "an id without a type": (storage(8, string("torch FloatStorage")), "names a storage in another way"),
    "an id of a function": (storage(8, b"ctorch._utils\n_rebuild_tensor_v2\n"), "names a storage in another way"),
    "a member elsewhere": (storage(8, key=string("../data.pkl")), "its storage '../data.pkl' is missing"),
    "a missing member": (storage(8, key=string("1")), "its storage '1' is missing"),
    # names
    "a function": (b"cposix\nsystem\n" + string("true") + b"\x85R", "it names 'posix.system', which no dense tensor"),
    "a name from the stack": (string("os") + string("system") + b"\x93" + string("true") + b"\x85R", "STACK_GLOBAL"),
    "an instance": (b"(" + string("true") + b"ios\nsystem\n", "the operation INST"),
    "an object": (b"(cos\nsystem\n" + string("true") + b"o", "it names 'os.system'"),
    "a new object": (b"ccollections\nOrderedDict\n)\x81", "the operation NEWOBJ"),
    "an extension": (b"\x82\x01", "the operation EXT1"),
    "bytes without end": (b"cbuiltins\nbytearray\n" + number(1 << 50) + b"\x85R", "it names 'builtins.bytearray'"),
    "a storage of torch": (b"ctorch.storage\nUntypedStorage\n" + number(1 << 50) + b"\x85R", "UntypedStorage'"),
    "a tensor class": (b"ctorch\nTensor\n" + number(1 << 50) + b"\x85R", "it names 'torch.Tensor'"),
    "encoded text": (b"c_codecs\nencode\n" + string("x") + b"\x85R", "it names '_codecs.encode'"),
    "a numpy array": (b"cnumpy._core.multiarray\n_reconstruct\n)R", "it names 'numpy._core.multiarray._reconstruct'"),
    "an escape": (b"cos\nsys\x1b[2Jtem\n", "it names "),
    # calls
    "a call of a tensor": (tensor() + b")R", "puts Tensor where Name must be"),
    "a call of a type": (b"ctorch\nFloatStorage\n" + number(1 << 50) + b"\x85R", "calls 'torch.FloatStorage' with 1"),
    "a dict of arguments": (b"ccollections\nOrderedDict\n(NNtR", "calls 'collections.OrderedDict' with 2 arguments"),
    "a call without arguments": (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "with 0 arguments"),
    "a call with a list": (b"ccollections\nOrderedDict\n]R", "puts list where tuple must be"),
    "a state for a tensor": (tensor() + b"}b", "puts Tensor where OrderedDict must be"),
    "a state for a name": (b"ctorch\nFloatStorage\n}b", "puts Name where OrderedDict must be"),
    "items of a tensor": (tensor() + b"NNs", "puts Tensor where dict must be"),
    "nested keys": (b"}" + b")" + b"2\x86" * 3 + b"Ns", "the operation DUP"),
    "a tuple as a key": (b"})q\x01" + b"h\x01\x86q\x01" * 0 + b"Ns", "a key in it is of type tuple"),
    # the machine's memory by other ways
    "a large memo": (b"Nr\xff\xff\xff\x7f" + b"b", "puts|damaged"),
    "a set": (b"\x8f", "the operation EMPTY_SET"),
    "a frame": (b"\x95" + struct.pack("<Q", 1 << 40), "damaged|FRAME"),
    "long bytes": (b"\x8e" + struct.pack("<Q", 1 << 40), "damaged|BINBYTES8"),
    "a long number": (b"\x8b" + struct.pack("<i", 1 << 30), "damaged|LONG4"),
    "a long decimal": (b"I" + b"9" * 100_000 + b"\n", "damaged|INT"),
    "an empty stack": (b"R", "damaged"),
    "an empty mark": (b"t", "damaged"),
    "no end of marks": (b"(" * 1000 + b"s", "damaged"),
}


@pytest.mark.parametrize("name", EXPLOITS)
def test_an_exploit_is_one_line(tmp_path, name):
    text, message = EXPLOITS[name]
    path = archive(tmp_path / "a.pt", operations(text))
    with pytest.raises(InputError, match=message) as error:
        read_released_soft_prompt(str(path), 8)
    line = str(error.value)
    assert line.startswith(f"checkpoint.soft_prompt: {path} is ") and "\n" not in line and len(line) < 600
    assert line.isprintable()


def test_tuples_in_tuples_take_no_time(tmp_path):
    """Sixty levels, each holding the one below twice: the hash of a key, or an error that shows it, would never end."""
    nested = b")q\x01" + b"".join(b"h\x01h\x01\x86q\x01" for _ in range(60))
    for text in (b"}" + nested + b"Ns", nested, b"}" + string("<|reserved_special_token_0|>") + nested + b"s"):
        with pytest.raises(InputError):
            read_released_soft_prompt(str(archive(tmp_path / "a.pt", operations(text))), 8)


def test_the_older_formats(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(Refused, match=r"torch's format from before version 1.6; load it there and save it again"):
        read(tmp_path / "old.pt")
    data = bytearray((tmp_path / "old.pt").read_bytes())
    tar = bytes(257) + b"ustar\0" + bytes(999)
    for content in (data[:40], pickle.dumps({"a": 1}), b"", b"PK\5\6" + bytes(18), tar):
        (tmp_path / "b.pt").write_bytes(content)
        with pytest.raises((NotAnArchive, Refused)):
            read(tmp_path / "b.pt")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_no_protocol_runs_anything(tmp_path, protocol):
    mark = tmp_path / "it ran"
    path = archive(tmp_path / "a.pt", pickle.dumps({"a": Payload(mark)}, protocol))
    with pytest.raises((NotAnArchive, Refused)):
        read(path)
    assert not mark.exists()


def test_the_same_bytes_many_times(tmp_path):
    text = b"(" + tensor(1024, shape=(1024,)) * 100 + b"t"
    with pytest.raises(Refused, match="its tensors claim more"):
        read(archive(tmp_path / "a.pt", operations(text), storage=bytes(4096)))


def test_compressed_and_long_members(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_archive, "MAX_OPERATIONS", 1_000)
    with pytest.raises(Refused, match="'a/data.pkl' in it is compressed"):
        read(archive(tmp_path / "a.pt", bytes(9), zipfile.ZIP_DEFLATED))
    with pytest.raises(Refused, match="must be at most 8,388,608"):
        read(archive(tmp_path / "b.pt", bytes(MAX_PICKLE_BYTES + 1)))
    with pytest.raises(Refused, match="more than 1,000 operations"):
        read(archive(tmp_path / "c.pt", operations(b"]" * 1_001)))
    with pytest.raises(Refused, match="byte order"):
        read(archive(tmp_path / "d.pt", operations(tensor()), order="big"))
    assert torch.equal(read(archive(tmp_path / "e.pt", operations(tensor()))), torch.zeros(8))


def test_members_that_share_bytes(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data/0", bytes(100_000))
        file.infolist()[0].file_size, big = 100_000, file.infolist()[0]
        file.filelist.extend([big] * 50)
    with pytest.raises(Refused, match="its members claim 5,100,000"):
        read(path)


def test_a_list_of_members_without_end(tmp_path, monkeypatch):
    """Each takes 50 bytes of the file, and ten times as much once it is read."""
    monkeypatch.setattr(torch_archive, "MAX_PICKLE_BYTES", 100_000)
    path = archive(tmp_path / "a.pt", operations(tensor()))
    with zipfile.ZipFile(path, "a") as file:
        file.filelist.extend(file.infolist()[:1] * 3_000)
        file._didModify = True
    with pytest.raises(Refused, match="its list of members has more than 100,000 bytes"):
        read(path)


def test_no_changed_byte_is_another_number(tmp_path):
    content = collections.OrderedDict((f"row {i}", torch.randn(16)) for i in range(4))
    path, draw = tmp_path / "a.pt", random.Random(0)
    torch.save(content, path)
    whole = path.read_bytes()
    num_refused = 0
    for _ in range(400):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            found = read(path)
        except (NotAnArchive, Refused):
            num_refused += 1
        else:
            assert list(found) == list(content) and all(torch.equal(found[name], content[name]) for name in content)
    assert num_refused > 100


def test_nothing_else_is_unpickled():
    """Checkpoints (DeepSpeed's included) and weights are not pickles; a job is, which only its owner can write."""
    unpickles = re.compile(
        r"torch\.load\b|pickle\.loads?\b|Unpickler\b|load_checkpoint\(|allow_pickle|joblib|torch\.hub"
    )
    sources = [path for name in ("masp", "launch", "tools") for path in (REPOSITORY / name).rglob("*.py")]
    found = {str(path.relative_to(REPOSITORY)) for path in sources if unpickles.search(path.read_text())}
    assert found == {"masp/artifacts/torch_archive.py", "launch/job/pickles.py"}  # the first says why it does not
