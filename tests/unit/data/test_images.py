"""Every kind of image file: what it becomes, or the reason why it cannot be read. All files are made here."""

import errno
import io
import os
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from masp.data import images, reading
from masp.data.image_files import memory
from masp.data.image_files.repairs import repair_of
from masp.data.images import UnreadableImage, decode_image, image_size, limited_size, load_image
from masp.errors import DataError
from masp.files.regular import open_descriptor

# Left half red, right half blue; the top row is green.
PICTURE = np.zeros((40, 60, 3), np.uint8)
PICTURE[:, :30] = (250, 10, 10)
PICTURE[:, 30:] = (10, 10, 250)
PICTURE[:8] = (10, 200, 10)
RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def saved(tmp_path, data: bytes, name: str = "a.png"):
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


def reason_of(path, **options) -> str:
    """The reason why `load_image` refuses, which names no address and fits one line."""
    with pytest.raises(UnreadableImage) as error:
        load_image(path, **options)
    assert error.value.reason in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert " at 0x" not in error.value.reason
    return error.value.reason


def close(image: Image.Image, expected: np.ndarray, tolerance: float) -> bool:
    return image.mode == "RGB" and np.abs(np.asarray(image).astype(int) - expected.astype(int)).mean() <= tolerance


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("PPM", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95}, 8),
        ("JPEG", {"quality": 95, "progressive": True}, 8),
        ("GIF", {}, 8),
        ("JPEG2000", {}, 0),
    ],
)
def test_formats(tmp_path, format, options, tolerance):
    # The name says nothing about the format: many collections call everything .jpg.
    path = saved(tmp_path, encoded(Image.fromarray(PICTURE), format, **options), "a.jpg")
    assert close(load_image(path), PICTURE, tolerance)
    assert image_size(path) == (60, 40)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX", "LAB"])
def test_modes_keep_their_colors(mode):
    picture = Image.fromarray(PICTURE)
    grey = mode in ("1", "L")
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(picture, *profiles, outputMode="LAB")
    else:
        image = picture.quantize(16) if mode == "P" else picture.convert(mode)
    expected = np.asarray(picture.convert(mode).convert("RGB")) if grey else PICTURE
    assert close(images.to_rgb(image), expected, 6)


def test_cmyk_jpeg_is_not_a_negative():
    data = encoded(Image.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=95)
    # Adobe's marker, by which programs know that the inks are stored inverted.
    assert b"Adobe" in data
    assert close(decode_image(data), PICTURE, 10)


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_sixteen_bits_are_scaled_not_cut_off(kind):
    values = np.rint(RAMP * 65535).astype(kind)
    image = decode_image(encoded(Image.fromarray(values), "TIFF"))
    expected = np.repeat(np.rint(RAMP * 255).astype(np.uint8)[..., None], 3, axis=2)
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= 1
    png = decode_image(encoded(Image.fromarray(values.astype(np.uint16)), "PNG"))
    assert np.array_equal(np.asarray(png), np.asarray(image))


def test_big_endian_sixteen_bits():
    image = Image.frombytes("I;16B", (8, 8), np.rint(RAMP * 65535).astype(">u2").tobytes())
    assert np.abs(np.asarray(images.to_rgb(image))[..., 0] - RAMP * 255).max() <= 1


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 1e6), (100, 200)])
def test_floats(low, high):
    image = decode_image(encoded(Image.fromarray((low + RAMP * (high - low)).astype(np.float32)), "TIFF"))
    assert np.abs(np.asarray(image)[..., 0] - RAMP * 255).max() <= 1


def test_odd_floats():
    values = RAMP.astype(np.float32)
    values[0, 0], values[7, 7] = np.nan, np.inf
    assert np.asarray(images.to_rgb(Image.fromarray(values)))[0, 0, 0] == 0
    assert np.asarray(images.to_rgb(Image.fromarray(np.full((4, 4), 7.5, np.float32)))).shape == (4, 4, 3)
    with pytest.raises(UnreadableImage, match="no pixel has a finite value"):
        decode_image(encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "La", "RGBa"])
