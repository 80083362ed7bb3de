"""Which images are reviewed."""

import pytest

from masp.annotation.review import least_sure, review
from masp.cache.annotations.table import StoredAnswer
from masp.errors import InputError
from tests.annotated import changed


def answers(count):
    return [StoredAnswer(f"train/{n:04d}", "rain", (n * 8 % count) / count, "vlm") for n in range(count)]


def test_half_are_the_least_sure_and_half_are_spread():
    found = [each.confidence for each in least_sure(answers(1001), 100)]
    assert found == sorted(found) and len(set(found)) == 100
    assert found[:50] == [n / 1001 for n in range(50)] and found[-1] > 0.97


def test_few_are_all_shown():
    assert len(least_sure(answers(20), 300)) == 20


def test_the_page_shows_images_and_answers_by_confidence(config, tmp_path):
    page = review(config, str(tmp_path / "page.html")).read_text()
    assert page.count("data:image/jpeg") > 0 and "Computed from the pixels." in page
    section = page.split('<section class="aspect-')[-1]
    shares = [
        float(line.split(">")[1].split("\N{NARROW NO-BREAK SPACE}%")[0])
        for line in section.splitlines()
        if "% ·" in line
    ]
    assert shares and shares == sorted(shares)


def test_nothing_to_review(fresh, config, tmp_path):
    for other in (fresh, changed(config, tmp_path, "annotate.aspects=[silent]")):
        with pytest.raises(InputError, match="has no answers.*; run `masp annotate` first"):
            review(other, str(tmp_path / "page.html"))
