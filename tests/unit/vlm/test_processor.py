"""A VLM's processor: what it writes for an image, and one that cannot be used in one line."""

import json
from types import SimpleNamespace

import pytest

from masp.errors import InputError
from masp.vlm.families import load_config
from masp.vlm.processor import _naming_packages, image_span, load_processor, marker_of, runs_of, special_ids, write_out
from masp.vlm.processor import blank as blank_image


def test_runs_of_ids():
    assert runs_of([]) == () and runs_of([7, 7, 7, 9, 7]) == ((7, 3), (9, 1), (7, 1))


@pytest.mark.parametrize(
    ("ids", "span"),
    [
        ([5, 5, 9, 9, 5], (2, 4)),
        ([5, 1, 9, 2, 9, 1, 5], (1, 6)),  # special tokens directly around belong to the image, words do not
        ([9], (0, 1)),
        ([1, 1, 9, 5, 9, 5], (0, 5)),  # so does a word between its parts
    ],
)
def test_where_an_image_is(ids, span):
    assert image_span(ids, 9, frozenset({1, 2, 9})) == span


def test_a_text_without_a_placeholder():
    with pytest.raises(ValueError, match="writes no placeholder"):
        image_span([1, 2, 3], 9, frozenset({1}))


def test_the_processor_of_a_vlm_writes_a_placeholder_per_token(vlm):
    processor = load_processor(vlm, config := load_config(vlm))
    marker = marker_of(processor)
    assert marker == "<|image_pad|>"
    text, out = write_out(processor, f"Look: {marker}!", blank_image(56, 84), False)
    ids = out["input_ids"][0].tolist()
    assert text == f"Look: {marker * 6}!" and ids.count(config.image_token_id) == 6
    assert special_ids(processor.tokenizer) >= {config.image_token_id}
    # and its tokenizer is its own again
    assert processor.tokenizer("a", add_special_tokens=False)["input_ids"]


def test_a_processor_that_names_no_marker():
    with pytest.raises(InputError, match="names no token that stands for an image"):
        marker_of(SimpleNamespace(image_token=None))


def test_a_class_that_is_not_a_processor(vlm):
    (vlm / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen2Tokenizer"}))
    with pytest.raises(InputError, match="processor_class = 'Qwen2Tokenizer': must be the class of a processor"):
        load_config(vlm)


def test_a_package_that_is_missing_is_named(vlm, monkeypatch):
    monkeypatch.setattr("masp.vlm.processor.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError) as error, _naming_packages(vlm):
        raise InputError("SomeProcessor requires the Torchvision library")
    assert "needs the package torchvision, which is not installed; `pip install torchvision`" in str(error.value)
    with pytest.raises(InputError, match="^something else$"), _naming_packages(vlm):
        raise InputError("something else")