def test_transparency_becomes_white(mode):
    hidden = np.zeros((4, 4, 4), np.uint8)
    hidden[:2] = (200, 30, 30, 255)
    image = Image.fromarray(hidden)
    image = image.convert("LA").convert(mode) if mode in ("LA", "La") else image.convert(mode)
    rgb = np.asarray(images.to_rgb(image))
    assert (rgb[2:] == 255).all()
    assert (rgb[:2, :, 1] < 100).all()


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_color_becomes_white(mode):
    image = Image.fromarray(PICTURE).convert(mode)
    corner = image.getpixel((0, 0))
    rgb = np.asarray(decode_image(encoded(image, transparency=corner)))
    assert (rgb[0] == 255).all()
    assert not (rgb[20] == 255).all()


def test_half_transparent_is_mixed():
    rgb = np.asarray(decode_image(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128)))))
    assert np.abs(rgb.astype(int) - 127).max() <= 1


def transparent(mode):
    """An image of some mode with colors under its transparent part."""
    random = np.random.default_rng(3)
    pixels = random.integers(0, 256, (16, 16, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(random.integers(0, 65536, (16, 16), dtype=np.uint16))
        image.info["transparency"] = int(np.asarray(image)[0, 0])
        return image
    if mode == "La":
        return rgba.convert("LA").convert("La")
    image = rgba.convert("RGB").convert(mode) if mode in ("L", "RGB", "P", "1") else rgba.convert(mode)
    if mode in ("L", "RGB"):
        image.info["transparency"] = image.getpixel((0, 0))
    if mode == "P":
        image.info["transparency"] = bytes(random.integers(0, 256, 256, dtype=np.uint8))
    return image


TRANSPARENT = ["RGBA", "LA", "PA", "RGBa", "L", "RGB", "P", "I;16"]


@pytest.mark.parametrize("mode", [*TRANSPARENT, "1", "CMYK", "YCbCr", "HSV", "LAB", "F", "I", "RGBX"])
def test_dropped_transparency_is_pillows_own_conversion(mode):
    image = transparent("RGB").convert(mode) if mode in ("LAB", "F", "I") else transparent(mode)
    dropped = images.to_rgb(image, "drop")
    assert dropped.mode == "RGB" and dropped.tobytes() == image.convert("RGB").tobytes()


def test_dropped_transparency_of_a_premultiplied_mode():
    image = transparent("La")
    assert images.to_rgb(image, "drop").tobytes() == image.convert("LA").convert("RGB").tobytes()


@pytest.mark.parametrize("mode", [mode for mode in TRANSPARENT if mode not in ("PA", "RGBa")])
def test_a_file_is_read_either_way(tmp_path, mode):
    path = saved(tmp_path, encoded(transparent(mode), "PNG"))
    with Image.open(path) as stored:
        expected = stored.convert("RGB").tobytes()
    assert load_image(path, transparency="drop").tobytes() == expected
    assert decode_image(path.read_bytes(), transparency="drop").tobytes() == expected
    assert load_image(path).tobytes() == load_image(path, transparency="white").tobytes() != expected


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation(tmp_path, orientation, format):
    stored = Image.fromarray(PICTURE)
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    if orientation in inverse:
        stored = stored.transpose(inverse[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, encoded(stored, format, exif=exif, **({"lossless": True} if format == "WEBP" else {})))
    assert close(load_image(path), PICTURE, 8)
    assert image_size(path) == load_image(path).size == (60, 40)
    assert image_size(path, max_side=30) == load_image(path, max_side=30).size == (30, 20)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"", b"Exif\0\0" + b"\xff" * 50]
)
def test_broken_exif_does_not_matter(tmp_path, exif):
    path = saved(tmp_path, encoded(Image.fromarray(PICTURE), "JPEG", exif=exif))
    assert load_image(path).size == image_size(path) == (60, 40)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_meaningless_orientations(tmp_path, value):
    exif = Image.Exif()
    exif[0x0112] = value
    path = saved(tmp_path, encoded(Image.fromarray(PICTURE), "JPEG", exif=exif))
    assert close(load_image(path), PICTURE, 8)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_counts(format):
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("red", "blue", "lime")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert close(decode_image(data), np.full((12, 16, 3), (255, 0, 0)), 3)


@pytest.mark.parametrize(
    ("size", "max_side", "expected"),
    [
        ((2048, 1536), 1024, (1024, 768)),
        ((1536, 2048), 1024, (768, 1024)),
        ((1024, 768), 1024, (1024, 768)),
        ((1025, 1025), 1024, (1024, 1024)),
        ((1000, 333), 500, (500, 166)),
        ((333, 1000), 500, (166, 500)),
        ((10, 10), None, (10, 10)),
        ((5000, 3), 1000, (1000, 1)),
        ((3, 5000), 1000, (1, 1000)),
    ],
)
def test_limited_size(size, max_side, expected):
    assert limited_size(*size, max_side) == expected


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 2000))
def test_limited_size_is_the_published_rule(width, height, max_side):
    longer = max(width, height)
    limited = limited_size(width, height, max_side)
    if longer <= max_side:
        assert limited == (width, height)
    else:
        assert max(limited) == max_side
        assert min(limited) == max(1, int(min(width, height) * max_side / longer))


