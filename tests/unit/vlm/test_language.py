"""The language half without weights of a real VLM: what is done to logits, constants of the vision half, odd inputs."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from masp.errors import InputError
from masp.vlm.language import LanguageHalf, Tokens, _constants, _head, load_language_half

CAP, SCALE = 30.0, 8.0


class Inner(nn.Module):
    def forward(self, **_):
        raise AssertionError("the inner model is not run")


class Whole(nn.Module):
    """A VLM around an inner model, as transformers has them."""

    def __init__(self, change, takes_first, **stated):
        super().__init__()
        torch.manual_seed(0)
        self.base_model, self.lm_head = Inner(), nn.Linear(16, 40, bias=False)
        self.change, self.takes_first = change, takes_first
        text = SimpleNamespace(hidden_size=16, **stated)
        self.config = SimpleNamespace(model_type="made_up", get_text_config=lambda: text)

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids):
        out = self.base_model(input_ids=input_ids)
        hidden = out[0] if self.takes_first else out.last_hidden_state
        return SimpleNamespace(logits=self.change(self.lm_head(hidden)))


def capped(logits):
    return torch.tanh(logits / CAP) * CAP


@pytest.mark.parametrize("takes_first", [True, False])
@pytest.mark.parametrize(
    ("change", "stated", "found"),
    [
        (lambda logits: logits, {}, (None, None)),
        (capped, {"final_logit_softcapping": CAP}, (CAP, None)),
        (lambda logits: logits / SCALE, {"logits_scaling": SCALE}, (None, SCALE)),
        (capped, {"final_logit_softcapping": CAP, "logits_scaling": SCALE}, (CAP, None)),
        # stated, but used inside the decoder alone
        (lambda logits: logits, {"final_logit_softcapping": CAP, "logits_scaling": SCALE}, (None, None)),
    ],
)
def test_what_a_vlm_does_to_logits_is_asked_of_itself(change, stated, found, takes_first):
    model = Whole(change, takes_first, **stated)
    assert _head(model, None) == found
    with pytest.raises(AssertionError, match="not run"):  # it is as it was
        model.base_model()


@pytest.mark.parametrize("change", [capped, lambda logits: logits * 1.1, lambda logits: logits + 5])
def test_logits_that_are_changed_in_another_way_are_refused(change):
    with pytest.raises(InputError, match="^vlm.path: 'made_up' models transform their logits in a way"):
        _head(Whole(change, True, logits_scaling=SCALE), None)


def test_a_divided_head_is_whole_while_it_is_examined():
    model, held = Whole(capped, True, final_logit_softcapping=CAP), []

    class Partition:
        @contextmanager
        def whole(self, parameters):
            held.extend(parameters)
            yield

    assert _head(model, Partition()) == (CAP, None) and held == list(model.lm_head.parameters())


@pytest.fixture(scope="module")
def half(whole_vlm):
    return load_language_half(str(whole_vlm))


@pytest.mark.parametrize(("cap", "scale"), [(None, None), (CAP, None), (None, SCALE)])
def test_logits_are_changed_as_the_vlm_changes_them(half, monkeypatch, cap, scale):
    hidden = 20 * torch.randn(3, half.hidden_size, generator=torch.Generator().manual_seed(0))
    plain = hidden @ half.head.weight.T
    monkeypatch.setattr(half, "_cap", cap)
    monkeypatch.setattr(half, "_scale", scale)
    expected = capped(plain) if cap else plain / SCALE if scale else plain
    for found in (half.logits(hidden), half.exact_logits(hidden)):
        assert torch.allclose(found, expected, atol=1e-4)
    if cap or scale:
        assert (expected - plain).abs().max() > 1


def test_tokens_whose_embeddings_are_constants_of_the_vision_half(half, monkeypatch):
    vector = torch.arange(half.hidden_size, dtype=torch.float32)
    ids, yes = torch.tensor([[5, 7, 5]]), torch.ones(1, 3, dtype=torch.bool)
    without = half.embed(Tokens(ids, yes, ~yes))
    monkeypatch.setattr(half, "_constants", {7: vector})
    found = half.embed(Tokens(ids, yes, ~yes))
    assert torch.equal(found[0, 1], vector) and torch.equal(found[:, ::2], without[:, ::2])
    # where no word is, its id does not matter
    assert not torch.equal(half.embed(Tokens(ids, ~yes, ~yes))[0, 1], vector)


def test_constants_are_the_last_rows_of_their_table(monkeypatch):
    monkeypatch.setattr("masp.vlm.language.CONSTANTS", {"made_up": "table"})
    base = nn.Module()
    base.table = nn.Embedding(10, 4)
    rows = base.table.weight.detach().clone()
    config = SimpleNamespace(
        model_type="made_up",
        visual_indicator_token_ids=[31, 32],
        vision_config=SimpleNamespace(num_visual_indicator_tokens=3),
    )
    found = _constants(SimpleNamespace(config=config, base_model=base), None)
    assert list(found) == [31, 32] and torch.equal(torch.stack([*found.values()]), rows[7:9])
    assert not hasattr(base, "table")  # the rest of it is not kept
    assert _constants(SimpleNamespace(config=config, base_model=base), None) == {}


def test_experts_by_type_get_the_types_of_the_new_tokens_alone(half):
    ids, yes = torch.tensor([[5, 7]]), torch.ones(1, 2, dtype=torch.bool)
    types = {"moe_mm_token_type_ids": torch.tensor([[1, 1, 1, 0, 1]])}  # of three earlier ones, too
    extra = LanguageHalf._extra(half, Tokens(ids, yes, ~yes, types), torch.zeros(1, 2, half.hidden_size))
    assert list(extra) == ["moe_mm_token_type_ids"] and extra["moe_mm_token_type_ids"].tolist() == [[0, 1]]
