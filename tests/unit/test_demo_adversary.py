"""What aspect modules find against the demo's language model, and what is answered to it."""

import pytest
import torch

from masp.data.categories import ASPECTS
from masp.data.demo.adversary import WIDTH, Adversaries
from masp.data.demo.examples import FAINTEST, TOO_FAINT
from masp.data.demo.geometry import SCALE, token_ids
from masp.data.demo.pretrain import Trainer
from masp.data.questions import load_questions


@pytest.fixture(scope="module")
def trainer():
    return Trainer(load_questions("configs/questions.yaml"), 0)


@pytest.fixture(scope="module")
def adversaries(trainer):
    torch.manual_seed(0)
    return Adversaries(
        trainer.model, trainer.packer, trainer.examples, trainer.geometry, trainer.noise,
        count=2, num_scenes=1, longest=9,
    )  # fmt: skip


def test_tokens_tell_a_word_if_enough_of_them_is_the_word(trainer, adversaries):
    table, mark = trainer.geometry.table, trainer.geometry.table[-1]
    beach, alley = (table[token_ids(trainer.tokenizer, "scene", label)[0]] for label in ("beach", "alley"))
    other = torch.nn.functional.normalize(torch.randn(192), dim=0) * beach.norm()

    def verdict(*slots, aspect="scene"):
        nothing = torch.randn(WIDTH - len(slots), 192) * SCALE
        return adversaries.verdict(torch.stack([*slots, *nothing]), aspect)

    assert verdict(beach) == verdict(5 * beach) == "beach"
    assert verdict(beach, aspect="object") is None and verdict() is None
    assert verdict(beach, alley) is False  # one or the other
    assert verdict(5 * (beach * 0.95 + other * 0.3)) == "beach"
    assert verdict(5 * (beach * (TOO_FAINT - 0.1) + other)) is None
    assert verdict(5 * (beach * (FAINTEST + TOO_FAINT) / 2 + other * 0.8)) is False
    assert verdict(beach + 1.2 * mark) is None  # a vision token's label is not told


def test_adversaries_learn_and_begin_again_and_the_model_learns_from_them(trainer, adversaries):
    trainer.model.requires_grad_(False)
    trainer.language.layers[2].requires_grad_(True)
    first = adversaries.adversaries[0]
    module, before = first.modules, first.modules.by_aspect["scene"].query.detach().clone()
    answers, emotions, figures = adversaries.losses()
    assert answers.isfinite() and emotions.isfinite() and 0 <= figures["hits"] <= 1 and 0 <= figures["fooled"] <= 1
    assert first.modules is module and not torch.equal(first.modules.by_aspect["scene"].query, before)
    (answers + emotions).backward()
    assert all(p.grad is not None for p in trainer.language.layers[2].parameters() if p.requires_grad)
    assert all(p.grad is None for p in trainer.language.layers[1].parameters())
    assert not trainer.language.layers[1]._forward_pre_hooks
    for _ in range(9):
        adversaries.losses()
    assert first.modules is not module
    assert set(module.by_aspect) == set(ASPECTS)