def test_scaling_is_lanczos(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
    path = saved(tmp_path, encoded(picture))
    expected = picture.resize((50, 37), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(load_image(path, max_side=50)), np.asarray(expected))


def test_long_images(tmp_path):
    path = saved(tmp_path, encoded(Image.new("RGB", (1, 201))))
    assert reason_of(path) == "too long: 1x201, the sides may differ 200 times at most"
    with pytest.raises(UnreadableImage, match="too long"):
        image_size(path)
    assert load_image(path, max_aspect_ratio=None).size == (1, 201)
    assert load_image(saved(tmp_path, encoded(Image.new("RGB", (200, 1))))).size == (200, 1)
    # 199:1 as stored, but rounding the shorter side down makes it longer.
    path = saved(tmp_path, encoded(Image.new("RGB", (1990, 10))))
    assert reason_of(path, max_side=300) == "too long: 300x1, the sides may differ 200 times at most"


def test_tiny_images(tmp_path):
    assert load_image(saved(tmp_path, encoded(Image.new("L", (1, 1))))).size == (1, 1)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated(tmp_path, format, part):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encoded(noise, format)
    reason = reason_of(saved(tmp_path, data[: int(len(data) * part)]))
    assert reason.startswith(("damaged: ", "no image"))


def test_flipped_bits_never_escape(tmp_path):
    """Damage gives a picture or a reason, never another error."""
    random = np.random.default_rng(0)
    for format in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM"):
        original = encoded(Image.fromarray(PICTURE), format)
        for _ in range(60):
            data = bytearray(original)
            for position in random.integers(0, min(len(data), 300), 3):
                data[position] = random.integers(256)
            try:
                assert decode_image(bytes(data), max_side=64).mode == "RGB"
            except UnreadableImage as error:
                assert error.reason


def test_files_that_are_no_image(tmp_path):
    assert reason_of(tmp_path / "gone.png") == "file not found"
    assert reason_of(tmp_path) == "is a folder"
    assert reason_of(saved(tmp_path, b"")) == "empty file"
    assert reason_of(saved(tmp_path, b"hello, I am text\n")) == "no image, or of a format that is not supported"
    assert reason_of(saved(tmp_path, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")).startswith("no image")
    assert reason_of(saved(tmp_path, b"<svg xmlns='http://www.w3.org/2000/svg'/>")).startswith("no image")
    assert reason_of(saved(tmp_path, b"\xff\xd8\xff\xe0" + b"\0" * 40)).startswith(("no image", "damaged"))
    assert reason_of(saved(tmp_path, b"x") / "below.png") == "file not found"
    os.mkfifo(tmp_path / "pipe.png")
    assert reason_of(tmp_path / "pipe.png") == "not a regular file"
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert reason_of(tmp_path / "loop.png").startswith("cannot be opened")


@pytest.mark.parametrize("content", [None, b"", b"text", "folder"])
def test_image_size_refuses_what_load_image_refuses(tmp_path, content):
    path = tmp_path / "a.png"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableImage) as error:
        image_size(path)
    assert error.value.reason == reason_of(path)


def test_no_permission(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    path = saved(tmp_path, encoded(Image.new("L", (4, 4))))
    monkeypatch.setattr(reading, "open_descriptor", refuse)
    assert reason_of(path) == "permission denied"


def _bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(20_000, 20_000), (13_378, 13_378), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs(tmp_path, size):
    path = saved(tmp_path, _bomb(*size))
    assert reason_of(path).startswith(("too large", "damaged"))
    with pytest.raises(UnreadableImage):
        image_size(path)


@pytest.mark.filterwarnings("error")
def test_large_but_allowed_headers_are_measured_without_a_warning(tmp_path):
    assert image_size(saved(tmp_path, _bomb(10_000, 9_999)), max_side=1000) == (1000, 999)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_failing_disk_says_nothing_about_the_image(tmp_path, monkeypatch, number):
    monkeypatch.setattr("time.sleep", lambda _: None)
    path = saved(tmp_path, encoded(Image.new("L", (4, 4))))
    tries = []

    def fail(name, **limits):
        tries.append(name)
        if len(tries) == 3:
            return open_descriptor(name, **limits)
        raise OSError(number, os.strerror(number))

    def always_fail(*_, **__):
        raise OSError(number, "x")

    monkeypatch.setattr(reading, "open_descriptor", fail)
    assert load_image(path).size == (4, 4)
    assert len(tries) == 3
    monkeypatch.setattr(reading, "open_descriptor", always_fail)
    monkeypatch.setattr(reading, "open_binary", always_fail)
    for read in (load_image, image_size):
        with pytest.raises(OSError, match="x") as error:
            read(path)
        assert error.value.errno == number
        assert not isinstance(error.value, DataError)


def test_the_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(UnreadableImage("empty file", "a/b.jpg")))
    assert (error.reason, str(error)) == ("empty file", "a/b.jpg: cannot read this image: empty file")
    assert str(UnreadableImage("empty file")) == "empty file"


def test_no_file_stays_open(tmp_path):
    path = saved(tmp_path, encoded(Image.fromarray(PICTURE)))
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    kept = [load_image(path) for _ in range(5)] + [image_size(path) for _ in range(5)]
    assert len(kept) == 10
    assert sys.platform != "linux" or len(os.listdir("/proc/self/fd")) == before


NOISE = Image.fromarray(np.random.default_rng(7).integers(0, 256, (70, 90, 3), dtype=np.uint8))
JPEGS = [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"subsampling": 0}]


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(png: bytes, new: bytes) -> bytes:
    """A PNG with another chunk behind its header."""
    return png[:33] + new + png[33:]


def tiff(pixels: np.ndarray, photometric: int, *, bits: int | None = None, order: str = "<", kind: int = 1) -> bytes:
    """An uncompressed gray TIFF with a byte order, a photometric interpretation and a sample format of one's choice."""
    height, width = pixels.shape
    bits = bits or pixels.dtype.itemsize * 8
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    values = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    values += [(278, height), (279, len(data)), (339, kind)]
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in values)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    return start + data + struct.pack(order + "H", len(values)) + entries + b"\0" * 4


