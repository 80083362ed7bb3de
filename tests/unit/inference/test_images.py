"""Images in every form that a caller may have them give the pixels of their file."""

import io

import numpy as np
import pytest
from PIL import Image

from masp.data.images import load_image
from masp.errors import InputError
from masp.inference.images import named_images


def file_of(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def colors(width=13, height=7):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 30, columns * 15, (rows + columns) * 10], axis=-1).astype(np.uint8)


def pixels(image):
    (named,) = named_images([image])
    return np.asarray(load_image(named.image))


def test_every_form_of_an_image_gives_the_same_pixels(tmp_path):
    data = file_of(Image.fromarray(colors()), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for form in (path, str(path), data, bytearray(data), Image.open(path), Image.fromarray(colors()), colors()):
        assert (pixels(form) == colors()).all(), type(form)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_a_pil_image_of_any_mode_is_what_its_file_is(mode, tmp_path):
    image = Image.fromarray(colors())
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    expected = pixels(file_of(image, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"))
    assert (pixels(image) == expected).all()


def test_a_pil_image_is_turned_upright_as_its_file_is(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    data = file_of(Image.fromarray(colors()), "JPEG", exif=exif.tobytes())
    assert pixels(data).shape == (13, 7, 3)
    assert (pixels(Image.open(io.BytesIO(data))) == pixels(data)).all()


def test_a_cmyk_image_is_turned_upright_too():
    exif = Image.Exif()
    exif[274] = 6
    data = file_of(Image.fromarray(colors()).convert("CMYK"), "JPEG", exif=exif.tobytes())
    assert pixels(data).shape == (13, 7, 3)
    assert (pixels(Image.open(io.BytesIO(data))) == pixels(data)).all()


@pytest.mark.parametrize("one", ["photo.jpg", b"data", Image.new("RGB", (4, 4)), colors()])
def test_one_image_is_no_list_of_images(one):
    with pytest.raises(InputError, match="images: one image; give a list"):
        named_images(one)


def test_an_opened_image_with_transparency_keeps_it():
    image = Image.fromarray(np.dstack([colors(), np.full((7, 13), 64, np.uint8)]))
    assert (pixels(image) == pixels(file_of(image, "PNG"))).all()
    assert (pixels(np.asarray(image)) == pixels(image)).all()


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (colors().astype(np.float32) / 255, r"array \[7, 13, 3\] of float32; must be"),
        (colors().transpose(2, 0, 1), r"array \[3, 7, 13\] of uint8; must be"),
        (np.zeros((0, 4, 3), np.uint8), "not empty"),
        (7, "int is not an image"),
        (None, "NoneType is not an image"),
        ("a\0b", "cannot be a path: it holds a NUL byte"),
    ],
)
def test_what_is_no_image_is_named_by_its_number(image, problem):
    with pytest.raises(InputError, match=f"image 1: (an )?{problem}|image 1: .*{problem}"):
        named_images([colors(), image])
