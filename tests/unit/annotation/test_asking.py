"""What the VLM is asked, against its own pass over the whole prompt; cleaning of written answers."""

import numpy as np
import pytest
import torch

from masp.annotation.asking import VlmAnnotator, clean_answer
from masp.cache.reader import open_cache
from masp.config import load_aspects
from masp.config.aspects import Aspect
from masp.data.questions import questions_of
from masp.models.forward import run
from masp.models.sequence import build_sequence, make_batch


@pytest.fixture(scope="module")
def asked(config):
    """The annotator, the cache and the aspects."""
    return (
        VlmAnnotator(config, questions_of(config)),
        open_cache(config.cache.dir),
        load_aspects(config.aspect_definitions),
    )


def whole_passes(vlm, sample, question, answers):
    """Log-likelihood of each answer with its end token, each by a pass of its own over the whole sequence."""
    sums = []
    for answer in answers:
        sequence = build_sequence(
            vlm.prompt,
            question,
            answer,
            num_aspect_tokens=0,
            image=sample.layout,
            num_soft_tokens=0,
            layout="after_image",
        )
        batch = make_batch(vlm.prompt, [sequence], [sample.features], row_image=[0], frozen_prefix=False)
        with torch.no_grad():
            logits = vlm.language.logits(run(vlm.language, batch, None, None)[0])
        labels = batch.labels[0]
        places = (labels >= 0).nonzero()[:, 0]
        sums.append(float(logits[places].log_softmax(-1)[torch.arange(len(places)), labels[places]].sum()))
    return np.array(sums)


def test_confidence_is_the_probability_of_the_likeliest_answer(asked):
    vlm, cache, aspects = asked
    samples = [cache.read(row) for row in (0, 3, 7)]
    choices = [*aspects["weather"].vocabulary, "none"]
    for sample, answer in zip(samples, vlm.answer(samples, [aspects["weather"]])["weather"], strict=True):
        sums = whole_passes(vlm, sample, "Which weather is it?", choices)
        shares = np.exp(sums - sums.max()) / np.exp(sums - sums.max()).sum()
        best = choices[int(sums.argmax())]
        assert answer.text == (None if best == "none" else best)
        assert answer.confidence == pytest.approx(shares.max(), abs=1e-5)


def test_answers_do_not_depend_on_what_else_is_asked(asked):
    vlm, cache, aspects = asked
    samples = [cache.read(row) for row in range(4)]
    names = ("weather", "mood", "things", "scene")
    together = vlm.answer(samples, [aspects[name] for name in names])
    for name in names:
        assert vlm.answer(samples, [aspects[name]])[name] == together[name]  # to the last bit


def test_written_answers_are_those_of_a_whole_pass(asked):
    vlm, cache, aspects = asked
    sample = cache.read(2)
    (answer,) = vlm.answer([sample], [aspects["mood"]])["mood"]
    ids, probabilities = [], []
    for _ in range(vlm.max_new_tokens):
        sequence = build_sequence(
            vlm.prompt, "What is the mood?", None, num_aspect_tokens=0, image=sample.layout, num_soft_tokens=0,
            layout="after_image",
        )  # fmt: skip
        batch = make_batch(vlm.prompt, [sequence], [sample.features], row_image=[0], frozen_prefix=False)
        grown = torch.cat([batch.suffix.ids, torch.tensor([ids], dtype=torch.long)], dim=1)
        more = len(ids)
        last = batch.suffix.positions[..., -1:] + 1 + torch.arange(more)
        from masp.models.sequence import TEXT, Block

        block = Block(
            grown, torch.cat([batch.suffix.positions, last], dim=2), torch.ones_like(grown, dtype=torch.bool),
            batch.suffix.places, torch.cat([batch.suffix.kind, torch.full((1, more), TEXT)], dim=1), {},
        )  # fmt: skip
        from dataclasses import replace

        with torch.no_grad():
            hidden = run(vlm.language, replace(batch, suffix=block), None, None)
        shares = vlm.language.logits(hidden[0, -1]).softmax(-1)
        ids.append(int(shares.argmax()))
        probabilities.append(float(shares.max()))
        if ids[-1] in vlm.prompt.stop:
            break
    text = vlm.prompt.decode(ids)
    assert answer.text == clean_answer(text, aspects["mood"])
    if "\n" not in text:
        assert answer.confidence == pytest.approx(np.mean(probabilities), abs=1e-5)


def aspect(kind="text", vocabulary=(), absent=None):
    return Aspect("a", kind, ("What?",), vocabulary, None, "generate", absent)


@pytest.mark.parametrize(
    ("text", "of", "expected"),
    [
        (" A Quiet_Street.\nAnd more", aspect(), "a quiet street"),
        ("\nlate", aspect(), "late"),
        ("", aspect(), None),
        ("  \n ", aspect(), None),
        ("none", aspect(absent="none"), None),
        ("Dog, dog , Teddy_Bear,, cat", aspect("list"), "dog, teddy bear, cat"),
        ("dog, unicorn, tree", aspect("list", ("tree", "dog")), "dog, tree"),
        ("unicorn", aspect("list", ("tree", "dog")), None),
        ("a street", aspect("text", ("street", "sea")), None),
        ("Sea", aspect("text", ("street", "sea")), "sea"),
    ],
)
def test_written_answers_are_cleaned(text, of, expected):
    assert clean_answer(text, of) == expected