def gray_of(data: bytes, **options) -> np.ndarray:
    pixels = np.asarray(decode_image(data, **options)).astype(int)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "full"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1.0)])
def test_a_tiff_may_call_zero_white(order, kind, full):
    values = (RAMP * full).astype(kind)
    sample_format = 3 if kind is np.float32 else 1
    negative = gray_of(tiff(values, 0, order=order, kind=sample_format))
    assert np.abs(negative - (1 - RAMP) * 255).max() <= 1
    assert np.array_equal(negative, 255 - gray_of(tiff(values, 1, order=order, kind=sample_format)))


def test_a_compressed_tiff_may_call_zero_white():
    values = np.rint(RAMP * 65535).astype(np.uint16)
    data = encoded(Image.fromarray(values), "TIFF", compression="tiff_lzw", tiffinfo={262: 0})
    assert np.abs(gray_of(data) - (1 - RAMP) * 255).max() <= 1
    bilevel = Image.fromarray(RAMP > 0.5)
    for zero_is_white in ({}, {"tiffinfo": {262: 0}}):
        assert gray_of(encoded(bilevel, "TIFF", **zero_is_white)).max() == 255


def test_twelve_bits_are_scaled():
    # two pixels in three bytes
    row = b"".join(bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in [(0, 1024), (2048, 4095)])
    data = tiff(np.zeros((1, 4), np.uint16), 1, bits=12)
    data = data[:8] + row + b"\0\0" + data[16:]
    assert gray_of(data).tolist() == [[0, 64, 128, 255]]


