"""Paths that rows and lists give."""

import pytest

from masp.data.image_files.paths import path_inside, why_not_inside


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("./a//b.jpg", "a/b.jpg"),
        ("a\\b.jpg", "a/b.jpg"),
        ("a/../b.jpg", "b.jpg"),
        ("../b.jpg", None),
        ("a/../../b.jpg", None),
        ("/etc/passwd", None),
        ("", None),
        (" ", None),
        (".", None),
        ("a\0b", None),
        ("https://a.org/b.jpg", None),
        ("s3://bucket/b.jpg", None),
        ("x" * 5000, None),
    ],
)
def test_a_path_stays_inside(text, path):
    assert path_inside(text) == path


def test_absolute_paths_where_they_are_allowed():
    assert path_inside("/data/./a.jpg", absolute=True) == "/data/a.jpg"
    assert path_inside("/", absolute=True) is None


def test_urls_have_words_of_their_own():
    assert why_not_inside("https://a.org/b.jpg").startswith("a URL") and "inside it" in why_not_inside("../a")
