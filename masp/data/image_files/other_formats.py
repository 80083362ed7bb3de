"""What a file that Pillow does not know seems to be, so that whoever made a thousand of them knows what to do."""

_STARTS = (
    (b"version https://git-lfs.github.com/", "a Git LFS pointer; `git lfs pull` fetches the image"),
    (b"/annex/objects/", "a git-annex pointer; `git annex get` fetches the image"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"%PDF-", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"8BPS", "a Photoshop document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"FUJIFILMCCD-RAW", "a raw photograph"),
)
_BRANDS = {
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"hevc": "HEIC",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
    b"crx ": "a raw photograph",
}
_VIDEO_BRANDS = (b"isom", b"iso2", b"mp41", b"mp42", b"qt  ", b"M4V ", b"avc1")
_MARKUP = ((b"<svg", "SVG"), (b"<!doctype html", "a web page"), (b"<html", "a web page"))


def other_format(data: bytes) -> str | None:
    """Name what a file that is not an image seems to be.

    Args:
        data: Content of the file; its beginning is enough.

    Returns:
        Words such as `a web page`, or None where its beginning tells nothing.
    """
    for magic, words in _STARTS:
        if data.startswith(magic):
            return words
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        return "a video" if brand in _VIDEO_BRANDS else _BRANDS.get(brand)
    text = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<"):
        return next((words for tag, words in _MARKUP if tag in text), None)
    return None
