"""Tars of samples: what is grouped, what is refused, and that `tarfile` finds the same members."""

import io
import json
import os
import pickle
import random
import subprocess
import tarfile

import numpy as np
import pytest

from masp.data.images import load_image
from masp.data.sources.containers import tars
from masp.data.sources.containers.tar_members import TarScan
from masp.data.sources.containers.tars import TarSource
from masp.errors import InputError
from tests.unit.data.sources.containers.made import image, refused


def write(path, members, kind=tarfile.PAX_FORMAT, mtime=1700000000.25, **options):
    """Write members, pairs of name and content; a list of a type instead makes a member of that type."""
    with tarfile.open(path, "w", format=kind, **options) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.mtime = mtime
            if isinstance(content, list):
                member.type, member.linkname, content = content[0], "target", b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(numbers, directory=""):
    for number in numbers:
        yield f"{directory}{number:04d}.png", image(number)
        yield f"{directory}{number:04d}.cls", b"%d\n" % (number % 3)
        more = {"emotion": ["awe", "joy"][number % 2], "score": number / 2, "tags": ["a", ["b"]], "box": {"x": 1}}
        yield f"{directory}{number:04d}.json", json.dumps(more).encode()


def source(root):
    return TarSource(root, sorted(root.rglob("*.tar")))


def read(root, *columns, identity=None):
    return source(root).read(columns, None, identity)


@pytest.fixture
def root(tmp_path):
    """Seven images in two tars."""
    write(tmp_path / "emoset_train_0001.tar", samples(range(5)))
    write(tmp_path / "emoset_val_0001.tar", samples(range(5, 7), "some/directory/"))
    return tmp_path


def test_rows(root):
    header = source(root).header()
    assert header.columns == ("emotion", "score", "tags", "cls") and header.rows_are_images
    rows = read(root, "cls", "emotion", "score", "tags", "box")
    assert [rows.columns["cls"][n] for n in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [rows.columns["emotion"][n] for n in range(3)] == ["awe", "joy", "awe"]
    assert rows.columns["score"][5] == 2.5 and rows.columns["tags"][0] == ("a", ("b",))
    assert rows.identities[::6] == ["emoset_train_0001/0000.png", "emoset_val_0001/some/directory/0006.png"]
    assert [rows.split_names[n] for n in (0, 4, 5)] == ["train", "train", "val"]
    assert rows.where(6) == f"{root}/emoset_val_0001.tar: some/directory/0006.png" and rows.blocks is None
    assert [rows.places[n].read() for n in range(7)] == [image(n) for n in range(7)]
    assert load_image(rows.places[3]).size == (3, 2)
    part = pickle.loads(pickle.dumps(rows.places.part(np.array([6, 1]))))
    assert [part[n].read() for n in range(2)] == [image(6), image(1)]
    assert [f.text for f in rows.findings] == ["7 values in .json members of tars are objects, and ignored"]


def test_processes_find_the_same(root, monkeypatch):
    alone = read(root, "cls")
    monkeypatch.setattr(tars, "_MANY_BYTES", 0)
    both = read(root, "cls")
    assert both.identities == alone.identities and both.columns["cls"].codes.tolist() == [0, 1, 2, 0, 1, 2, 0]
    with open(root / "emoset_val_0001.tar", "r+b") as file:
        file.truncate(1000)
    assert "emoset_val_0001.tar: is cut short" in refused(lambda: read(root, "cls"))


def test_identities_of_a_column(root):
    write(root / "emoset_val_0001.tar", [("a.jpg", image(1)), ("a.json", b'{"id": "x"}'), ("b.jpg", image(2))])
    (root / "emoset_train_0001.tar").unlink()
    assert "emoset_val_0001.tar: b.jpg: column 'id' = null: must name the image" in refused(
        lambda: read(root, identity="id")
    )
    write(root / "emoset_val_0001.tar", [("a.jpg", image(1)), ("a.json", b'{"id": "x"}')])
    assert read(root, identity="id").identities == ["x"]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_formats_are_read_as_tarfile_reads_them(tmp_path, kind):
    deep = "directory/" * 12
    members = [("./", [tarfile.DIRTYPE]), ("./a.png", image(1)), (f"{deep}b.png", image(2)), (f"{deep}b.cls", b"3")]
    if kind != tarfile.USTAR_FORMAT:
        members += [("n" * 300 + ".png", image(3)), ("ä\udcff.png", image(4))]
    path = write(tmp_path / "a.tar", members, kind, mtime=5)
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
    with open(path, "rb") as file:
        found = [(m.name, m.offset, m.size) for m in TarScan(file, str(path)).members() if m.kind == "file"]
    assert found == expected
    rows = read(tmp_path, "cls")
    assert rows.identities[0] == "a/a.png" and rows.columns["cls"].codes.tolist()[:2] == [-1, 0]
    assert rows.places[1].read() == image(2)


def test_gnu_tar_writes_what_is_read(tmp_path):
    (tmp_path / "files").mkdir()
    for number in range(3):
        (tmp_path / f"files/{number}.png").write_bytes(image(number))
        (tmp_path / f"files/{number}.txt").write_text(f"text {number}\n")
    for form in ("gnu", "posix", "ustar", "v7"):
        command = ["tar", f"--format={form}", "--sort=name", "-cf", tmp_path / "a.tar", "-C", tmp_path / "files", "."]
        subprocess.run(command, check=True)
        rows = read(tmp_path, "txt")
        assert rows.identities == [f"a/{n}.png" for n in range(3)] and rows.columns["txt"][2] == "text 2"


def test_what_is_left_out_is_counted(tmp_path):
    others = [("README", b"all"), ("._a.png", b"mac"), ("b.txt", b"no image"), ("c.JPG", image(2)), ("c.npy", b"array")]
    write(tmp_path / "a.tar", [("a.seg.png", image(1)), ("a.png", b""), ("a.TXT", "ä".encode()), *others])
    rows = read(tmp_path, "txt")
    assert rows.identities == ["a/a.png", "a/c.JPG"] and rows.columns["txt"][0] == "ä"
    missing, ignored = rows.findings
    assert missing.text == "1 samples of tars have no image, and are left out" and missing.examples[0].endswith(": b")
    assert ignored.count == 4 and ignored.kind == "ignored" and "a.seg.png" in ignored.examples[0]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.png", b"one"), ("a.jpg", b"two")], "a.jpg: a sample must have one image, and a.png belongs to"),
        ([("a.png", b"one"), ("b.png", b"two"), ("a.cls", b"1")], "a.cls: the key 'a' occurs twice"),
        ([("a.png", b"one"), ("a.cls", b"1"), ("a.CLS", b"2")], "a.CLS: its sample has two members 'cls'"),
        ([("a.png", [tarfile.SYMTYPE])], "a.png: is a symbolic link; must be a regular file"),
        ([("a.png", [tarfile.LNKTYPE])], "a.png: is a hard link; must be a regular file"),
        ([("a.png", [tarfile.CHRTYPE])], "a.png: is a device; must be a regular file"),
        ([("a.png", [tarfile.FIFOTYPE])], "a.png: is a FIFO; must be a regular file"),
        ([("/a.png", b"one")], "/a.png: must be a relative path without '..'"),
        ([("a/../../b.png", b"one")], "a/../../b.png: must be a relative path without '..'"),
        ([("a\nb.png", b"one"), ("a\nb.jpg", b"one")], "a\\nb.jpg: a sample must have one image, and a\\nb.png"),
        ([("a.png", b"one"), ("a.json", b"[1]")], "a.json: must be a JSON object, not '[1]'"),
        ([("a.png", b"one"), ("a.json", b"{" * 100_000)], "a.json: must be a JSON object, not '{{{"),
        ([("a.png", b"one"), ("a.txt", b"x" * (1 << 20) + b"x")], "a.txt: 1,048,577 bytes of text; must be at most"),
        ([("a.png", b"one"), ("a.txt", b"\xff\xfe")], "a.txt: must be text in UTF-8"),
    ],
)
def test_what_is_refused(tmp_path, members, words):
    path = write(tmp_path / "a.tar", members)
    line = refused(lambda: read(tmp_path, "cls", "txt", "emotion"))
    assert line.startswith(f"{path}: ") and words in line


