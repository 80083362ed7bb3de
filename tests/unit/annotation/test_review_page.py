"""The page for review: order and marks for its filters, and that whatever a dataset holds is text."""

import pytest

from masp.annotation.review_page import ReviewedAspect, ReviewedImage, write_review
from masp.errors import InputError

EVIL = '"><script>alert(1)</script>'


def test_everything_is_escaped(tmp_path):
    image = ReviewedImage(EVIL, EVIL, 0.4, "vlm", None)
    page = write_review(tmp_path / "new" / "page.html", EVIL, [ReviewedAspect(EVIL, EVIL, 1, (image,))]).read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") >= 5
    assert "default-src 'none'" in page  # and no script could run


def test_marks_of_the_filters():
    assert ReviewedImage("a", "rain", 0.4, "vlm", None).marks == "below-0 below-1 below-2 answered"
    assert ReviewedImage("a", "rain", 0.6, "vlm", None).marks == "below-1 below-2 answered"
    assert ReviewedImage("a", None, 1.0, "vlm", None).marks == "absent"


def test_a_page_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--review .*page\.html: cannot be written"):
        write_review(tmp_path / "file" / "page.html", "", [])
