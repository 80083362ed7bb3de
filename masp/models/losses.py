"""Cross-entropy at supervised positions of a frozen language model, with little memory for the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from masp.models.sequence import Batch
from masp.vlm.language import LanguageHalf

MAX_POSITIONS = 256
"""Positions whose logits over the whole vocabulary are held at once."""


def row_losses(language: LanguageHalf, hidden: Tensor, batch: Batch, num_logits: int | None = None) -> Tensor:
    """Cross-entropy of each row, a mean over its supervised tokens.

    Only supervised positions are projected to the vocabulary.

    Args:
        language: Language half of the VLM.
        hidden: Hidden states of the suffix, `[B, L, D]`.
        batch: Batch in which every row has a supervised token.
        num_logits: Number of rows of the vocabulary that the softmax runs over; None for all.

    Returns:
        `[B]`, fp32.
    """
    return losses_of_rows(language, [(hidden, batch)], num_logits)[0]


def losses_of_rows(
    language: LanguageHalf, passes: Sequence[tuple[Tensor, Batch]], num_logits: int | None = None
) -> list[Tensor]:
    """`row_losses` of several passes, whose positions are projected to the vocabulary together.

    A few positions take nearly as long as many: what takes the time is reading the vocabulary's weights.

    Args:
        language: Language half of the VLM.
        passes: Hidden states of the suffix, `[B, L, D]`, and the batch of each.
        num_logits: As for `row_losses`.

    Returns:
        Of each pass `[B]`, fp32.
    """
    states = torch.cat([hidden[batch.supervised] for hidden, batch in passes])
    labels = torch.cat([batch.labels[batch.supervised] for _, batch in passes])
    losses: Tensor = _PositionLosses.apply(states, language, labels, num_logits)
    found = []
    for (_, batch), own in zip(passes, losses.split([len(batch.supervised[0]) for _, batch in passes]), strict=True):
        rows = batch.supervised[0]
        counts = torch.zeros(len(batch.labels), device=own.device).index_add(0, rows, torch.ones_like(own))
        found.append(torch.zeros_like(counts).index_add(0, rows, own) / counts)
    return found


class _PositionLosses(torch.autograd.Function):
    """Cross-entropy of positions `[n, D]` with their labels `[n]`.

    The language model is frozen, so that all that the backward pass needs is the gradient at the positions `[n, D]`.
    It is computed with the loss, in the memory of the logits `[n, V]`, of which torch would keep three copies.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, language: LanguageHalf, labels: Tensor, num_logits: int | None) -> Tensor:
        has_gradient = ctx.needs_input_grad[0]
        parts = [
            _losses_and_gradient(language, some, own, num_logits, has_gradient)
            for some, own in zip(states.split(MAX_POSITIONS), labels.split(MAX_POSITIONS), strict=True)
        ]
        if has_gradient:
            ctx.save_for_backward(torch.cat([gradient for _, gradient in parts if gradient is not None]))
        return torch.cat([losses for losses, _ in parts])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[0][:, None]).to(gradient.dtype), None, None, None


def _losses_and_gradient(
    language: LanguageHalf, states: Tensor, labels: Tensor, num_logits: int | None, has_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Losses `[n]` fp32, and each one's gradient with respect to its state `[n, D]`: softmax minus one at the label."""
    with torch.set_grad_enabled(has_gradient):
        states = states.detach().requires_grad_(has_gradient)
        given = states.view_as(states)  # hooks on what a module is given refuse what is differentiated by
        logits = language.logits(given)
        if num_logits is not None:  # whose gradient is a copy
            logits = logits[:, :num_logits]
    values, at = logits.detach(), labels[:, None]  # changed in place, which autograd refuses if it needs them
    wanted, largest = values.gather(1, at), values.amax(1, keepdim=True)
    total = values.sub_(largest).exp_().sum(1, keepdim=True)
    losses = (total.log() + largest - wanted)[:, 0]
    if not has_gradient:
        return losses, None
    values.div_(total).scatter_add_(1, at, torch.full_like(wanted, -1.0))
    (gradient,) = torch.autograd.grad(logits, states, values)
    return losses, gradient
