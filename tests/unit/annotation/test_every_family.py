"""What VLMs of many families answer behind a shared prefix, against a pass of each question over the whole prompt."""

from contextlib import closing

import numpy as np
import pytest
import torch

from masp.annotation.asking import VlmAnnotator, clean_answer
from masp.cache.reader import open_cache
from masp.config import load_aspects
from masp.data.questions import questions_of
from masp.extraction.job import extract
from masp.models.forward import run
from masp.models.sequence import build_sequence, make_batch
from masp.vlm.families import family_of
from tests.family_vlms import MAX_SIDE
from tests.images import make_config, make_dataset
from tests.unit.vlm.test_every_family import extended

DEFINITIONS = """
weather:
  kind: text
  questions: ["Which weather is it?"]
  vocabulary: [rain, rainy and cold, fog, sunshine]  # one begins with another
  absent: none
light:
  kind: level
  questions: ["How bright is it in this place, all in all?"]
  bounds: [0, 1]
  words: [low, very low, high]
  annotate: likelihood
mood:
  kind: text
  questions: ["What is the mood?"]
"""
FULL = pytest.mark.full
FAMILIES = [
    "qwen3_vl",  # M-RoPE, DeepStack
    "gemma3",  # sliding windows, masks that depend on types of tokens
    "qwen3_5",  # recurrent layers
    "paligemma",  # the whole prompt at once, in which all tokens see each other
    *(
        pytest.param(name, marks=FULL)
        for name in (
            "qwen2_5_vl qwen3_vl_moe qwen4_exp internvl llava_next gemma4 gemma4_e paligemma2 smolvlm idefics3 glm4v "
            "minicpmv4_6 deepseek_vl granite4_vision"
        ).split()
    ),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("images") / "images", 3, 1)


@torch.no_grad()
def logits_of(vlm, sequence, sample):
    """Logits `[L, V]` of one pass over the whole sequence of one image."""
    batch = make_batch(vlm.prompt, [sequence], [sample.features], row_image=[0], frozen_prefix=False)
    return vlm.language.logits(run(vlm.language, batch, None, None)[0])


def log_likelihoods(vlm, sample, sequence_of, choices):
    """Log-likelihood of each answer with its end token, each by a pass of its own."""
    sums = []
    for choice in choices:
        sequence = sequence_of(choice)
        logits = logits_of(vlm, sequence, sample).double().log_softmax(-1)
        ids = [*vlm.prompt.answer(choice), vlm.prompt.end]
        assert sequence.ids[-len(ids) :].tolist() == ids
        sums.append(float(logits[-len(ids) - 1 : -1][torch.arange(len(ids)), torch.tensor(ids)].sum()))
    return np.array(sums)


def written(vlm, sample, sequence):
    """Text and mean probability of the tokens that the likeliest words give, each by a pass of its own."""
    ids, probabilities = [], []
    while len(ids) < vlm.max_new_tokens and not (ids and ids[-1] in vlm.prompt.stop):
        shares = logits_of(vlm, extended(vlm, sequence, ids) if ids else sequence, sample)[-1].softmax(-1)
        ids.append(int(shares.argmax()))
        probabilities.append(float(shares.max()))
    return vlm.prompt.decode(ids), np.mean(probabilities)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_each_question_alone_over_the_whole_prompt(family_vlm, images, tmp_path, family):
    definitions = tmp_path / "aspects.yaml"
    definitions.write_text(DEFINITIONS)
    vlm_directory = family_vlm(family)
    attention = "eager" if family == "paligemma2" else "sdpa"  # transformers has nothing else for it
    config = make_config(
        images, vlm_directory, tmp_path / "cache", MAX_SIDE, "aspects=[weather,light,mood]", "cache.num_shards=1",
        f"aspect_definitions={definitions}", f"vlm.attention={attention}", "engine.precision=fp32",
        "annotate.device=cpu", "annotate.max_new_tokens=3",
    )  # fmt: skip
    extract(config)
    vlm, aspects = VlmAnnotator(config, questions_of(config)), load_aspects(config.aspect_definitions)
    with closing(open_cache(tmp_path / "cache")) as cache:
        samples = [cache.read(row) for row in range(3)]
    asked = [aspects["weather"], aspects["light"], aspects["mood"]]
    found = vlm.answer(samples, asked)
    for aspect in asked:
        assert vlm.answer(samples, [aspect])[aspect.name] == found[aspect.name]  # to the last bit

    kind = family_of(str(vlm_directory))
    shares_prefix = not (kind.pads_left or kind.runs_whole)
    assert (vlm._batch(samples, "What is it?").prefix is not None) == shares_prefix
    for number, sample in enumerate(samples):
        for aspect in asked:
            question, answer = aspect.questions[0], found[aspect.name][number]

            def sequence_of(text, question=question, sample=sample):
                return build_sequence(
                    vlm.prompt, question, text, num_aspect_tokens=0, image=sample.layout, num_soft_tokens=0,
                    layout="after_image",
                )  # fmt: skip

            if aspect.annotate == "generate":
                text, confidence = written(vlm, sample, sequence_of(None))
                assert answer.text == clean_answer(text, aspect)
                if "\n" not in text:
                    assert answer.confidence == pytest.approx(confidence, abs=1e-5)
                continue
            choices = [*aspect.vocabulary, *([aspect.absent] if aspect.absent else [])]
            sums = log_likelihoods(vlm, sample, sequence_of, choices)
            shares = np.exp(sums - sums.max()) / np.exp(sums - sums.max()).sum()
            best = choices[int(sums.argmax())]
            assert answer.text == (None if best == aspect.absent else best)
            assert answer.confidence == pytest.approx(shares.max(), abs=2e-5)
