"""What aspect modules find against the demo's language model, and the answers it is trained to give."""

import numpy as np
import pytest
import torch

from masp.data.questions import load_questions
from masp.demo.tiny_vlm import adversary
from masp.demo.tiny_vlm.adversary import WIDTH, Adversaries, Found
from masp.demo.tiny_vlm.batch import embed, hidden_states, losses
from masp.demo.tiny_vlm.examples import FAINTEST, TOO_FAINT, Example, Slot
from masp.demo.tiny_vlm.geometry import SCALE, make_louder, token_ids
from masp.demo.tiny_vlm.pretrain import Trainer
from masp.demo.tiny_vlm.tokenizer import NONE
from masp.demo.world.factors import ASPECTS, LABELS, Scene, posterior


@pytest.fixture
def trainer():
    return Trainer(load_questions("configs/questions.yaml"), 0)


@pytest.fixture
def adversaries(trainer):
    torch.manual_seed(0)
    return Adversaries(
        trainer.model, trainer.packer, trainer.examples, trainer.geometry, trainer.noise,
        count=2, num_scenes=1, longest=9,
    )  # fmt: skip


def test_tokens_express_a_word_if_they_contain_enough_of_it(trainer, adversaries):
    table, mark = trainer.geometry.table, trainer.geometry.table[-1]
    pairs = ("scene", "beach"), ("scene", "alley"), ("object", "Cake")
    beach, alley, cake = (table[token_ids(trainer.tokenizer, *pair)[0]] for pair in pairs)
    other = torch.nn.functional.normalize(torch.randn(192), dim=0) * beach.norm()

    def verdict(*slots, **options):
        nothing = torch.randn(WIDTH - len(slots), 192) * SCALE
        return adversaries.verdict(torch.stack([*slots, *nothing]), **{"aspect": "scene"} | options)

    assert verdict(beach) == verdict(5 * beach) == "beach"
    assert verdict(beach, aspect="object") == verdict() == verdict(alone=True) == NONE
    assert verdict(beach, alley) is None  # one or the other
    assert verdict(5 * (beach * 0.95 + other * 0.3)) == "beach"
    assert verdict(5 * (beach * (TOO_FAINT - 0.1) + other)) == NONE
    assert verdict(5 * (beach * (FAINTEST + TOO_FAINT) / 2 + other * 0.8)) is None
    assert verdict(beach + 1.2 * mark) == NONE  # the label of a vision token is not a word
    assert verdict(beach, cake) == "beach" and verdict(cake) == NONE
    assert verdict(beach, cake, alone=True) is verdict(cake, alone=True) is None


def test_a_text_knows_what_its_tokens_express(trainer, adversaries, monkeypatch):
    monkeypatch.setattr(adversary, "CHANCE_TAKEN", 1.0)
    scene = Scene(tuple(int(k) for k in np.zeros(7)))
    tokens = torch.randn(len(ASPECTS), WIDTH, 192) * SCALE
    row = trainer.geometry.table[token_ids(trainer.tokenizer, "scene", LABELS["scene"][3])[0]]
    tokens[ASPECTS.index("scene"), 2] = row  # clear
    ambiguous = trainer.geometry.table[[token_ids(trainer.tokenizer, "object", o)[0] for o in LABELS["object"][:2]]]
    tokens[ASPECTS.index("object"), :2] = ambiguous
    grid, slots = trainer.examples.imitated_image(scene)
    (text,), taken = adversaries.texts([Found(scene, grid, slots, tokens)])
    known = [-1] * len(ASPECTS) + [0]
    known[ASPECTS.index("scene")], known[ASPECTS.index("object")] = 3, 0
    assert np.allclose(text.turns[0].emotions, posterior(known))
    assert taken[0, :, 0, 0].tolist() == [float(aspect != "object") for aspect in ASPECTS]


def test_adversaries_learn_and_restart_and_the_model_learns_from_them(trainer, adversaries):
    trainer.model.requires_grad_(False)
    trainer.language.layers[2].requires_grad_(True)
    first = adversaries.adversaries[0]
    module, before = first.modules, first.modules.by_aspect["scene"].query.detach().clone()
    answers, emotions, figures = adversaries.losses()
    assert answers.isfinite() and emotions.isfinite() and 0 <= figures["hits"] <= 1 and 0 <= figures["fooled"] <= 1
    assert first.modules is module and not torch.equal(first.modules.by_aspect["scene"].query, before)
    assert all(p.grad is None for p in trainer.model.parameters())  # the gradients of the adversaries stay separate
    (answers + emotions).backward()
    assert all(p.grad is not None for p in trainer.language.layers[2].parameters())
    assert not trainer.language.layers[1]._forward_pre_hooks
    for _ in range(9):
        adversaries.losses()
    assert first.modules is not module


def test_tokens_have_the_effect_that_they_will_have_after_make_louder(trainer, adversaries):
    turn = trainer.examples.aspect_turn("scene", "beach")
    packed = trainer.packer.pack([Example(slots=[Slot([0], [0.0])] * WIDTH, turns=[turn])] * 2)
    tokens = torch.randn(2, WIDTH, 192, generator=torch.Generator().manual_seed(1)) * 40 * SCALE  # larger than codes

    def plain():
        x = torch.cat([tokens, embed(trainer.model, packed)[:, WIDTH:]], 1)
        hidden, _ = hidden_states(trainer.model, packed, x, trainer.packer.opening)
        return losses(trainer.model, packed, hidden, trainer.packer.emotions).detach()

    before = plain()
    attenuated, _ = adversaries._each(packed, tokens, torch.ones(2, WIDTH, 1))
    make_louder(trainer.model, trainer.geometry, trainer.tokenizer)
    after = plain()
    assert (attenuated - after).abs().max() < 0.3 * (before - after).abs().max()
