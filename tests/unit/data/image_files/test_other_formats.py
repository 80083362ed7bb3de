"""What files that are not images are called, through the reader of images."""

import pytest

from masp.data.images import UnreadableImage, image_size, load_image

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb\nsize 12345\n"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (POINTER, "a Git LFS pointer; `git lfs pull` fetches the image"),
        (b"/annex/objects/SHA256E-s31390--f50d7ac4c6b9031379986bc362fcefb65f1e52621ce1708d537e740fefc59cc0.jpg\n",
         "a git-annex pointer; `git annex get` fetches the image"),
        (b"<!DOCTYPE html>\n<html><head><title>404</title>", "a web page"),
        (b"\xef\xbb\xbf\n  <HTML><body>moved</body></HTML>", "a web page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 40, "HEIC"),
        (b"\0\0\0\x18ftypmp42" + b"\0" * 40, "a video"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "PostScript"),
        (b"\xff\x0a" + b"\0" * 30, "JPEG XL"),
    ],
)  # fmt: skip
def test_what_it_seems_to_be_is_said(tmp_path, data, words):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    for read in (load_image, image_size):
        with pytest.raises(UnreadableImage) as error:
            read(path)
        assert error.value.reason == f"no image, or of a format that is not supported (this seems to be {words})"


@pytest.mark.parametrize("data", [b"hello", b"<", b"\0\0\0\x18ftyp", b"\0\0\0\x18ftypxxxx", b"{}"])
def test_where_the_beginning_tells_nothing_nothing_is_said(tmp_path, data):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(UnreadableImage) as error:
        load_image(path)
    assert error.value.reason == "no image, or of a format that is not supported"
