"""Which images can be predicted, before anything is loaded."""

import pytest

from masp.cli.predict import _check_images as check_images
from masp.errors import InputError


def test_a_directory_says_what_to_name_instead(tmp_path):
    with pytest.raises(
        InputError, match=r"^1 of 1 images cannot be read: .* \(a directory; name the image files in it\)"
    ):
        check_images([str(tmp_path)])
    (tmp_path / "a.png").write_bytes(b"")
    check_images([str(tmp_path), str(tmp_path / "a.png")])  # one that may be readable is enough to begin
