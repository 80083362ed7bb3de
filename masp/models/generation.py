"""Greedy generation of answers behind a prefix that is shared."""

from __future__ import annotations

import torch
from torch import Tensor

from masp.models.likelihood import NotFiniteError, Scored, _last, following
from masp.models.sequence import Batch


@torch.inference_mode()
def generate(
    model: Scored,
    batch: Batch,
    max_new_tokens: int,
    stop: frozenset[int],
    probabilities: list[list[float]] | None = None,
) -> tuple[list[list[int]], Tensor]:
    """Greedy decoding.

    Args:
        model: Model that answers.
        batch: Batch of sequences that stop before the answer.
        max_new_tokens: Largest number of tokens per row.
        stop: Token ids that end a row (kept as its last).
        probabilities: Receives the probability of each generated token, row by row.

    Returns:
        Generated ids of each row, and the logits `[B, V]` of the first generated position (fp32, on the CPU).

    Raises:
        NotFiniteError: Logits of a row that is not ended are not finite.
    """
    language = model.language
    cache = language.new_cache()
    hidden = model.hidden(batch, cache)
    device, rows = hidden.device, len(hidden)
    row, last = torch.arange(rows, device=device), _last(batch.suffix.mask)
    mask = batch.known()
    positions = batch.suffix.positions[:, row, last]
    logits = first = language.exact_logits(hidden[row, last])[:, : model.num_logits]
    generated: list[list[int]] = [[] for _ in range(rows)]
    going = [True] * rows
    for step in range(max_new_tokens):
        finite = torch.isfinite(logits).all(1).tolist()
        if bad := [n for n in range(rows) if going[n] and not finite[n]]:
            raise NotFiniteError(bad)
        tokens = logits.argmax(-1)
        if probabilities is not None:
            found = logits.softmax(-1).amax(-1).tolist()
            probabilities.extend([] for _ in range(rows - len(probabilities)))
            for row_probabilities, probability, is_going in zip(probabilities, found, going, strict=True):
                if is_going:
                    row_probabilities.append(probability)
        for n, token in enumerate(tokens.tolist()):
            if going[n]:
                generated[n].append(token)
                going[n] = token not in stop
        if step + 1 == max_new_tokens or not any(going):
            break
        mask = torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
        positions = positions + 1
        words = following(language, batch, tokens[:, None], step)
        hidden = language(language.embed(words), mask, positions[..., None], cache, words)
        logits = language.exact_logits(hidden[:, -1])[:, : model.num_logits]
    return generated, first.cpu()