def test_dropped_transparency_leaves_white_is_zero_to_pillow():
    data = tiff(np.rint(RAMP * 65535).astype(np.uint16), 0)
    with Image.open(io.BytesIO(data)) as stored:
        assert decode_image(data, transparency="drop").tobytes() == stored.convert("RGB").tobytes()


def test_signed_sixteen_bits_are_stretched():
    values = np.rint(RAMP * 60000 - 30000).astype(np.int16)
    assert np.abs(gray_of(tiff(values, 1, kind=2)) - RAMP * 255).max() <= 1


def test_unsigned_integers_of_32_bits_are_not_taken_for_negative():
    values = np.rint(RAMP * (2**32 - 1)).astype(np.uint32)
    assert np.abs(gray_of(tiff(values, 1)) - RAMP * 255).max() <= 1
    signed = np.rint(RAMP * 60000 - 30000).astype(np.int32)
    for order in "<>":
        assert np.abs(gray_of(tiff(signed, 1, kind=2, order=order)) - RAMP * 255).max() <= 1


def bitmap(alpha: np.ndarray) -> bytes:
    """A BMP of version 4 with a fourth channel, which Pillow does not write."""
    height, width = alpha.shape
    pixels = np.dstack([PICTURE[:height, :width, ::-1], alpha])[::-1].astype(np.uint8).tobytes()
    header = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    header += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels


@pytest.mark.parametrize("transparency", ["white", "drop"])
def test_a_bmp_whose_alpha_is_empty_is_opaque(transparency):
    empty, half = np.zeros((40, 60)), np.zeros((40, 60))
    half[20:] = 255
    assert close(decode_image(bitmap(empty), transparency=transparency), PICTURE, 0)
    page = PICTURE.copy()
    if transparency == "white":
        page[:20] = 255
    assert close(decode_image(bitmap(half), transparency=transparency), page, 0)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_gray_of_any_depth_becomes_white(depth):
    full = 2**depth - 1
    rows = [[0, full], [full // 2, 0]]
    bits = ["".join(f"{value:0{depth}b}" for value in row) for row in rows]
    packed = b"".join(
        b"\0" + int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big") for row in bits
    )
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, depth, 0, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")
    plain = b"\x89PNG\r\n\x1a\n" + header + end
    clear = b"\x89PNG\r\n\x1a\n" + header + chunk(b"tRNS", struct.pack(">H", 0)) + end
    expected = gray_of(plain)
    assert np.array_equal(
        gray_of(clear, transparency="drop"), np.asarray(Image.open(io.BytesIO(plain)).convert("RGB"))[..., 0]
    )
    expected[expected == 0] = 255
    assert np.array_equal(gray_of(clear), expected)
    if full // 2:
        clear = b"\x89PNG\r\n\x1a\n" + header + chunk(b"tRNS", struct.pack(">H", full // 2)) + end
        assert gray_of(clear).tolist() == [[0, 255], [255, 0]]


def test_a_transparent_color_of_sixteen_bits_is_compared_whole():
    pixels = np.array([[[300, 2, 3], [301, 2, 3], [300, 2, 3]]], ">u2")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 1, 16, 2, 0, 0, 0))
    key = chunk(b"tRNS", struct.pack(">HHH", 300, 2, 3))
    body = chunk(b"IDAT", zlib.compress(b"\0" + pixels.tobytes())) + chunk(b"IEND", b"")
    data = b"\x89PNG\r\n\x1a\n" + header + key + body
    assert np.asarray(decode_image(data)).tolist() == [[[255] * 3, [1, 0, 0], [255] * 3]]
    assert np.asarray(decode_image(data, transparency="drop")).tolist() == [[[1, 0, 0]] * 3]


def metadata(kind: str) -> bytes:
    """A chunk for which Pillow refuses a PNG."""
    if kind == "profile":
        return chunk(b"iCCP", b"p\0\0" + zlib.compress(b"x" * (3 << 20)))
    if kind == "compressed text":
        return chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * (3 << 20)))
    if kind == "international text":
        return chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"x" * (3 << 20)))
    if kind == "long text":
        return chunk(b"tEXt", b"Comment\0" + b"x" * 2000)
    if kind == "compression":
        return chunk(b"iCCP", b"p\0\7abc")
    if kind == "short":
        return chunk(b"gAMA", b"\0")
    name = {"checksum of text": b"tEXt", "checksum of EXIF": b"eXIf"}[kind]
    return chunk(name, b"II*\0x")[:-1] + b"?"


