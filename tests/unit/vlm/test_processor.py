"""A VLM's processor: what it writes for an image, and one that cannot be used in one line."""

import json
from types import SimpleNamespace

import pytest
from transformers.utils.import_utils import BACKENDS_MAPPING, requires_backends

from masp.errors import InputError
from masp.vlm.families import load_config
from masp.vlm.files.errors import missing_package, plain_vlm_errors
from masp.vlm.processor import blank as blank_image
from masp.vlm.processor import (
    call,
    image_span,
    load_image_processor,
    load_processor,
    marker_of,
    runs_of,
    special_ids,
    write_out,
)


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
    with pytest.raises(ValueError, match="writes no image placeholder"):
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
    with pytest.raises(InputError, match="has no image_token"):
        marker_of(SimpleNamespace(image_token=None))


def test_a_class_that_is_not_a_processor(vlm):
    (vlm / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen2Tokenizer"}))
    with pytest.raises(InputError, match="processor_class = 'Qwen2Tokenizer': must be the class of a processor"):
        load_config(vlm)


def without(monkeypatch, package):
    """As if a package were not installed, for transformers' own check."""
    monkeypatch.setitem(BACKENDS_MAPPING, package, (lambda: False, f"{{0}} requires {package}"))


@pytest.fixture
def change_class(vlm):
    def apply(name: str, **values: str) -> None:
        path = vlm / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, **values}))

    return apply


NEEDED = "it needs the package torchvision, which is not installed; `pip install torchvision`"


@pytest.mark.parametrize("name", ["Cohere2VisionImageProcessor", "Llama4ImageProcessorFast"])
def test_an_image_processor_of_a_package_that_is_not_installed(vlm, change_class, monkeypatch, name):
    base = name.removesuffix("Fast")
    stand_in = type(base, (), {"is_dummy": True, "_backends": ["torchvision"]})
    monkeypatch.setattr("masp.vlm.processor.get_image_processor_class_from_name", lambda _: stand_in)
    without(monkeypatch, "torchvision")
    change_class("preprocessor_config.json", image_processor_type=name)
    with pytest.raises(InputError, match=f"has no usable image processor: {NEEDED}$"):
        load_image_processor(vlm)


def test_a_processor_of_a_package_that_is_not_installed(vlm, monkeypatch):
    stand_in = type("PixtralProcessor", (), {"is_dummy": True, "_backends": ["torchvision"]})
    monkeypatch.setattr("masp.vlm.processor.processor_class_from_name", lambda _: stand_in)
    without(monkeypatch, "torchvision")
    with pytest.raises(InputError, match=f"has no usable processor: {NEEDED}$"):
        load_processor(vlm, load_config(vlm))


def test_one_class_that_can_be_used_is_enough():
    stand_in = type("StandIn", (), {"is_dummy": True, "_backends": ["torchvision"]})
    assert missing_package([dict, stand_in]) is None and missing_package([]) is None


def test_a_package_that_transformers_asks_for_by_its_own_check(monkeypatch):
    without(monkeypatch, "timm")
    with pytest.raises(InputError, match="^vlm.path: DIR cannot be loaded: it needs the package timm, which is"):
        with plain_vlm_errors("DIR cannot be loaded"):
            requires_backends(object(), ["torch", "timm"])
    with pytest.raises(InputError, match="^vlm.path: DIR cannot be loaded: timm and torchvision"):
        with plain_vlm_errors("DIR cannot be loaded"):
            raise ImportError("timm and torchvision")


@pytest.mark.parametrize(("name", "images"), [("GotOcr2Processor", 1), ("Qwen2VLProcessor", [1])])
def test_a_list_of_lists_is_for_processors_that_do_not_take_it_for_pages(name, images):
    given = []

    def call_of(self, **settings):
        given.append(settings["images"])
        return {"labels": 1}

    assert call(type(name, (), {"__call__": call_of})(), "text", 1) == {} and given == [[images]]
