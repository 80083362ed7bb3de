"""Scores of the categories: log-likelihood of all of them in one pass, or greedy generation."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Protocol

import torch
from torch import Tensor

from masp.errors import MaspError
from masp.models.candidates import CandidateTree, scored_tree
from masp.models.sequence import Batch
from masp.vlm.caches import behind, go_on_from, read_only
from masp.vlm.language import LanguageHalf, Tokens

MAX_POSITIONS = 512
"""Positions whose logits are held at once, over a part of the vocabulary."""


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


def log_likelihoods(language: LanguageHalf, num_logits: int | None, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Log-likelihood of tokens at positions.

    Args:
        language: Language half of the VLM.
        num_logits: Rows of the vocabulary that the softmax runs over; None for all.
        hidden: `[B, P, D]`.
        tokens: `[P, W]` ids of interest at each position.

    Returns:
        `[B, P, W]` fp32. The vocabulary is projected for a few positions and words at a time: all at once would be
        gigabytes.
    """
    rows, positions = hidden.shape[:2]
    flat = hidden.flatten(0, 1)
    wanted = tokens.repeat(rows, 1)
    parts = [
        _of_positions(language, num_logits, flat[start : start + MAX_POSITIONS], wanted[start : start + MAX_POSITIONS])
        for start in range(0, len(flat), MAX_POSITIONS)
    ]
    return torch.cat(parts).unflatten(0, (rows, positions))


def _of_positions(language: LanguageHalf, num_logits: int | None, hidden: Tensor, wanted: Tensor) -> Tensor:
    """The same of positions `[n, D]` and their tokens `[n, W]`."""
    found = torch.zeros(wanted.shape, device=hidden.device)
    normalizer = torch.full((len(hidden), 1), -torch.inf, device=hidden.device)
    first = 0
    for logits in language.exact_parts(hidden, num_logits):
        width = logits.shape[1]
        places = wanted - first
        own = (places >= 0) & (places < width)
        found = torch.where(own, logits.gather(1, places.clamp(0, width - 1)), found)
        normalizer = torch.logaddexp(normalizer, logits.logsumexp(-1, keepdim=True))
        first += width
    return found - normalizer


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

    scored = scored_tree(tuple(map(tuple, candidates)), end)
    tree = scored.tree
    if has_tree:
        ids = tree.ids.to(device).expand(rows, -1)
        tokens = following(language, batch, ids, 0)
        sees = tree.sees.to(device).expand(rows, -1, -1)
        branch = run_nodes(
            language,
            batch.known(),
            tokens,
            language.embed(tokens),
            tree.depth.to(device),
            sees,
            following_position,
            cache,
        )
    else:
        branch = run_one_by_one(language, batch, tree, following_position, cache)
    at = torch.cat([hidden[row, last][:, None], branch], dim=1)
    found = log_likelihoods(language, model.num_logits, at, scored.tokens.to(device))
    sums, means = scored.sums(found.double().cpu())
    check_finite(sums)
    return sums, means


def answer_losses(model: Scored, batch: Batch) -> Tensor:
    """Losses of a batch whose rows have several answers, each with a probability.

    The loss of a row is the sum over its answers of probability x mean loss of the answer's tokens, as if each answer
    had a pass of its own. Prefix and suffix run once; then all answers run as one block behind them, as in
    `score_categories`. The gradient reaches what is trained through all of them.

    Args:
        model: Model that is trained, of a family whose candidates may run as a tree.
        batch: Batch of sequences that stop before the answer, with `answers`.

    Returns:
        `[B]`, fp32.
    """
    language, answers = model.language, batch.answers
    assert answers is not None and language.family.has_tree, "these have one row per answer"
    cache = go_on_from(language.new_cache(branches=True))
    hidden = model.hidden(batch, cache)
    row = torch.arange(len(hidden), device=hidden.device)
    start = batch.suffix.positions[:, row, _last(batch.suffix.mask)][..., None] + 1
    tokens = following(language, batch, answers.ids, 0)
    embeds = language.embed(tokens)
    nodes = run_nodes(language, batch.known(), tokens, embeds, answers.depth, answers.sees, start, behind(cache))
    states = torch.cat([hidden, nodes], dim=1)[answers.rows, answers.columns]
    logits = language.logits(states)[:, : model.num_logits]
    wanted = logits[answers.target_place, answers.target_token]
    losses = (logits.logsumexp(-1)[answers.target_place] - wanted) * answers.target_share
    return torch.zeros(len(hidden), device=losses.device).index_add(0, answers.rows[answers.target_place], losses)


def run_nodes(
    language: LanguageHalf,
    known: Tensor,
    tokens: Tokens,
    embeds: Tensor,
    depth: Tensor,
    sees: Tensor,
    start: Tensor,
    cache,
) -> Tensor:
    """Hidden states of the nodes of trees `[B, L, D]`, in one pass with a mask for each type of layer.

    Args:
        language: Language half of the VLM.
        known: `[B, Lc]` which columns of the cache are real tokens; a node sees all of them.
        tokens: What stands at the nodes.
        embeds: `[B, L, D]` embeddings of the nodes.
        depth: `[L]` or `[B, L]` nodes before each on the way to it.
        sees: `[B, L, L]` which nodes a node sees.
        start: `[3, B, 1]` position of a node of depth 0.
        cache: What the decoder keeps of what is before the nodes.
    """
    device, width = start.device, embeds.shape[1]
    visible = torch.cat([known[:, None].expand(-1, width, -1), sees], dim=-1)

    def additive(visible: Tensor) -> Tensor:
        mask = torch.zeros(visible.shape, dtype=embeds.dtype, device=device)
        return mask.masked_fill_(~visible, torch.finfo(embeds.dtype).min)[:, None]

    mask: Tensor | dict[str, Tensor] = additive(visible)
    window = language.family.window
    if window is not None:
        # how many real tokens are before each column, and before each node
        before = torch.cat([known.cumsum(1) - 1, known.sum(1, keepdim=True) + depth], dim=1)
        apart = before[:, -width:, None] - before[:, None]
        near = additive(visible & (apart < window))
        is_mixed = "full_attention" in language.family.layer_types
        mask = {"full_attention": additive(visible), "sliding_attention": near} if is_mixed else near
    return language(embeds, mask, start + depth, cache, tokens)


def run_one_by_one(language: LanguageHalf, batch: Batch, tree: CandidateTree, start: Tensor, cache) -> Tensor:
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
