"""The page of `masp predict`: each aspect's attention over the image."""

import numpy as np
import pytest
from PIL import Image

from masp.errors import InputError
from masp.report.attention import overlay, page_entry, write_page
from tests.unit.report.test_page import HOSTILE, MAGENTA, NAMES, Page


def test_the_page_of_predict_shows_every_aspect_and_escapes_names(tmp_path):
    image = Image.new("RGB", (90, 60), MAGENTA)
    weights = np.zeros((2, 3), "f4")
    weights[0, 2] = 1
    shown = np.asarray(overlay(image, weights)).astype(int)
    assert shown.shape == (60, 90, 3) and shown[5, 85].sum() > shown[55, 5].sum() + 200
    grey = shown[55, 5]
    assert grey.max() - grey.min() < 12  # where nothing looks, the picture is grey
    entry = page_entry(NAMES[0], image, "joy", {HOSTILE[0]: 0.25, "joy": 0.75}, {"human_action": weights})
    page = Page(write_page(tmp_path / "new" / "page.html", [entry, entry]))
    assert NAMES[0] in page.text and HOSTILE[0] in page.text and page.text.count("human action") == 2
    assert page.text.index("joy") < page.text.index(HOSTILE[0])  # the likeliest first
    assert sum(tag == "img" for tag, _ in page.tags) == 4 and "script" not in {tag for tag, _ in page.tags}
    with pytest.raises(InputError, match="cannot be written"):
        write_page(tmp_path, [entry])
