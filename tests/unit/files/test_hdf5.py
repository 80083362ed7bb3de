"""HDF5 files of strangers: nothing outside the file is opened, nothing is allocated that the file does not hold."""

import os
import random
import resource
import socket
import subprocess
import sys

import h5py
import numpy as np
import pytest

from masp.errors import DataError, InputError
from masp.files.hdf5 import MAX_RATIO, Column, Hdf5File, naming_damage, write_strings

NUMBERS = np.arange(30, dtype="<i4").reshape(10, 3)
TEXTS = ["a", "", "Grüße", "\N{PERFORMING ARTS}" * 5, "x\0y", "\udc80"]
READ_BACK = ["a", "", "Grüße", "\N{PERFORMING ARTS}" * 5, "x\N{REPLACEMENT CHARACTER}y", "\\udc80"]
COLUMN = Column("<i4", (None, 3))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.h5"


def written(path, fill):
    with h5py.File(path, "w") as file:
        fill(file)
    return path


def plain(file):
    file.attrs["number"], file.attrs["text"] = 7, np.bytes_("Grüße".encode())
    file.attrs["long"], file.attrs["list"] = "of variable length", [1, 2]
    write_strings(file, "group/texts", TEXTS)
    write_strings(file, "none", [])
    file["numbers"] = NUMBERS
    file.create_dataset("chunked", data=NUMBERS, chunks=(4, 3), maxshape=(None, 3))
    file.create_dataset("gzip", data=NUMBERS, chunks=(4, 3), compression="gzip")
    file.create_dataset("shuffled", data=NUMBERS, chunks=(4, 3), compression="gzip", shuffle=True)
    file["empty"] = NUMBERS[:0]


def test_what_masp_writes_is_read(path):
    with Hdf5File(written(path, plain)) as file:
        assert file.dataset("group/texts", Column("S", (None,))).strings() == READ_BACK
        assert file.dataset("none", Column("S", (0,))).strings() == []
        for name in ("numbers", "chunked", "gzip", "shuffled"):
            values = file.dataset(name, COLUMN)
            assert np.array_equal(values.read(), NUMBERS) and values.shape == (10, 3)
            for start in range(11):
                assert all(np.array_equal(values.rows(start, n), NUMBERS[start:n]) for n in range(start, 11))
            for start, stop in ((-1, 2), (3, 2), (0, 11)):
                with pytest.raises(ValueError, match="has no rows"):
                    values.rows(start, stop)
        assert file.dataset("empty", COLUMN).read().shape == (0, 3)
        assert [file.has(name) for name in ("group/texts", "group", "group/x", "numbers/x", "x")] == [True, True] + [
            False
        ] * 3
        assert (file.attribute("number"), file.attribute("text")) == (7, "Grüße")
        assert [file.attribute(name) for name in ("long", "list", "missing")] == [None] * 3
        assert file.has_text("text", "Grüße") and file.has_text("long", "of variable length")
        assert not file.has_text("long", "something else") and not file.has_text("number", "7")


def with_filter(number, flags=h5py.h5z.FLAG_OPTIONAL, options=(1, 2)):
    def fill(file):
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk((4, 3))
        creation.set_filter(number, flags, options)
        space = h5py.h5s.create_simple((10, 3))
        h5py.h5d.create(file.id, b"numbers", h5py.h5t.STD_I32LE, space, creation)

    return fill


def virtual(unlimited):
    def fill(file):
        size = h5py.h5s.UNLIMITED if unlimited else 10
        layout = h5py.VirtualLayout((10, 3), "<i4", maxshape=(size if not unlimited else None, 3))
        source = h5py.VirtualSource("fifo.h5", "x", shape=(10, 3), dtype="<i4", maxshape=(None, 3))
        if unlimited:
            layout[0:size:1, :] = source[0:size:1, :]
        else:
            layout[:] = source
        file.create_virtual_dataset("numbers", layout)

    return fill