METADATA = ["profile", "compressed text", "international text", "long text", "compression", "short"]


@pytest.mark.parametrize("kind", [*METADATA, "checksum of text", "checksum of EXIF"])
def test_metadata_do_not_make_a_png_unreadable(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 1000)  # Pillow's own limit is 64 MiB
    data = with_chunk(encoded(NOISE), metadata(kind))
    with pytest.raises((SyntaxError, ValueError, OSError)):
        Image.open(io.BytesIO(data)).load()
    repairs: list[str] = []
    assert decode_image(data, repairs=repairs).tobytes() == NOISE.tobytes()
    assert repairs == ["PNG with metadata that is damaged or too large"]
    assert image_size(saved(tmp_path, data)) == load_image(tmp_path / "a.png").size == NOISE.size


def test_a_repaired_png_keeps_its_orientation_and_its_transparency(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = NOISE.convert("P")
    intact = encoded(image, exif=exif, transparency=3)
    damaged = with_chunk(intact, metadata("profile"))
    assert decode_image(damaged).tobytes() == decode_image(intact).tobytes()
    assert image_size(saved(tmp_path, damaged)) == decode_image(intact).size == (70, 90)


def test_a_repaired_png_is_still_checked(tmp_path):
    path = saved(tmp_path, with_chunk(_bomb(20_000, 20_000), metadata("compressed text")))
    assert reason_of(path).startswith("too large")
    truncated = with_chunk(encoded(NOISE), metadata("compressed text"))[:-5000]
    assert reason_of(saved(tmp_path, truncated)).startswith("damaged")


@pytest.mark.parametrize("options", JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "tail", [b"", b"\xff", b"\0" * 100, b"\xff\0\0\0"], ids=["none", "half", "zeros", "half, zeros"]
)
def test_a_jpeg_may_lack_its_end_marker(mode, options, tail):
    data = encoded(NOISE.convert(mode), "JPEG", quality=90, **options)
    repairs: list[str] = []
    assert decode_image(data[:-2] + tail, repairs=repairs).tobytes() == decode_image(data).tobytes()
    try:
        Image.open(io.BytesIO(data[:-2] + tail)).load()
    except OSError:
        assert repairs == ["JPEG without its end marker"]
    else:  # Pillow takes some: zeros end a scan like any other data
        assert repairs == []


@pytest.mark.parametrize("options", JPEGS)
@pytest.mark.parametrize("missing", [4, 6, 20, 200, 1500])
def test_a_jpeg_that_lacks_pixels_is_damaged(options, missing):
    data = encoded(NOISE, "JPEG", quality=90, **options)
    with pytest.raises(UnreadableImage, match="damaged: image file is truncated"):
        decode_image(data[:-missing])


def test_a_progressive_jpeg_that_lacks_scans_is_damaged():
    data = encoded(NOISE, "JPEG", progressive=True)
    scans = [i for i in range(len(data)) if data[i : i + 2] == b"\xff\xda"]
    for position in scans[1:]:
        with pytest.raises(UnreadableImage, match="damaged"):
            decode_image(data[:position])


def test_intact_images_are_not_repaired():
    for format in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "MPO"):
        repairs: list[str] = []
        decode_image(encoded(NOISE, format), repairs=repairs)
        assert repairs == []
    assert repair_of(encoded(NOISE, "GIF")) is None
    assert repair_of(encoded(NOISE, "JPEG")) is None


