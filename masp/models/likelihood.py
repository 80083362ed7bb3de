"""Scores of the categories: log-likelihood of all of them in one pass, or greedy generation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from masp.errors import MaspError
from masp.models.sequence import Batch
from masp.vlm.caches import read_only
from masp.vlm.language import LanguageHalf, Tokens

MAX_POSITIONS = 512
"""Positions whose logits over the whole vocabulary are held at once: 311 MB of fp32 for 152k words."""


class NotFiniteError(MaspError):
    """The model's output for some rows of a batch is not a finite number.

    Args:
        rows: Those rows.
    """

    def __init__(self, rows: Items[int]):
        super().__init__(f"the model's output is not finite in rows {list(rows)}")
        self.rows = tuple(rows)


def check_finite(values: Tensor) -> None:
    """Raises NotFiniteError unless all values `[B, ...]` are finite."""
    bad = ~torch.isfinite(values).flatten(1).all(1)
    if bad.any():
        raise NotFiniteError(bad.nonzero()[:, 0].tolist())


class Scored(Protocol):
    """What can be scored."""

    language: LanguageHalf
    num_logits: int | None
    """Rows of the vocabulary that the softmax runs over; None for all."""

    def hidden(self, batch: Batch, cache=None) -> Tensor:
        """Hidden states of the batch's suffix `[B, Ls, D]`; keys and values go to the empty `cache`."""


@dataclass(frozen=True)
class CandidateTree:
    """Candidates merged where they begin alike, one block behind the prefix: `L` nodes, one per different beginning."""

    ids: Tensor
    """`[L]` the token of each node."""
    depth: Tensor
    """`[L]` tokens before it in its candidate."""
    sees: Tensor
    """`[L, L]` which nodes a node sees: itself and those before it in its candidate."""
    paths: tuple[tuple[int, ...], ...]
    """Per candidate its nodes in order."""


def candidate_tree(candidates: Items[Items[int]]) -> CandidateTree:
    """Merge candidates into a tree.

    Args:
        candidates: Token ids of each, not empty. One may begin another (`sad`, `sad` `ness`), or equal it.
    """
    nodes: dict[tuple[int, ...], int] = {}
    paths = [
        tuple(nodes.setdefault(tuple(c[: k + 1]), len(nodes)) for k in range(len(c))) for c in map(tuple, candidates)
    ]
    sees = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
    for path in paths:
        for k, node in enumerate(path):
            sees[node, list(path[: k + 1])] = True
    ids = torch.tensor([beginning[-1] for beginning in nodes])
    depth = torch.tensor([len(beginning) - 1 for beginning in nodes])
    return CandidateTree(ids, depth, sees, tuple(paths))


def cut_short(candidates: Items[Items[int]]) -> list[tuple[int, int]]:
    """Pairs of candidates of which the first begins the second: without an end token the second never scores higher.

    Args:
        candidates: Token ids of each.
    """
    pairs = [(a, b) for a in range(len(candidates)) for b in range(len(candidates)) if a != b]
    return [(a, b) for a, b in pairs if list(candidates[b][: len(candidates[a])]) == list(candidates[a])]


def _last(block_mask: Tensor) -> Tensor:
    """Column of each row's last token, on whatever side the padding is."""
    return (block_mask * torch.arange(block_mask.shape[1], device=block_mask.device)).amax(1)


def following(language: LanguageHalf, batch: Batch, ids: Tensor, num_before: int) -> Tokens:
    """What stands at words behind a batch.

    Args:
        language: Language half of the VLM.
        batch: Batch that ends before the answer.
        ids: `[B, L]` token ids of the words.
        num_before: Words of the answer before them, which the cache holds too.
    """
    kind = int(language.family.runs_whole)  # there the answer has a type of its own
    types = {
        name: torch.cat([types, types.new_full((len(ids), num_before + ids.shape[1]), kind)], dim=1)
        for name, types in batch.known_types().items()
    }
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool), types)


