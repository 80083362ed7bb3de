"""Scores of several soft prompts for the same images, behind one pass of what comes before them.

In layout `after_image` only the soft prompt, the question and the categories come behind the image, and of one member
they are the same for every image. So a member is one block: its soft prompt and question, and behind them the tree of
the categories. The prefix of a batch runs once; then the members' blocks run behind its keys and values, which they
only read. Memory does not grow with the number of members.

Where a layer keeps a state instead of keys, which cannot branch, a member goes on from a copy of what the prefix left:
first its soft prompt and question, then one category after another.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from masp.models.candidates import ScoredTree
from masp.models.forward import run_prefix
from masp.models.likelihood import log_likelihoods, run_nodes, run_one_by_one
from masp.models.sequence import SOFT, TEXT, Batch, Block, Sequence
from masp.vlm.caches import read_only
from masp.vlm.language import LanguageHalf, Tokens

NUM_POSITIONS = 512
"""Positions of a batch that run behind the prefix at once: members are added to a pass until it has as many."""


@dataclass(frozen=True)
class Branch:
    """What one member, or several side by side, put behind the prefix of every image: `L` positions."""

    ids: Tensor
    """`[L]` token ids."""
    is_word: Tensor
    """`[L]`, true at words."""
    types: dict[str, Tensor]
    """Types of tokens, `[L]` each."""
    embeds: Tensor
    """`[L, D]`."""
    depth: Tensor
    """`[L]` positions between the prefix and each."""
    sees: Tensor
    """`[L, L]` which of them each sees."""
    read: Tensor
    """`[m, 1 + N]` per member, where scores are read: its last position before the categories, then their N nodes."""

    @property
    def width(self) -> int:
        """L."""
        return len(self.ids)


def branch_of(
    language: LanguageHalf, sequence: Sequence, soft_prompt: Tensor | None, scored: ScoredTree, device: str
) -> Branch:
    """The block of one member.

    Args:
        language: Language half of the VLM.
        sequence: Any image's prompt with the member's soft prompt and question, which stops before the answer.
        soft_prompt: Soft prompt `[P, D]`, or None.
        scored: The categories.
        device: `cpu` or `cuda`.
    """
    tree, split = scored.tree, sequence.split
    own, kind = sequence.ids[split:], sequence.kind[split:]
    count, nodes = len(own), len(tree.ids)
    assert bool(((kind == TEXT) | (kind == SOFT)).all()), "only soft prompt and question may come behind the prefix"
    positions = sequence.positions[:, split:] - sequence.positions[:, split : split + 1]
    assert torch.equal(positions, torch.arange(count).expand(3, -1)), "their positions count on"
    is_soft = torch.cat([kind == SOFT, torch.zeros(nodes, dtype=torch.bool)])
    sees = torch.zeros(count + nodes, count + nodes, dtype=torch.bool)
    sees[:count, :count] = torch.ones(count, count, dtype=torch.bool).tril()
    sees[count:, :count] = True
    sees[count:, count:] = tree.sees
    ids = torch.cat([own, tree.ids]).to(device)
    is_word = (~is_soft).to(device)
    types = {n: torch.cat([t[split:], torch.zeros_like(tree.ids)]).to(device) for n, t in sequence.types.items()}
    nowhere = torch.zeros_like(is_word)[None]
    embeds = language.embed(Tokens(ids[None], is_word[None], nowhere, {n: t[None] for n, t in types.items()}))[0]
    if soft_prompt is not None:
        embeds = embeds.index_put((is_soft.to(device),), soft_prompt.to(embeds.dtype))
    depth = torch.cat([torch.arange(count), count + tree.depth]).to(device)
    read = torch.arange(count - 1, count + nodes, device=device)[None]
    return Branch(ids, is_word, types, embeds, depth, sees.to(device), read)


def side_by_side(branches: Items[Branch]) -> Branch:
    """Members as one block, none of which sees another."""
    if len(branches) == 1:
        return branches[0]
    firsts = [0]
    for branch in branches[:-1]:
        firsts.append(firsts[-1] + branch.width)
    return Branch(
        ids=torch.cat([branch.ids for branch in branches]),
        is_word=torch.cat([branch.is_word for branch in branches]),
        types={name: torch.cat([branch.types[name] for branch in branches]) for name in branches[0].types},
        embeds=torch.cat([branch.embeds for branch in branches]),
        depth=torch.cat([branch.depth for branch in branches]),
        sees=torch.block_diag(*(branch.sees for branch in branches)).bool(),
        read=torch.cat([first + branch.read for first, branch in zip(firsts, branches, strict=True)]),
    )


def passes_of(branches: Items[Branch], rows: int) -> list[Branch]:
    """Members in passes of at most `NUM_POSITIONS` positions of `rows` images, at least one member in each."""
    passes: list[list[Branch]] = []
    width = NUM_POSITIONS
    for branch in branches:
        if width + branch.width * rows > NUM_POSITIONS:
            passes.append([])
            width = 0
        passes[-1].append(branch)
        width += branch.width * rows
    return [side_by_side(members) for members in passes]


@torch.inference_mode()
def score_members(
    language: LanguageHalf,
    batch: Batch,
    aspect_tokens: Tensor | None,
    branches: Items[Branch],
    scored: ScoredTree,
) -> list[tuple[Tensor, Tensor]]:
    """Log-likelihood of every category for each member, as `masp.models.likelihood.score_categories` gives it alone.

    Args:
        language: Language half of the VLM, of a family that runs prompts in parts.
        batch: Batch of any member's sequences, which stop before the answer, with a prefix.
        aspect_tokens: Aspect tokens of the batch's images, `[I, A, N, D]`, or None.
        branches: The members.
        scored: The categories.

    Returns:
        Per member sums `[B, C]` and per-token means `[B, C]`, fp32, on the CPU; they may be not finite.
    """
    assert batch.prefix is not None, "the batch has no prefix"
    cache = language.new_cache(branches=language.family.has_tree)
    run_prefix(language, batch, aspect_tokens, None, cache)

    def scores(members: Items[Branch]) -> list[tuple[Tensor, Tensor]]:
        if language.family.has_tree:
            passes = passes_of(members, len(batch.row_image))
            found = [_states(language, batch, branch, read_only(cache)) for branch in passes]
        else:
            found = [_states_in_turn(language, batch, branch, scored, copy.deepcopy(cache)) for branch in members]
        states = torch.cat(found, dim=1)
        tokens = scored.tokens.to(states.device).repeat(len(members), 1)
        parts = log_likelihoods(language, None, states, tokens).double().cpu().unflatten(1, (len(members), -1))
        return [scored.sums(part) for part in parts.unbind(1)]

    pairs = scores(branches)
    for number, (sums, _) in enumerate(pairs):
        if not torch.isfinite(sums).all():
            # a mask does not keep what is not finite from those beside it in a pass: 0 times that is not finite either
            (pairs[number],) = scores([branches[number]])
    return pairs


def _states(language: LanguageHalf, batch: Batch, branch: Branch, cache) -> Tensor:
    """Hidden states where scores are read, member by member: `[B, m (1 + N), D]`."""
    rows, count = len(batch.row_image), batch.suffix.mask.shape[1]
    known = batch.known()[:, :-count]
    types = {
        name: torch.cat([before[:, :-count], branch.types[name].expand(rows, -1)], dim=1)
        for name, before in batch.known_types().items()
    }
    nowhere = torch.zeros_like(branch.is_word).expand(rows, -1)
    tokens = Tokens(branch.ids.expand(rows, -1), branch.is_word.expand(rows, -1), nowhere, types)
    hidden = run_nodes(
        language,
        known,
        tokens,
        branch.embeds.expand(rows, -1, -1),
        branch.depth,
        branch.sees.expand(rows, -1, -1),
        batch.suffix.positions[:, :, :1],
        cache,
    )
    return hidden[:, branch.read.flatten()]


def _states_in_turn(language: LanguageHalf, batch: Batch, branch: Branch, scored: ScoredTree, cache) -> Tensor:
    """The same of one member, `[B, 1 + N, D]`, for layers that keep a state; extends the cache."""
    rows, count = len(batch.row_image), branch.width - len(scored.tree.ids)
    start, is_word = batch.suffix.positions[:, :, :1], branch.is_word[:count]
    suffix = Block(
        ids=branch.ids[:count].expand(rows, -1),
        positions=start + branch.depth[:count],
        mask=torch.ones_like(is_word).expand(rows, -1),
        places={},
        kind=torch.where(is_word, TEXT, SOFT).expand(rows, -1),
        types={name: own[:count].expand(rows, -1) for name, own in branch.types.items()},
    )
    own = replace(batch, suffix=suffix)
    nowhere = torch.zeros_like(is_word).expand(rows, -1)
    tokens = Tokens(suffix.ids, is_word.expand(rows, -1), nowhere, own.known_types())
    embeds = branch.embeds[:count].expand(rows, -1, -1)
    hidden = language(embeds, own.known(), suffix.positions, cache, tokens)
    nodes = run_one_by_one(language, own, scored.tree, start + count, cache)
    return torch.cat([hidden[:, -1:], nodes], dim=1)