def test_a_cut_second_picture_of_an_mpo_does_not_matter():
    data = encoded(NOISE, "MPO", save_all=True, append_images=[NOISE])
    assert decode_image(data[:-100]).tobytes() == decode_image(data).tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "CMYK", "LAB", "I;16", "F", "I", "1"])
def test_strips_give_the_same_pixels(monkeypatch, mode):
    image = transparent("RGB").convert(mode) if mode in ("LAB", "F", "I") else transparent(mode)
    whole = images.to_rgb(image).tobytes()
    monkeypatch.setattr("masp.data.image_files.pixels._STRIP_PIXELS", 50)
    assert images.to_rgb(image).tobytes() == whole


@pytest.mark.parametrize("format", ["PNG", "WEBP", "ICO", "TIFF", "GIF"])
def test_transparent_parts_of_every_format_become_white(format):
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:, 8:] = (10, 20, 250, 255)
    options = {"lossless": True} if format == "WEBP" else {"sizes": [(16, 16)]} if format == "ICO" else {}
    rgb = np.asarray(decode_image(encoded(Image.fromarray(rgba), format, **options)))
    assert (rgb[:, :8] == 255).all()
    assert np.abs(rgb[:, 8:].astype(int) - (10, 20, 250)).max() <= 8


@pytest.mark.parametrize("with_transparency", [False, True])
@pytest.mark.parametrize("place", [(0, 0), (2, 1), (6, 5), (5, 0)])
def test_what_the_first_frame_of_a_gif_does_not_cover_is_transparent(place, with_transparency):
    """As viewers show it; Pillow alone fills it with the first color of the palette."""
    frame = Image.new("P", (4, 3), 1)
    frame.putpalette([200, 0, 0, 0, 90, 0, 0, 0, 30])
    frame.putpixel((0, 0), 2)
    data = bytearray(encoded(frame, "GIF", optimize=False, **({"transparency": 2} if with_transparency else {})))
    assert b"\x2c" + struct.pack("<4H", 0, 0, 4, 3) in data
    at = data.index(b"\x2c" + struct.pack("<4H", 0, 0, 4, 3))
    data[6:10] = struct.pack("<2H", 10, 8)  # the canvas
    data[at + 1 : at + 5] = struct.pack("<2H", *place)
    rgb = np.asarray(decode_image(bytes(data)))
    expected = np.full((8, 10, 3), 255, np.uint8)
    left, top = place
    expected[top : top + 3, left : left + 4] = (0, 90, 0)
    expected[top, left] = (255, 255, 255) if with_transparency else (0, 0, 30)
    assert (rgb == expected).all()
    with Image.open(io.BytesIO(data)) as stored:  # `drop` is what Pillow does, bit for bit
        assert decode_image(bytes(data), transparency="drop").tobytes() == stored.convert("RGB").tobytes()


def test_memory_is_limited_in_bytes(tmp_path):
    """A header says how much memory an image takes; more is refused without decoding it."""

    def header(width: int, height: int, depth: int, kind: int) -> bytes:
        png = bytearray(_bomb(width, height))
        png[16:29] = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
        png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
        return bytes(png)

    for depth, kind, largest in ((8, 2, 13_377), (8, 0, 13_377), (16, 0, 12_500), (8, 6, 10_830), (8, 4, 10_830)):
        assert image_size(saved(tmp_path, header(largest, largest, depth, kind))) == (largest, largest)
    for depth, kind in ((8, 6), (16, 6), (8, 4), (16, 4)):
        path = saved(tmp_path, header(10_850, 10_850, depth, kind))
        assert reason_of(path).startswith("too large: decoding 10850x10850 pixels of this kind (PNG, ")
        with pytest.raises(UnreadableImage, match="at most 896 MiB are used"):
            image_size(path)


