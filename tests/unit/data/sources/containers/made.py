"""A handful of images, and what is refused."""

import io
from collections.abc import Callable

import pytest
from PIL import Image

from masp.errors import InputError


def image(number: int, kind: str = "PNG") -> bytes:
    """The bytes of an image, different for each number."""
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (number * 40 % 256, number, 90)).save(file, kind)
    return file.getvalue()


def refused(call: Callable[[], object]) -> str:
    """The one line with which something is refused."""
    with pytest.raises(InputError) as error:
        call()
    line = str(error.value)
    assert "\n" not in line and len(line) < 2000 and error.value.exit_code == 2
    return line
