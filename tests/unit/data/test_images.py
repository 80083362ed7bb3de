"""Every kind of image file: what it becomes, or the reason why it cannot be read. All files are made here."""

import errno
import io
import os
import pickle
import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from masp.data import images, reading
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
