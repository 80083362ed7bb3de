"""Figures are the same bytes every time, with their letters inside, and text is never a formula."""

import subprocess
import sys
import warnings

import pytest

from masp.report.paper.drawing import label, new_figure, saved, style

SCRIPT = """
import hashlib
from masp.report.paper.drawing import new_figure, saved, style
with style():
    figure = new_figure(3, 2)
    axes = figure.add_subplot()
    axes.plot([1, 2], [3, 4])
    axes.set_xlabel("a $x^2$ name")
    drawn = saved(figure)
print(hashlib.sha256(drawn.svg + drawn.pdf).hexdigest())
"""


def draw(text: str):
    with style():
        figure = new_figure(3, 2)
        figure.add_subplot().set_xlabel(text)
        return saved(figure)


def test_two_processes_draw_the_same_bytes():
    found = set()
    for seed in ("1", "2"):
        done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True,
                              env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "HOME": "/nonexistent",
                                   "MPLCONFIGDIR": "", "SOURCE_DATE_EPOCH": seed})  # fmt: skip
        found.add(done.stdout)
    assert len(found) == 1


def test_letters_are_embedded_and_nothing_says_when_or_by_whom():
    drawn = draw("letters")
    assert b"/FontFile2" in drawn.pdf and b"/Type3" not in drawn.pdf
    assert b"<text" not in drawn.svg and b"font-family" not in drawn.svg
    for word in (b"CreationDate", b"Matplotlib", b"dc:date"):
        assert word not in drawn.pdf and word not in drawn.svg


@pytest.mark.parametrize("text", ["$x$", "$\\frac{", "a_b^c", "%#&\\", "$$"])
def test_text_is_never_a_formula(text):
    assert draw(text).missing == ""


def test_characters_that_the_font_lacks_are_named_and_other_warnings_stay(recwarn):
    assert draw("a絵文b").missing == "".join(sorted("絵文"))
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
    with style(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure = new_figure(0.05, 0.05)
        figure.add_subplot()
        saved(figure)
    assert any("constrained_layout" in str(w.message) for w in caught)


def test_names_are_short_and_on_one_line():
    assert label("a\nb") == "a\\nb" and label(None) == "no category" and len(label("x" * 300)) == 28
