"""Scores of the categories: log-likelihood of all of them in one pass, or greedy generation."""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from masp.models.forward import Stage2Model
from masp.models.sequence import Batch


def candidate_tree(candidates: Items[Items[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Lay candidates side by side in one block.

    Returns:
        Token ids `[L]`, offset of each token within its candidate `[L]`, and which token sees which `[L, L]`: itself
        and what precedes it in its own candidate.
    """
    ids = torch.tensor([i for c in candidates for i in c])
    owner = torch.tensor([n for n, c in enumerate(candidates) for _ in c])
    offset = torch.tensor([k for c in candidates for k in range(len(c))])
    sees = (owner[:, None] == owner[None]) & (offset[:, None] >= offset[None])
    return ids, offset, sees


def _last(block_mask: Tensor) -> Tensor:
    return block_mask.sum(1) - 1


@torch.inference_mode()
def score_categories(
    model: Stage2Model, batch: Batch, candidates: Items[Items[int]], end: int | None
) -> tuple[Tensor, Tensor]:
    """Log-likelihood of every candidate given the image and the question, in one pass over one shared prefix.

    Args:
        batch: sequences that stop before the answer.
        candidates: token ids of each category's words, not empty.
        end: the token that ends an answer, counted in the sum; None to leave it out (layout `released`).

    Returns:
        Sums `[B, C]` and per-token means `[B, C]`, fp32, on the CPU.
    """
    language = model.language
    cache = language.new_cache()
    hidden = model.hidden(batch, cache)
    device, rows = hidden.device, len(hidden)
    last = _last(batch.suffix.mask)
    row = torch.arange(rows, device=device)
    first = language.exact_logits(hidden[row, last])[:, : model.num_logits].log_softmax(-1)

    ids, offset, sees = (t.to(device) for t in candidate_tree(candidates))
    known = batch.known()
    visible = torch.cat([known[:, None].expand(-1, len(ids), -1), sees[None].expand(rows, -1, -1)], dim=-1)
    additive = torch.zeros(visible.shape, dtype=hidden.dtype, device=device)
    additive.masked_fill_(~visible, torch.finfo(hidden.dtype).min)
    positions = batch.suffix.positions[:, row, last][..., None] + 1 + offset
    branch = language(language.embed(ids).expand(rows, -1, -1), additive[:, None], positions, cache)
    after = language.exact_logits(branch)[..., : model.num_logits].log_softmax(-1)

    sums, counts, at = [], [], 0
    for candidate in candidates:
        total = first[:, candidate[0]].double()
        for k, token in enumerate(candidate[1:]):
            total = total + after[:, at + k, token]
        if end is not None:
            total = total + after[:, at + len(candidate) - 1, end]
        sums.append(total)
        counts.append(len(candidate) + (end is not None))
        at += len(candidate)
    sums = torch.stack(sums, dim=1)
    means = sums / torch.tensor(counts, device=device)
    return sums.float().cpu(), means.float().cpu()


@torch.inference_mode()
def generate(
    model: Stage2Model, batch: Batch, max_new_tokens: int, stop: frozenset[int]
) -> tuple[list[list[int]], Tensor]:
    """Greedy decoding.

    Args:
        batch: sequences that stop before the answer.
        max_new_tokens: at most so many tokens a row.
        stop: token ids that end a row (kept as its last).

    Returns:
        Generated ids of each row, and the logits `[B, V]` of the first generated position (fp32, on the CPU).
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
        tokens = logits.argmax(-1)
        for n, token in enumerate(tokens.tolist()):
            if going[n]:
                generated[n].append(token)
                going[n] = token not in stop
        if step + 1 == max_new_tokens or not any(going):
            break
        mask = torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
        positions = positions + 1
        hidden = language(language.embed(tokens)[:, None], mask, positions[..., None], cache)
        logits = language.exact_logits(hidden[:, -1])[:, : model.num_logits]
    return generated, first.cpu()