def test_what_is_not_a_whole_tar(root):
    path = root / "emoset_train_0001.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        member = tar.getmember("0003.png")

    def line(content):
        path.write_bytes(content)
        return refused(lambda: read(root, "cls"))

    assert "0003.png' is cut short: it claims" in line(whole[: member.offset_data + 10])
    assert "is cut short after '0002.json': a tar ends with blocks of zeros" in line(whole[: member.offset])
    assert "something comes after its end after '0004.json', probably another tar" in line(whole + whole)
    assert "is empty" in line(b"") and "is not a tar" in line(b"\x89PNG" * 1000)
    assert "fetch it with `git lfs pull`" in line(b"version https://git-lfs.github.com/spec/v1\n")
    for suffix, command in (("gz", "gzip -d"), ("bz2", "bzip2 -d"), ("xz", "xz -d")):
        with tarfile.open(path, f"w:{suffix}") as tar:
            tar.addfile(tarfile.TarInfo("a.png"))
        assert f"is compressed; decompress it with `{command}`" in line(path.read_bytes())
    assert "damaged at byte 0" in line(b"x" + whole[1:])
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in refused(lambda: read(root, "cls"))


@pytest.mark.parametrize("size", [1 << 60, (1 << 64) - 1, 8 << 30])
def test_claimed_sizes_are_not_believed(tmp_path, size):
    member = tarfile.TarInfo("a.png")
    member.size = size
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        (tmp_path / "a.tar").write_bytes(member.tobuf(kind) + image(1) + bytes(2000))
        assert "a.png' is cut short: it claims" in refused(lambda: read(tmp_path))
    for kind in (b"L", b"x", b"g", b"K"):
        member.type = kind
        (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(2000))
        assert "a.tar: damaged at byte 0" in refused(lambda: read(tmp_path))


def test_no_samples(tmp_path):
    write(tmp_path / "a.tar", [])
    rows = read(tmp_path, "cls")
    assert len(rows) == len(rows.columns["cls"]) == 0 and rows.split_names is None


def test_a_changed_byte_is_one_line_or_another_value(tmp_path):
    path = write(tmp_path / "a.tar", samples(range(3)))
    whole, dice, num_refused = path.read_bytes(), random.Random(5), 0
    end = whole.rstrip(b"\0").__len__()
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(dice.choice((1, 1, 8))):
            content[dice.randrange(end)] = dice.choice((0, 1, 127, 255, dice.randrange(256)))
        if dice.random() < 0.2:
            del content[dice.randrange(len(content)) :]
        path.write_bytes(content)
        try:
            rows = read(tmp_path, *source(tmp_path).header().columns)
        except InputError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            num_refused += 1
        else:
            assert all(rows.places[n].offset + rows.places[n].size <= len(content) for n in range(len(rows)))
    assert 50 < num_refused < 300