def bomb(file):
    """A chunk of 48 bytes that inflates to 64 MB."""
    import zlib

    data = file.create_dataset("numbers", (10, 3), dtype="<i4", chunks=(4, 3), compression="gzip")
    for row in (0, 4, 8):
        data.id.write_direct_chunk((row, 0), zlib.compress(bytes(1 << 26), 9))


def many_chunks_of_zeros(file):
    zeros = np.zeros((1 << 20, 3), "<i4")
    file.create_dataset("numbers", data=zeros, chunks=(1 << 19, 3), compression="gzip", compression_opts=9)


def enumeration(file):
    kind = h5py.enum_dtype({"A": 1}, basetype="<i4")
    file.create_dataset("numbers", (10, 3), dtype=kind, data=NUMBERS)


def soft_loop(file):
    file["numbers"] = h5py.SoftLink("/numbers")


def references(file):
    file["x"] = NUMBERS
    file.create_dataset("numbers", (10, 3), dtype=h5py.ref_dtype)[:] = file["x"].ref


HOSTILE = {
    "external storage": (
        lambda f: f.create_dataset("numbers", (10, 3), "<i4", external=[("fifo.h5", 0, 120)]),
        "are in another file",
    ),
    "virtual": (virtual(False), "are in another file"),
    "virtual without end": (virtual(True), "are in another file"),
    "external link": (lambda f: f.__setitem__("numbers", h5py.ExternalLink("fifo.h5", "/x")), "holds no numbers"),
    "soft link": (soft_loop, "holds no numbers"),
    "a group": (lambda f: f.create_group("numbers"), "not a dataset"),
    "a type": (lambda f: f.__setitem__("numbers", np.dtype("i4")), "not a dataset"),
    "terabytes": (lambda f: f.create_dataset("numbers", (1 << 40, 3), "<i4", chunks=(1 << 16, 3)), "claims"),
    "terabytes, contiguous": (lambda f: f.create_dataset("numbers", (1 << 40, 3), "<i4"), "claims"),
    "terabytes, gzip": (
        lambda f: f.create_dataset("numbers", (1 << 40, 3), "<i4", chunks=(1 << 16, 3), compression="gzip"),
        "claims",
    ),
    "a gzip bomb": (bomb, "has 49 bytes or more; must be 48"),
    "no values": (lambda f: f.create_dataset("numbers", dtype="<i4", data=h5py.Empty("<i4")), "has the shape null"),
    "a filter from a library": (with_filter(32001), r"filters \[32001\]; must be plain or gzip"),
    "scale and offset": (with_filter(h5py.h5z.FILTER_SCALEOFFSET, 0), "must be plain or gzip"),
    "gzip twice": (with_filter(h5py.h5z.FILTER_NBIT, 0), "must be plain or gzip"),
    "strings of variable length": (
        lambda f: f.create_dataset("numbers", data=[["a"] * 3] * 10),
        "must be int32",
    ),
    "references": (references, "must be int32"),
    "records": (lambda f: f.create_dataset("numbers", data=np.zeros((10, 3), "i4,f4")), "must be int32"),
    "arrays": (lambda f: f.create_dataset("numbers", (10, 3), np.dtype(("<i4", (2,)))), "must be int32"),
    "other bytes first": (lambda f: f.create_dataset("numbers", data=NUMBERS.astype(">i4")), "must be int32"),
    "another shape": (lambda f: f.__setitem__("numbers", NUMBERS.T), r"has the shape \(3, 10\); must be \[any, 3\]"),
    "many dimensions": (lambda f: f.create_dataset("numbers", (1,) * 32, "<i4"), "has the shape"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_anything_else_is_refused_before_it_is_read(path, name):
    fill, message = HOSTILE[name]
    written(path, fill)
    os.mkfifo(path.with_name("fifo.h5"))  # opening it would never return
    with pytest.raises(DataError, match=message) as error, naming_damage(path, "make it again"), Hdf5File(path) as file:
        file.dataset("numbers", COLUMN).read()
    assert str(error.value).startswith(f"{path} is damaged: ") and str(error.value).endswith("; make it again")
    assert "\n" not in str(error.value)


def test_strings_are_bounded_and_utf8(path):
    def fill(file):
        file["latin"] = np.array([b"\xff"])
        file.create_dataset("wide", (2,), dtype="S70000", data=[b"x", b"y"])
        file.create_dataset("variable", data=["a"])

    with Hdf5File(written(path, fill)) as file:
        for name, message in (("latin", "utf-8"), ("wide", "fixed length"), ("variable", "fixed length")):
            with pytest.raises(ValueError, match=message):
                file.dataset(name, Column("S", (None,))).strings()


def test_what_compresses_well_is_read_up_to_a_ratio(path):
    with Hdf5File(written(path, many_chunks_of_zeros)) as file, pytest.raises(ValueError, match="claims"):
        file.dataset("numbers", COLUMN)
    assert MAX_RATIO < 1032


def test_no_filter_of_a_library_is_loaded(path, tmp_path):
    """A program that does read such a dataset looks for the filter in a directory; ours must not get that far."""
    written(path, with_filter(32001, h5py.h5z.FLAG_OPTIONAL))
    program = (
        "import sys\nfrom pathlib import Path\nfrom masp.files.hdf5 import *\n"
        "with Hdf5File(Path(sys.argv[1])) as file:\n    file.dataset('numbers', Column('<i4', (None, 3))).read()"
    )
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    os.mkfifo(plugins / "libfilter.so")  # a library that is looked at never returns
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env={**os.environ, "HDF5_PLUGIN_PATH": str(plugins)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "must be plain or gzip" in done.stderr


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "socket", "device", "empty", "text", "too large"])
def test_what_is_no_hdf5_file_is_one_line(path, kind, monkeypatch):
    limit = 1 << 20
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "socket":
            monkeypatch.chdir(path.parent)  # the name of a socket may have 108 bytes
            socket.socket(socket.AF_UNIX).bind(path.name)
        case "device":
            path.symlink_to("/dev/zero")
        case "empty":
            path.touch()
        case "text":
            path.write_text("text")
        case "too large":
            written(path, plain)
            limit = 100
    expected = DataError if kind in ("empty", "text") else InputError
    with pytest.raises(expected, match=r"^[^\n]*file\.h5[^\n]*$"), naming_damage(path):
        Hdf5File(path, max_bytes=limit)


def read_all(path):
    with naming_damage(path), Hdf5File(path) as file:
        file.attribute("number"), file.attribute("text"), file.attribute("long")
        for name in ("numbers", "chunked", "gzip", "shuffled"):
            file.dataset(name, COLUMN).read()
        file.dataset("group/texts", Column("S", (None,))).strings()


@pytest.mark.parametrize("count", [200, pytest.param(5_000, marks=pytest.mark.full)])
def test_damaged_files_raise_one_error_and_return(path, count):
    """In a process of its own: a library that never returns, or that a signal ends, fails this test alone."""
    written(path, plain)
    reader, memory = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        refused = 0
        try:
            whole, draw = path.read_bytes(), random.Random(count)
            for number in range(count):
                data = bytearray(whole)
                for _ in range(draw.choice((1, 1, 2, 8))):
                    at, length = draw.randrange(len(data)), draw.choice((1, 4, 64))
                    data[at : at + length] = draw.choice((bytes(length), b"\xff" * length, draw.randbytes(length)))
                if number % 10 == 0:
                    del data[draw.randrange(len(data)) :]
                path.write_bytes(data)
                try:
                    read_all(path)
                except DataError:
                    refused += 1
            os.write(memory, f"{refused} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}".encode())
        finally:
            os._exit(0)
    os.close(memory)
    assert os.waitpid(child, 0)[1] == 0
    refused, peak = map(int, os.read(reader, 100).split())
    assert refused > count // 10 and peak < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + (1 << 19)