def _log_likelihoods(model: Scored, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Log-likelihood of tokens at positions.

    Args:
        hidden: `[B, P, D]`.
        tokens: `[P, K]` ids of interest at each position.

    Returns:
        `[B, P, K]` fp32. The vocabulary is projected for a few positions at a time: all at once would be gigabytes.
    """
    rows, positions = hidden.shape[:2]
    flat = hidden.flatten(0, 1)
    wanted = tokens.repeat(rows, 1)
    parts = []
    for start in range(0, len(flat), MAX_POSITIONS):
        logits = model.language.exact_logits(flat[start : start + MAX_POSITIONS])[:, : model.num_logits]
        normalizer = logits.logsumexp(-1, keepdim=True)
        parts.append(logits.gather(1, wanted[start : start + MAX_POSITIONS]) - normalizer)
    return torch.cat(parts).unflatten(0, (rows, positions))


@torch.inference_mode()
def score_categories(
    model: Scored, batch: Batch, candidates: Items[Items[int]], end: int | None
) -> tuple[Tensor, Tensor]:
    """Log-likelihood of every candidate given the image and the question, in one pass over one shared prefix.

    The prefix runs once and leaves its keys and values; then all candidates run as one block behind it, merged into a
    tree whose mask lets each token see the prefix and its own beginning. Where a layer keeps a state instead of keys,
    which cannot branch, they run one after another.

    Args:
        model: Model that is scored.
        batch: Batch of sequences that stop before the answer.
        candidates: Token ids of each category's words, not empty.
        end: Token that ends an answer, counted in the sum; None to leave it out (layout `released`).

    Returns:
        Sums `[B, C]` and per-token means `[B, C]`, fp32, on the CPU.

    Raises:
        NotFiniteError: A log-likelihood is not finite.
    """
    language = model.language
    has_tree = language.family.has_tree
    cache = language.new_cache(branches=has_tree)
    hidden = model.hidden(batch, cache)
    device, rows = hidden.device, len(hidden)
    last = _last(batch.suffix.mask)
    row = torch.arange(rows, device=device)
    following_position = batch.suffix.positions[:, row, last][..., None] + 1

    tree = candidate_tree(candidates)
    run = _run_tree if has_tree else _run_one_by_one
    branch = run(language, batch, tree, following_position, cache)
    ids = tree.ids

    # what each position must predict: the prefix's end any first token, a node any of its children or the end
    followers: dict[int, dict[int, int]] = {node: {} for node in range(-1, len(ids))}
    steps = [_steps(path, tree.ids.tolist(), end) for path in tree.paths]
    for node, token in itertools.chain.from_iterable(steps):
        followers[node].setdefault(token, len(followers[node]))
    width = max(map(len, followers.values()))
    tokens = torch.zeros(len(ids) + 1, width, dtype=torch.long)
    for node, wanted in followers.items():
        for token, column in wanted.items():
            tokens[node + 1, column] = token
    at = torch.cat([hidden[row, last][:, None], branch], dim=1)
    found = _log_likelihoods(model, at, tokens.to(device)).double().cpu()

    zero = torch.zeros(rows, dtype=found.dtype)
    sums = torch.stack(
        [sum((found[:, n + 1, followers[n][token]] for n, token in taken), zero) for taken in steps], dim=1
    )
    check_finite(sums.float())
    return sums.float(), (sums / torch.tensor([len(taken) for taken in steps])).float()


def _run_tree(language: LanguageHalf, batch: Batch, tree: CandidateTree, start: Tensor, cache) -> Tensor:
    """Hidden states of all nodes `[B, L, D]`, in one pass with a mask for each type of layer.

    Args:
        language: Language half of the VLM.
        batch: Batch that ends before the answer.
        tree: The candidates.
        start: `[3, B, 1]` position of an answer's first token.
        cache: What the decoder keeps of the batch.
    """
    device = start.device
    ids, depth, sees = (t.to(device) for t in (tree.ids, tree.depth, tree.sees))
    known = batch.known()
    rows = len(known)
    visible = torch.cat([known[:, None].expand(-1, len(ids), -1), sees[None].expand(rows, -1, -1)], dim=-1)
    tokens = following(language, batch, ids.expand(rows, -1), 0)
    embeds = language.embed(tokens)

    def additive(visible: Tensor) -> Tensor:
        mask = torch.zeros(visible.shape, dtype=embeds.dtype, device=device)
        return mask.masked_fill_(~visible, torch.finfo(embeds.dtype).min)[:, None]

    mask: Tensor | dict[str, Tensor] = additive(visible)
    window = language.family.window
    if window is not None:
        # how many real tokens are before each column, and before each node
        before = torch.cat([known.cumsum(1) - 1, known.sum(1, keepdim=True) + depth], dim=1)
        apart = before[:, -len(ids) :, None] - before[:, None]
        near = additive(visible & (apart < window))
        is_mixed = "full_attention" in language.family.layer_types
        mask = {"full_attention": additive(visible), "sliding_attention": near} if is_mixed else near
    return language(embeds, mask, start + depth, cache, tokens)


def _run_one_by_one(language: LanguageHalf, batch: Batch, tree: CandidateTree, start: Tensor, cache) -> Tensor:
    """The same, one candidate after another, for layers that keep a state: each behind the batch as it was left."""
    known, rows = batch.known(), start.shape[1]
    found: list[Tensor | None] = [None] * len(tree.ids)
    for path in tree.paths:
        if all(found[node] is not None for node in path):
            continue  # another candidate begins with it
        ids = tree.ids[list(path)].to(start.device).expand(rows, -1)
        mask = torch.cat([known, known.new_ones(ids.shape)], dim=1)
        tokens = following(language, batch, ids, 0)
        positions = start + torch.arange(len(path), device=start.device)
        hidden = language(language.embed(tokens), mask, positions, read_only(cache), tokens)
        for place, node in enumerate(path):
            found[node] = hidden[:, place]
    return torch.stack([states for states in found if states is not None], dim=1)


def _steps(path: Items[int], ids: Items[int], end: int | None) -> list[tuple[int, int]]:
    """A candidate as pairs of the node that predicts (-1: the prefix's end) and the token that it must predict."""
    steps = list(zip((-1, *path), (ids[node] for node in path), strict=False))
    return steps if end is None else [*steps, (path[-1], end)]
