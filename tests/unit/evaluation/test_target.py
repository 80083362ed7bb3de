"""Evaluations of emotions: a dataset's categories are those that were trained, or mapped explicitly, or refused.

How they are scored is tested with processes (tests/pipeline).
"""

import pytest

from masp.config import load_config
from masp.demo.tiny_vlm import VLM_DIR
from masp.errors import InputError
from masp.evaluation.target import check_lengths, length_notes, map_categories, parse_map

TRAINED = ("anger", "awe", "joy", "sadness")


def asked(own, *entries, trained=TRAINED, known=()):
    return map_categories(own, trained, parse_map(entries), "pictures", known)


def test_the_same_categories_in_any_order_and_fewer_of_them_need_no_map():
    assert asked(("joy", "awe", "anger", "sadness")).categories == ("joy", "awe", "anger", "sadness")
    found = asked(("awe", "joy"))
    assert found.means == {"awe": "awe", "joy": "joy"} and not found.is_mapped and found.shown() == {}


def test_without_trained_categories_the_dataset_asks_its_own():
    assert asked(("x", "y"), trained=()).categories == ("x", "y")
    assert asked(("x", "y"), "x=z", trained=()).means == {"x": "z", "y": "y"}


def test_categories_are_renamed_asked_nevertheless_or_left_out():
    found = asked(
        ("sad", "awe", "Surprise".lower(), "fear", "rage"), "Sad = sadness", "surprise=", "fear=fear", "rage=anger"
    )
    assert found.means == {"sad": "sadness", "awe": "awe", "fear": "fear", "rage": "anger"}
    assert found.categories == ("anger", "awe", "sadness", "fear")  # as trained, then what was not
    assert found.is_mapped and found.shown() == found.means


def test_what_only_the_map_names_is_asked_in_the_order_of_the_map():
    """Not in that of hashes, which differs between processes: all ranks and every later call must ask the same."""
    targets = ("elated", "calm", "bored", "tense", "weary", "glad", "upset", "keen")
    own = tuple(f"c{i}" for i in range(len(targets)))
    entries = [f"{theirs}={ours}" for theirs, ours in zip(own[::-1], targets, strict=True)]
    assert asked((*own, "plain"), *entries, trained=()).categories == ("plain", *targets)


@pytest.mark.parametrize("trained", [TRAINED, ()])
def test_an_entry_for_no_category_of_the_dataset_is_refused_whatever_was_trained(trained):
    with pytest.raises(
        InputError, match="evaluate.category_map: 'jooy' is not a category of pictures; it has awe, joy"
    ):
        asked(("awe", "joy"), "jooy=joy", trained=trained)


def test_two_categories_may_become_one():
    assert asked(("happy", "joy"), "happy=joy").categories == ("joy",)


@pytest.mark.parametrize(
    ("own", "entries", "problem"),
    [
        (("sad", "awe"), (), "not trained on: sad .* sad=anger, sad=sad .* or sad= "),
        (("sad", "awe"), ("sad=grief",), "sad=grief: the soft prompt was not trained on 'grief'"),
        (("awe",), ("sad=sadness",), "'sad' is not a category of pictures"),
        (("awe",), ("awe=",), "leaves out every category"),
        (("awe",), ("awe",), "'awe' must be THEIRS=OURS"),
        (("awe",), ("=awe",), "must be THEIRS=OURS"),
        (("awe",), ("x" * 5000,), "must be THEIRS=OURS"),
        (("awe",), ("x" * 5000 + "=awe",), "is not a category of pictures"),
        (("awe",), ("awe=" + "x" * 5000,), "was not trained on 'xxx"),
        (tuple(f"c{i}" for i in range(3000)), (), "not trained on: c0, c1, "),
        (("sad",), ("sad=sadness", "SAD=joy"), "'sad' is on the left of two entries"),
    ],
)
def test_anything_else_is_refused_by_name(own, entries, problem):
    with pytest.raises(InputError, match=problem) as error:
        asked(own, *entries)
    text = str(error.value)
    assert "evaluate.category_map" in text and "\n" not in text and len(text) < 1000


def test_an_entry_may_be_meant_for_another_dataset_of_the_same_call():
    assert asked(("awe",), "sad=sadness", known=("sad", "awe")).means == {"awe": "awe"}


def test_answers_that_cannot_win_without_an_end_token_are_noted(repository):
    config = load_config(repository / "configs/demo.yaml", [f"vlm.path={VLM_DIR}"])
    answers = ("beach", "beach amusement", "alley")
    (note,) = length_notes(config, "released", answers)
    assert "'beach amusement' never scores above its beginning, 'beach'" in note
    assert length_notes(config, "after_image", answers) == length_notes(config, "released", answers[::2]) == []
    config.evaluate.scoring = "generate"
    assert length_notes(config, "released", answers) == []


def test_a_category_that_can_never_be_generated_is_refused(repository):
    config = load_config(repository / "configs/demo.yaml", [f"vlm.path={VLM_DIR}"])
    check_lengths(config, ("joy", "positive"))  # likelihoods have no limit
    config.evaluate.scoring = "generate"
    check_lengths(config, ("joy", "amusement"))
    with pytest.raises(InputError, match="max_new_tokens = 4: the category 'positive' has 7 tokens .* at least 7"):
        check_lengths(config, ("joy", "positive"))
