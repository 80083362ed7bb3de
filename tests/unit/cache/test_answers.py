"""The file of answers holds what the tars hold; it is never believed where it is another cache's or damaged."""

import json
import logging

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load, save

from masp.cache.layout import read_layout
from masp.cache.manifest import read_manifest
from masp.cache.merge import add_answers
from masp.cache.reader import Cache, open_cache
from masp.cache.verify import verify_cache
from masp.data.answer_table import FILE, AnswerTable, load_answers, save_answers
from masp.errors import DataError
from tests.small_cache import make_small_cache


@pytest.fixture
def folder(tmp_path):
    return make_small_cache(tmp_path / "cache", num_train=9, num_test=6)


def in_the_tars(cache):
    return [cache.read_record(row).answers for row in range(len(cache))]


def test_it_holds_what_the_tars_hold_and_no_tar_is_read(folder, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    cache = open_cache(folder)
    expected = in_the_tars(cache)
    assert {} in expected and {"scene": "sea side", "brightness": "low"} in expected
    monkeypatch.setattr(Cache, "read_record", None)
    assert list(cache.answers()) == expected
    assert caplog.text == ""
    for aspect in ("scene", "brightness", "object"):
        rows = np.arange(len(cache))
        assert cache.answers().has_any([aspect]).tolist() == cache.has_answer(rows, aspect).tolist()


def test_equal_answers_are_equal_bytes_and_an_earlier_cache_gets_the_same_file(folder):
    before = (folder / FILE).read_bytes()
    (folder / FILE).unlink()
    assert verify_cache(folder) == []
    add_answers(folder, read_layout(folder), read_manifest(folder).index.sha256)
    assert (folder / FILE).read_bytes() == before and verify_cache(folder) == []


def test_a_cache_without_it_is_read_from_the_tars_and_says_so(folder, caplog):
    caplog.set_level(logging.INFO)
    expected = list(open_cache(folder).answers())
    (folder / FILE).unlink()
    assert list(open_cache(folder).answers()) == expected
    [record] = caplog.records
    assert record.getMessage() == (
        f"{folder} has no answers.safetensors for its index (a cache of an earlier version has none): the annotations "
        "of 14 images are read out of its shards; `masp extract` again writes the file"
    )


def test_that_of_another_index_is_not_believed(folder):
    table = open_cache(folder).answers()
    wrong = AnswerTable.of([{"scene": "another"}] * len(table))
    save_answers(folder, "0" * 64, wrong)
    assert load_answers(folder, read_manifest(folder).index.sha256, "") is None
    assert list(open_cache(folder).answers()) == list(table)


def test_one_that_does_not_agree_with_the_sidecars_is_a_problem(folder):
    digest = read_manifest(folder).index.sha256
    rows = [dict(row) for row in open_cache(folder).answers()]
    next(row for row in rows if row)["scene"] = "another"
    save_answers(folder, digest, AnswerTable.of(rows))
    assert [str(problem) for problem in verify_cache(folder)] == [f"{FILE}: does not agree with the sidecars"]
    save_answers(folder, digest, AnswerTable.of(rows[1:]))
    with pytest.raises(DataError, match=r"tensors is damaged: it does not agree with the index; rebuild it with"):
        open_cache(folder).answers()


def test_no_annotations_at_all(tmp_path):
    save_answers(tmp_path, "0" * 64, AnswerTable.of([{}, {}]))
    assert load_answers(tmp_path, "0" * 64, "").columns == {} and len(load_answers(tmp_path, "0" * 64, "")) == 2


def test_any_text_comes_back(tmp_path):
    rows = [{"scene": text} for text in ("a\0b", "Ärger", "\ud800", " ", "", "x" * 100_000)]
    save_answers(tmp_path, "0" * 64, AnswerTable.of(rows))
    assert list(load_answers(tmp_path, "0" * 64, "")) == rows


def replaced(name, change):
    def damage(tensors, metadata):
        tensors[name] = change(tensors[name])

    return damage


def removed(name):
    return lambda tensors, metadata: tensors.pop(name)


def with_metadata(name, value):
    return lambda tensors, metadata: metadata.__setitem__(name, value)


DAMAGES = {
    "another number": (replaced("scene/numbers", lambda v: np.where(v < 0, v, -1)), "not that of its digest"),
    "a number too large": (replaced("scene/numbers", lambda v: v + 1), "a number stands for no text"),
    "a number below none": (replaced("scene/numbers", lambda v: v - 1), "a number stands for no text"),
    "another text": (replaced("scene/text", lambda v: v[::-1].copy()), "not that of its digest"),
    "text that is not UTF-8": (replaced("scene/text", lambda v: v | 0x80), "codec can't decode"),
    "lengths beyond the text": (replaced("scene/lengths", lambda v: v + 1), "lengths of its texts"),
    "negative lengths": (replaced("scene/lengths", lambda v: -v), "lengths of its texts"),
    "no lengths": (replaced("scene/lengths", lambda v: v[:0]), "lengths of its texts"),
    "columns of two lengths": (replaced("scene/numbers", lambda v: v[1:].copy()), "differ in length"),
    "numbers of another type": (replaced("scene/numbers", lambda v: v.astype("f8")), "other types"),
    "numbers of another shape": (replaced("scene/numbers", lambda v: v[:, None]), "other types"),
    "a column is missing": (removed("scene/numbers"), "not those of its aspects"),
    "an aspect is missing": (with_metadata("aspects", ["scene"]), "not those of its aspects"),
    "another digest": (with_metadata("digest", "0" * 64), "not that of its digest"),
    "another count": (with_metadata("num_samples", 3), "differ in length"),
    "a count that is none": (with_metadata("num_samples", -3), "num_samples"),
    "another version": (with_metadata("format_version", 9), "format_version"),
    "another digest of the index": (with_metadata("index", "0" * 64), "not that of its digest"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_line_that_names_the_remedy(folder, name):
    damage, message = DAMAGES[name]
    tensors = load((folder / FILE).read_bytes())
    with safe_open(folder / FILE, "np") as file:
        metadata = json.loads(file.metadata()["masp"])
    damage(tensors, metadata)
    (folder / FILE).write_bytes(save(tensors, {"masp": json.dumps(metadata)}))
    with pytest.raises(DataError) as error:
        open_cache(folder).answers()
    text = str(error.value)
    assert text.startswith(f"{folder / FILE}") and message in text and "\n" not in text
    assert text.endswith(f"rebuild it with `masp cache verify {folder} --repair --config CONFIG`")
    assert [str(problem) for problem in verify_cache(folder)] == [f"{FILE}: damaged"]


def test_every_cut_and_every_flipped_byte_is_found(folder):
    data = (folder / FILE).read_bytes()
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 0x11
        for damaged in (bytes(flipped), data[:place]):
            (folder / FILE).write_bytes(damaged)
            with pytest.raises(DataError) as error:
                load_answers(folder, "0" * 64, "")
            assert "\n" not in str(error.value)
