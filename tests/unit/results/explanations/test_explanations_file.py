"""`explanations.json` reads as it was written, and whatever is damaged is one line that names it."""

import dataclasses
import json
import re

import pytest

from masp.errors import DataError
from masp.files.sealed import sealed
from masp.files.typed import plain
from masp.results.explanations.averages import averages_of
from masp.results.explanations.explanations_file import (
    ExplanationsFile,
    image_entry,
    read_explanations,
    write_explanations,
)
from tests.unit.results.explanations.test_averages import ASPECTS, CATEGORIES, explanations


def make_file(count=12, categories=CATEGORIES, **changes) -> ExplanationsFile:
    """Explanations of drawn numbers, of images `test/i0` and so on."""
    found, labels = explanations(count)
    named = dict(zip(CATEGORIES, categories, strict=True))
    found = [
        dataclasses.replace(each, image=f"test/{each.image}", category=named[each.category],
                            probabilities=dict(zip(categories, (0.6, 0.3, 0.1), strict=True)))
        for each in found
    ]  # fmt: skip
    labels = [named[label] for label in labels]
    content = ExplanationsFile(
        version=1,
        categories=tuple(categories),
        aspects=ASPECTS,
        explained="sample",
        num_images=count,
        num_scored=2 * count,
        split="test",
        averages=averages_of(found, labels, ASPECTS, categories),
        images=tuple(image_entry(each, label, ("x", None)) for each, label in zip(found, labels, strict=True)),
        records="0" * 64,
        has_attention=False,
        notes=("a note",),
        lineage={"aspect": {"digest": "d"}},
    )
    return dataclasses.replace(content, **changes)


def test_it_reads_as_it_was_written(tmp_path):
    content, path = make_file(), tmp_path / "explanations.json"
    write_explanations(path, content)
    found = read_explanations(path)
    assert found == content
    first = found.explanation(found.images[0])
    theirs = explanations(12)[0][0]
    assert (first.image, first.category) == ("test/i0", theirs.category)
    assert [a.contribution for a in first.aspects] == [a.contribution for a in theirs.aspects]
    assert first.interaction == theirs.interaction and first.aspects[0].aspect == "scene"
    assert found.images[0].aspects[0].annotated == "x" and found.images[0].aspects[1].annotated is None
    assert [category for category, _ in found.means_in_order(found.averages.by_label)] == list(CATEGORIES)
    assert read_explanations(tmp_path / "none.json") is None


def test_a_changed_byte_is_one_line_that_names_the_file(tmp_path):
    path = tmp_path / "explanations.json"
    write_explanations(path, make_file())
    data = path.read_bytes()
    place = data.index(b'"contribution": ') + len('"contribution": ') + 3
    for damaged in (data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], data[: len(data) // 2], b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=re.escape(str(path))) as error:
            read_explanations(path)
        assert "masp evaluate" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_images": 11}, "must hold num_images = 11"),
        ({"num_scored": 3}, "of num_scored = 3 images"),
        ({"categories": ["awe", "fear"]}, "must hold"),
        ({"aspects": ["scene"]}, "must hold"),
        ({"explained": "some"}, "explained"),
        ({"version": 2}, "version"),
        ({"more": 1}, "unknown key"),
    ],
)
def test_what_does_not_fit_together_is_refused_whatever_its_digest(tmp_path, change, words):
    path = tmp_path / "explanations.json"
    path.write_bytes(sealed(json.loads(json.dumps(plain(make_file()))) | change))
    with pytest.raises(DataError, match=words) as error:
        read_explanations(path)
    assert str(path) in str(error.value)
