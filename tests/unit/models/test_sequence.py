"""Sequences and their padded blocks: separators of an image, sides of padding, types of tokens."""

import dataclasses

import pytest
import torch

from masp.models.sequence import ASPECT, FEATURE, IGNORED, SOFT, TEXT, build_sequence, make_batch
from masp.vlm.features import Features, ImageLayout
from masp.vlm.prompt import load_prompt
from tests.tiny import make_vlm

TYPES = "token_type_ids"


@pytest.fixture(scope="module")
def prompt(tmp_path_factory):
    return load_prompt(str(make_vlm(tmp_path_factory.mktemp("sequence") / "vlm")))


def typed(prompt, **facts):
    """The prompt of a VLM whose masks see types of tokens, which is padded on the left."""
    family = dataclasses.replace(prompt.family, mask_types=(TYPES,), **facts)
    return dataclasses.replace(prompt, family=family, types={TYPES: frozenset({family.image_token_id})})


def tiles(prompt, *counts):
    """An image of several runs of placeholders, with a separator before each and one behind the last."""
    place, separator = prompt.family.image_token_id, prompt.ids("#")[0]
    runs = [run for count in counts for run in ((separator, 1), (place, count))]
    return ImageLayout(sum(counts), None, (*runs, (separator, 1)))


def built(prompt, image, answer="joy", question="Which?", aspects=2, soft=1):
    return build_sequence(
        prompt, question, answer, num_aspect_tokens=aspects, image=image, num_soft_tokens=soft, layout="after_image"
    )


def test_separators_are_words_between_features_and_aspects_come_before_the_first_feature(prompt):
    image = tiles(prompt, 3, 2)
    sequence, separator = built(prompt, image), prompt.ids("#")[0]
    before, after = len(prompt.opening) + len(prompt.image_start), len(prompt.image_end)
    block = [TEXT, ASPECT, ASPECT, *[FEATURE] * 3, TEXT, FEATURE, FEATURE, TEXT]
    kinds = [*[TEXT] * before, *block, *[TEXT] * after, SOFT]
    assert sequence.kind[: len(kinds)].tolist() == kinds and set(sequence.kind[len(kinds) :].tolist()) == {TEXT}
    words = [before, before + 6, before + 9]
    assert sequence.ids[words].tolist() == [separator] * 3
    assert sequence.split == len(kinds) - 1  # all before the soft prompt
    assert torch.equal(sequence.positions, torch.arange(len(sequence)).expand(3, -1))  # without a grid they count
    # the answer is predicted from the last token of the prompt on
    answer = [*prompt.answer("joy"), prompt.end]
    assert sequence.labels[-len(answer) - 1 :].tolist() == [*answer, IGNORED]
    assert set(sequence.labels[: -len(answer) - 1].tolist()) == {IGNORED}


def test_a_prompt_longer_than_the_vlm_was_made_for_is_remarked_on_once(prompt, caplog):
    def long(limit):
        return dataclasses.replace(prompt, family=dataclasses.replace(prompt.family, max_positions=limit))

    length = len(built(prompt, tiles(prompt, 40)))
    for limit in (length, None, 4096):
        built(long(limit), tiles(prompt, 40))
    assert prompt.family.max_positions == 4096 and not caplog.messages
    for _ in range(3):
        built(long(length - 1), tiles(prompt, 40))
    (message,) = caplog.messages
    assert f"more positions than the {length - 1} that the VLM was made for" in message


def test_without_features_the_tokens_around_a_small_image_are_written(prompt):
    prompt = dataclasses.replace(prompt, lead=(11, 12), trail=(13,))
    sequence = built(prompt, None, soft=0)
    before = len(prompt.opening) + len(prompt.image_start)
    assert sequence.ids[before : before + 2].tolist() == [11, 12]
    assert sequence.kind[before : before + 5].tolist() == [TEXT, TEXT, ASPECT, ASPECT, TEXT]
    assert int(sequence.ids[before + 4]) == 13


def batch_of(prompt, images, **settings):
    sequences = [built(prompt, image, **settings.pop("built", {})) for image in images]
    features = [Features(torch.ones(image.num_tokens, 4)) for image in images]
    return sequences, make_batch(prompt, sequences, features, row_image=range(len(images)), **settings)


@pytest.mark.parametrize("left", [True, False])
def test_padding_is_never_between_a_row_s_tokens_where_layers_count_it(prompt, left):
    prompt = typed(prompt) if left else prompt
    sequences, batch = batch_of(prompt, [tiles(prompt, 3, 2), tiles(prompt, 1)])
    assert prompt.family.pads_left == left
    for row, sequence in enumerate(sequences):
        mask, start = batch.prefix.mask[row], sequence.split
        assert batch.prefix.ids[row][mask].tolist() == sequence.ids[:start].tolist()
        assert batch.suffix.ids[row][batch.suffix.mask[row]].tolist() == sequence.ids[start:].tolist()
    known = batch.known()[1].tolist()  # the shorter row
    lacking = sequences[0].split - sequences[1].split
    assert known[:lacking] == [not left] * lacking and lacking > 0
    (columns,) = batch.known()[1].nonzero(as_tuple=True)
    assert (columns.diff() == 1).all() == left
    assert set(batch.prefix.ids[1][~batch.prefix.mask[1]].tolist()) == {prompt.family.pad_token_id}


def test_what_goes_on_is_one_block_padded_on_its_left(prompt):
    prompt = typed(prompt)
    sequences, batch = batch_of(prompt, [tiles(prompt, 3, 2), tiles(prompt, 1)], goes_on=True)
    assert batch.prefix is None and bool(batch.suffix.mask[:, -1].all())
    for row, sequence in enumerate(sequences):
        assert batch.suffix.ids[row, -len(sequence) :].tolist() == sequence.ids.tolist()
    assert set(batch.labels.flatten().tolist()) == {IGNORED}


def test_types_are_those_of_the_image_not_of_what_stands_for_it(prompt):
    prompt = typed(prompt)
    sequences, batch = batch_of(prompt, [tiles(prompt, 3, 2), tiles(prompt, 1)])
    for row, sequence in enumerate(sequences):
        assert torch.equal(sequence.types[TYPES], (sequence.kind == FEATURE).long())
        mask = batch.known()[row]
        assert batch.known_types()[TYPES][row][mask].tolist() == sequence.types[TYPES].tolist()
        assert not batch.known_types()[TYPES][row][~mask].any()


def test_an_answer_has_a_type_of_its_own_where_the_prompt_sees_itself(prompt):
    prompt = typed(prompt, runs_whole=True)
    prompt = dataclasses.replace(prompt, types={TYPES: frozenset()})
    sequences, batch = batch_of(prompt, [tiles(prompt, 3, 2), tiles(prompt, 1)])
    assert batch.prefix is None  # nothing of the prompt can run before the soft prompt is known
    count = len(prompt.answer("joy")) + 1
    for sequence in sequences:
        assert sequence.types[TYPES].tolist() == [0] * (len(sequence) - count) + [1] * count
    assert not built(prompt, tiles(prompt, 1), answer=None).types[TYPES].any()
