"""Losses and gradients against torch's cross-entropy over whole logits."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from masp.models import losses
from masp.models.losses import losses_of_rows, row_losses
from masp.vlm.language import load_language_half
from tests.tiny import make_vlm


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return load_language_half(str(make_vlm(tmp_path_factory.mktemp("vlm"))))


def batch_of(language, rows, columns):
    """A batch of three rows of six positions with labels, some of them supervised."""
    labels = torch.randint(language.vocab_size, (3, 6), generator=torch.Generator().manual_seed(1))
    return SimpleNamespace(labels=labels, supervised=(torch.tensor(rows), torch.tensor(columns)))


def plain(language, hidden, batch, num_logits=None):
    """A mean per row, as torch computes it."""
    rows, columns = batch.supervised
    logits = language.head(hidden).float()[:, :, :num_logits]
    return torch.stack(
        [functional.cross_entropy(logits[n, columns[rows == n]], batch.labels[n, columns[rows == n]]) for n in range(3)]
    )


@pytest.mark.parametrize("at_once", [2, 256])
@pytest.mark.parametrize("num_logits", [None, 100])
def test_losses_and_gradients_are_those_of_torch(language, num_logits, at_once, monkeypatch):
    monkeypatch.setattr(losses, "MAX_POSITIONS", at_once)
    batch = batch_of(language, [0, 0, 1, 2, 2, 2], [1, 2, 5, 0, 3, 4])
    batch.labels %= 100
    hidden = torch.randn(3, 6, language.hidden_size, requires_grad=True)
    weights = torch.tensor([0.5, 2.0, -1.0])
    ours, theirs = row_losses(language, hidden, batch, num_logits), plain(language, hidden, batch, num_logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    found = [torch.autograd.grad((each * weights).sum(), hidden)[0] for each in (ours, theirs)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7)
    assert torch.equal(row_losses(language, hidden.detach(), batch, num_logits), ours)


def test_passes_together_are_those_alone(language):
    hidden = [torch.randn(3, 6, language.hidden_size) for _ in range(2)]
    batches = [batch_of(language, [0, 1, 2], [5, 5, 5]), batch_of(language, [0, 1, 1, 2], [0, 1, 2, 3])]
    together = losses_of_rows(language, list(zip(hidden, batches, strict=True)))
    for found, states, batch in zip(together, hidden, batches, strict=True):
        torch.testing.assert_close(found, row_losses(language, states, batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_half_precision_and_capped_logits(language, cap, monkeypatch):
    monkeypatch.setattr(language, "_cap", cap)
    batch = batch_of(language, [0, 1, 2], [0, 1, 2])
    hidden = torch.randn(3, 6, language.hidden_size, requires_grad=True)
    rows = hidden[batch.supervised]
    theirs = functional.cross_entropy(language.logits(rows), batch.labels[batch.supervised], reduction="none")
    ours = row_losses(language, hidden, batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    found = [torch.autograd.grad(each.sum(), hidden, retain_graph=True)[0] for each in (ours, theirs)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7)
    head = language.head
    try:
        language.head.to(torch.bfloat16)
        low = hidden.detach().bfloat16().requires_grad_()
        ours = row_losses(language, low, batch)
        theirs = functional.cross_entropy(
            language.logits(low[batch.supervised]), batch.labels[batch.supervised], reduction="none"
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        found = [torch.autograd.grad(each.sum(), low, retain_graph=True)[0] for each in (ours, theirs)]
        assert found[0].dtype is torch.bfloat16
        torch.testing.assert_close(*found, rtol=2e-2, atol=1e-4)
    finally:
        head.float()


def test_a_state_that_is_not_finite_has_a_loss_that_is_not(language):
    batch = batch_of(language, [0, 1, 2], [0, 1, 2])
    hidden = torch.zeros(3, 6, language.hidden_size)
    hidden[1, 1] = float("inf")
    found = row_losses(language, hidden.requires_grad_(), batch)
    assert torch.isfinite(found).tolist() == [True, False, True]
