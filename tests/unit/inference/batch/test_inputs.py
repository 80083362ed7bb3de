"""What inputs name: files, directories, patterns, tars, parquet, arrow and standard input."""

import io
import os
import re
import tarfile
import tempfile
from array import array
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from masp.data.images import load_image
from masp.errors import InputError
from masp.inference.batch.image_list import ImageLister, Names, TarBlock
from masp.inference.batch.inputs import list_images
from tests.unit.extraction.test_faults import as_nobody


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def names(*inputs, **options):
    return [image.name for image in list_images([str(each) for each in inputs], **options)]


def shades(images):
    return [np.asarray(load_image(each.image))[0, 0, 0] for each in images]


@pytest.fixture
def photos(tmp_path):
    """Images in directories, and what is none."""
    root = tmp_path / "photos"
    for number, name in enumerate(("b.png", "a.jpg", "z/1.png", "z/deep/2.PNG", "c/3.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(number))
    for name in (".hidden.png", "notes.txt", "Thumbs.db", ".git/4.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(png(9))
    return root


def write_tar(path: Path, members) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_a_directory_is_searched_in_a_stable_order(photos, caplog):
    caplog.set_level("INFO", "masp")
    expected = [f"{photos}/{name}" for name in ("a.jpg", "b.png", "c/3.png", "z/1.png", "z/deep/2.PNG")]
    assert names(photos) == names(f"{photos}/") == expected
    assert f"{photos}: 2 files are hidden, or not images by their names: ignored" in caplog.text
    (photos / "z" / "deep" / "back").symlink_to(photos)  # a circle
    assert names(photos) == expected


def test_what_is_named_twice_is_there_once(photos, monkeypatch):
    monkeypatch.chdir(photos)
    assert names("b.png", "./b.png", photos / "b.png", "z/../b.png") == ["b.png"]
    assert names("z/1.png", ".", photos) == ["z/1.png", "./a.jpg", "./b.png", "./c/3.png", "./z/deep/2.PNG"]
    tar = write_tar(photos / "t.tar", {"x.png": png(1)})
    assert names(tar, "t.tar", "*.tar") == [f"{tar}: x.png"]


def test_only_equal_paths_are_equal(monkeypatch):
    """Hashes of different paths may be equal."""
    monkeypatch.setattr("builtins.hash", lambda value: 7)
    lister = ImageLister()
    for path in ("/a", "/b", "/a", "/c", "/b"):
        lister.add_path(path)
    assert [image.name for image in lister.images()] == ["/a", "/b", "/c"]


def test_what_is_named_again_goes_from_any_place_of_a_list():
    """Names of many lengths, one of them not UTF-8; several in a row, the second and the last."""
    random = np.random.default_rng(0)
    given = [f"/{'x' * int(number % 7)}{number}" for number in random.integers(0, 400, 1500)]
    given = [given[0], *given, "/a\udce9", "/a\udce9", "/0", "/0"]
    expected = list(dict.fromkeys(given))
    whole, parts, fresh = ImageLister(), ImageLister(), ImageLister()
    for path in given[:700]:
        parts.add_path(path)
    parts.add(TarBlock("/t.tar", (0, 0), Names(), array("q"), array("q")))  # what follows is listed by itself
    for lister, paths in ((whole, given), (parts, given[700:]), (fresh, expected)):
        for path in paths:
            lister.add_path(path)
    found = whole.images()
    assert [image.name for image in found] == [image.name for image in parts.images()] == expected
    assert found.digest == fresh.images().digest


def test_patterns(photos):
    assert names(f"{photos}/**/*.png") == [f"{photos}/{name}" for name in ("b.png", "c/3.png", "z/1.png")]
    assert names(f"{photos}/*") == [f"{photos}/a.jpg", f"{photos}/b.png"]
    odd = photos / "[1].png"
    odd.write_bytes(png(1))
    assert names(odd) == [str(odd)]  # what exists is no pattern
    with pytest.raises(InputError, match=r"1 of 1 inputs .*\(no image file, tar, parquet or arrow file matches"):
        names(f"{photos}/*.bmp")


def test_tars(tmp_path, caplog):
    caplog.set_level("INFO", "masp")
    members = {"00.png": png(5), "00.cls": b"1", "sub/01.jpg": png(6), ".x.png": b"", "new\nline.png": png(7)}
    tar = write_tar(tmp_path / "s.tar", members)
    images = list_images([str(tar)])
    assert [each.name for each in images] == [f"{tar}: {name}" for name in ("00.png", "sub/01.jpg", "new\nline.png")]
    assert shades(images) == [5, 6, 7]
    assert "2 files are hidden, or not image files by their names: ignored, such as" in caplog.text


def test_parquet_and_arrow_files(tmp_path, photos):
    rows = {"label": [0, 1], "image": [{"bytes": png(3), "path": None}, {"bytes": png(4), "path": None}]}
    table = pa.table(rows)
    parquet, arrow = tmp_path / "d.parquet", tmp_path / "d.arrow"
    pq.write_table(table, parquet)
    with pa.OSFile(str(arrow), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    for path in (parquet, arrow):
        images = list_images([str(path), str(photos / "a.jpg")])
        assert [each.name for each in images] == [f"{path}: row 0", f"{path}: row 1", f"{photos}/a.jpg"]
        assert shades(images) == [3, 4, 1]
        with pytest.raises(IndexError):
            _ = images[3]
    of_paths = photos / "paths.parquet"
    pq.write_table(pa.table({"n": [1, 2], "file": ["b.png", "z/1.png"]}), of_paths)
    assert names(of_paths) == [f"{photos}/b.png", f"{photos}/z/1.png"]
    two = tmp_path / "two.parquet"
    pq.write_table(pa.table({"first": [png(1)], "second": [png(2)]}), two)
    assert shades(list_images([str(two)])) == [1] and shades(list_images([str(two)], "second")) == [2]
    assert shades(list_images([str(two)], "of another dataset")) == [1]
    pq.write_table(pa.table({"n": [1]}), two)
    with pytest.raises(InputError, match=r"no column seems to hold the images; .*dataset.columns.image=n; there are n"):
        names(two)


def test_standard_input(photos, tmp_path):
    tar = write_tar(tmp_path / "s.tar", {"0.png": png(1)})
    lines = f"{photos}/a.jpg\r\n\n{tar}\n{photos}/gone.png".encode()
    assert names("-", stdin=io.BytesIO(lines)) == [f"{photos}/a.jpg", f"{tar}: 0.png", f"{photos}/gone.png"]
    odd = os.fsencode(photos) + b"/new\nline\xff.png"
    (photos / os.fsdecode(b"new\nline\xff.png")).write_bytes(png(8))
    images = list_images(["-"], stdin=io.BytesIO(odd + b"\0"), null=True)
    assert [os.fsencode(each.name) for each in images] == [odd] and shades(images) == [8]


@pytest.mark.parametrize(
    ("stdin", "problem"),
    [
        (None, "standard input is closed"),
        (b"", "no path on standard input"),
        (b"\n\r\n", "no path on standard input"),
        (b"a.png\0b.png\0", "holds NUL bytes; -0 takes paths that end with one"),
        (b"/no/a.png\n/no/b.png\n", "of its paths, none of the first 2 exists, such as '/no/a.png'"),
        (b"x" * 3_000_000, "holds a path of more than 65,536 bytes; paths come one per line"),
    ],
)
def test_standard_input_that_is_of_no_use(stdin, problem):
    with pytest.raises(InputError, match=re.escape(f"1 of 1 inputs cannot be read: - ({problem}")):
        names("-", stdin=None if stdin is None else io.BytesIO(stdin))


def test_one_line_names_all_that_is_missing(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    packed = tmp_path / "d.zip"
    packed.write_bytes(b"PK")
    tars = tmp_path / "tars"
    tars.mkdir()
    write_tar(tars / "s.tar", {"0.txt": b""})
    given = [photos, tmp_path / "gone.png", tmp_path / "empty", packed, tars, tars / "s.tar", "https://x.org/a.png", ""]
    with pytest.raises(InputError) as error:
        names(*given)
    assert str(error.value) == (
        f"7 of 8 inputs cannot be read: {tmp_path}/gone.png (file not found), {tmp_path}/empty (a directory without "
        f"images; 0 other files), {packed} (unpack it first), {tars} (a directory without images; 1 other files, such "
        f"as {tars}/s.tar; name such files as '{tars}/*.tar'), {tars}/s.tar (a tar without images; 1 other members), "
        "https://x.org/a.png (a URL; download the images, or their dataset, first),  (empty)"
    )
    with pytest.raises(InputError, match=r"g0 \(file not found\), .*, … \(2 more\)$"):
        names(*(f"g{number}" for number in range(12)))


def test_files_that_are_cut_short(tmp_path):
    tar = write_tar(tmp_path / "s.tar", {f"{n}.png": png(n) * 20 for n in range(3)})
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"s.tar: (1|2).png|is cut short"):
        names(tar)
    parquet = tmp_path / "d.parquet"
    pq.write_table(pa.table({"image": [png(1)] * 9}), parquet)
    parquet.write_bytes(parquet.read_bytes()[:-20])
    with pytest.raises(InputError, match="damaged, or not a parquet file"):
        names(parquet)
    arrow = tmp_path / "d.arrow"
    arrow.write_bytes(b"\xff\xff\xff\xff")
    with pytest.raises(InputError, match="d.arrow: "):
        names(arrow)
    (tmp_path / "e.tar").write_bytes(b"")
    with pytest.raises(InputError, match="e.tar: is empty"):
        names(tmp_path / "e.tar")


def test_a_directory_that_may_not_be_listed():
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        base.chmod(0o755)
        (base / "closed").mkdir(mode=0o700)
        (base / "a.png").write_bytes(png(1))
        with as_nobody(), pytest.raises(InputError, match="closed: cannot list this directory: Permission denied"):
            names(base)


def test_another_list_has_another_digest(photos, tmp_path, monkeypatch):
    tar = write_tar(tmp_path / "s.tar", {"0.png": png(1)})

    def digest(*inputs):
        return list_images([str(each) for each in inputs]).digest

    assert digest(photos, tar) == digest(photos, tar)
    others = [digest(tar, photos), digest(photos), digest(tar), digest(photos / "a.jpg")]
    monkeypatch.chdir(photos)
    others.append(digest("a.jpg"))
    monkeypatch.chdir(photos.parent)
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    assert len(set(others)) == 5
    before = digest(tar)
    os.utime(tar, (1, 1))
    assert digest(tar) != before