def test_memory_of_a_progressive_jpeg_counts_its_coefficients():
    with Image.open(io.BytesIO(encoded(NOISE, "JPEG"))) as plain:
        sequential = memory.decoding_bytes(plain, 0, turned=False)
    for subsampling, per_pixel in ((0, 6), (2, 3)):
        data = encoded(NOISE, "JPEG", progressive=True, subsampling=subsampling)
        with Image.open(io.BytesIO(data)) as progressive:
            assert memory.decoding_bytes(progressive, 0, turned=False) == sequential + per_pixel * 90 * 70


def test_a_large_image_inside_an_icon_is_refused(tmp_path):
    inner = _bomb(13_000, 13_000)
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
    path = saved(tmp_path, struct.pack("<HHH", 0, 1, 1) + entry + inner)
    assert reason_of(path).startswith("too large: this icon holds 13000x13000 pixels")


def test_a_tiff_with_millions_of_strips_is_refused(tmp_path):
    data = bytearray(tiff(np.zeros((4, 4), np.uint8), 1))
    position = data.index(struct.pack("<HHI", 273, 4, 1))
    data[position + 4 : position + 8] = struct.pack("<I", 50_000_000)
    assert reason_of(saved(tmp_path, bytes(data))).startswith("too large: field 273 of this TIFF has 50000000 values")


def test_a_tiff_with_an_absurd_tile_is_refused(tmp_path):
    tags = {322: 30_000, 323: 30_000, 324: 8, 325: 16}
    data = encoded(NOISE, "TIFF", compression="tiff_lzw")
    with Image.open(io.BytesIO(data)) as image:
        image.tag_v2.update(tags)
        assert memory.decoding_bytes(image, 0, turned=False) > memory.MAX_BYTES


def test_decoding_takes_as_little_memory_as_it_says(tmp_path):
    """In a process of its own, whose largest size is measured."""
    _measure(tmp_path, "I;16", 4000)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["RGBA", "P", "I;16", "F", "CMYK", "WEBP", "JPEG2000", "progressive", "turned"])
def test_decoding_large_images_takes_less_than_a_gigabyte(tmp_path, kind):
    _measure(tmp_path, kind, 7000)


_PROGRAM = """
import sys
from pathlib import Path
from masp.data import images
from masp.data.image_files.memory import MAX_BYTES
from PIL import ImageCms
def peak():  # not ru_maxrss, which begins at the peak of the test's own process
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
try:
    images.load_image(sys.argv[1], 1024)
except images.UnreadableImage as error:
    assert error.reason.startswith("too large: decoding"), error
print(peak() - before)
"""


def _measure(tmp_path, kind: str, side: int) -> None:
    ramp = Image.linear_gradient("L").resize((side, side))
    path = tmp_path / "large.png"
    if kind == "I;16":
        Image.fromarray(np.asarray(ramp).astype(np.uint16) * 257).save(path, compress_level=1)
    elif kind == "F":
        ramp.convert("F").save(path, "TIFF")
    elif kind == "CMYK":
        ramp.convert("CMYK").save(path, "TIFF", compression="tiff_lzw")
    elif kind in ("WEBP", "JPEG2000"):
        ramp.convert("RGB").save(path, kind)
    elif kind == "progressive":
        ramp.convert("RGB").save(path, "JPEG", progressive=True, subsampling=0)
    elif kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        ramp.convert("RGB").save(path, "JPEG", exif=exif)
    else:
        ramp.convert(kind).save(path, compress_level=1)
    with Image.open(path) as image:
        limit = memory.decoding_bytes(image, path.stat().st_size, turned=kind == "turned")
    done = subprocess.run([sys.executable, "-c", _PROGRAM, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # besides the image: strips in the making, libraries that are loaded on the way
    assert int(done.stdout) < min(limit, memory.MAX_BYTES) + 150 * 2**20
