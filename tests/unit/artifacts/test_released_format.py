"""Released files: what claims more memory than it has bytes is refused, and where a soft prompt's rows start.

`test_store.py` reads whole files.
"""

import zipfile

import pytest
import torch

from masp.artifacts.released_format import MAX_PICKLE_BYTES, TOKEN, padding_rows, read_released_soft_prompt
from masp.errors import InputError
from tests.tiny import make_tokenizer


def test_rows_are_those_that_the_published_code_takes(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    before = len(tokenizer)
    names = [TOKEN.format(i) for i in range(4)]
    tokenizer.add_special_tokens({"additional_special_tokens": [names[2]]})  # a VLM may have some of them
    found = padding_rows(tokenizer, 4, before + 4)
    assert found == (before + 1, before + 2, before, before + 3)
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    assert tuple(tokenizer.convert_tokens_to_ids(names)) == found


def test_a_table_without_room_is_refused(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    rows = len(tokenizer)
    assert padding_rows(tokenizer, 2, rows + 2) == (rows, rows + 1)
    with pytest.raises(InputError, match="room for 2 vectors, and stage2.num_soft_prompt_tokens = 3; give 2 at most"):
        padding_rows(tokenizer, 3, rows + 2)
    with pytest.raises(InputError, match="= 3; give another soft_prompt_init$"):
        padding_rows(tokenizer, 3, rows)


def archive(path, pickle: bytes, compression: int = zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", pickle)
        file.writestr("a/byteorder", "little")
        file.writestr("a/version", "3\n")
    return str(path)


@pytest.mark.parametrize("name", [b"builtins\nbytearray", b"__builtin__\nset", b"_codecs\nencode"])
def test_a_pickle_that_claims_any_memory(tmp_path, name):
    pickle = b"\x80\x02c" + name + b"\n\x8a\x05\x00\x00\x00\x00\x20\x85R."  # of 2**37 bytes
    with pytest.raises(InputError, match="is refused: it names "):
        read_released_soft_prompt(archive(tmp_path / "a.pt", pickle), 8)


def test_compressed_and_long_members(tmp_path):
    with pytest.raises(InputError, match="is compressed"):
        read_released_soft_prompt(archive(tmp_path / "a.pt", bytes(9), zipfile.ZIP_DEFLATED), 8)
    with pytest.raises(InputError, match="must be at most 8,388,608"):
        read_released_soft_prompt(archive(tmp_path / "b.pt", bytes(MAX_PICKLE_BYTES + 1)), 8)


def test_members_that_share_bytes(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data/0", bytes(100_000))
        file.infolist()[0].file_size, big = 100_000, file.infolist()[0]
        file.filelist.extend([big] * 50)
    with pytest.raises(InputError, match="its members claim 5,100,000"):
        read_released_soft_prompt(str(path), 8)


@pytest.mark.parametrize("value", [1e300, float("nan")])
def test_numbers_that_fp32_cannot_hold(tmp_path, value):
    path = str(tmp_path / "a.pt")
    torch.save({"<|reserved_special_token_0|>": torch.full((8,), value, dtype=torch.float64)}, path)
    with pytest.raises(InputError, match="not finite in fp32"):
        read_released_soft_prompt(path, 8)
