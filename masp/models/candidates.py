"""Several answers to one question: merged into a tree where they begin alike, so that one pass runs them all."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


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


def steps_of(path: Items[int], ids: Items[int], end: int | None) -> list[tuple[int, int]]:
    """A candidate as pairs of the node that predicts (-1: the prefix's end) and the token that it must predict."""
    steps = list(zip((-1, *path), (ids[node] for node in path), strict=False))
    return steps if end is None else [*steps, (path[-1], end)]


@dataclass(frozen=True)
class ScoredTree:
    """Candidates whose log-likelihoods are compared."""

    tree: CandidateTree
    tokens: Tensor
    """`[1 + L, W]` what each position must predict: first the prefix's end any first token, then each node any of its
    children or the end. Rows are filled up with 0."""
    steps: tuple[tuple[tuple[int, int], ...], ...]
    """Per candidate the rows and columns of its tokens in `tokens`."""

    def sums(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over each candidate's tokens and means per token, `[B, C]`, fp32.

        Args:
            found: `[B, 1 + L, W]` log-likelihoods of `tokens`, fp64.
        """
        zero = torch.zeros(len(found), dtype=found.dtype)
        sums = torch.stack([sum((found[:, row, column] for row, column in taken), zero) for taken in self.steps], dim=1)
        return sums.float(), (sums / torch.tensor([len(taken) for taken in self.steps])).float()


@functools.lru_cache(maxsize=256)
def scored_tree(candidates: tuple[tuple[int, ...], ...], end: int | None) -> ScoredTree:
    """Candidates as one tree; the same ones are asked about image after image, so it is kept.

    Args:
        candidates: Token ids of each, not empty.
        end: Token that ends an answer and counts as one of it; None where none does.
    """
    tree = candidate_tree(candidates)
    ids = tree.ids.tolist()
    followers: list[dict[int, int]] = [{} for _ in range(1 + len(ids))]
    steps = [
        tuple((node + 1, followers[node + 1].setdefault(token, len(followers[node + 1]))) for node, token in taken)
        for taken in (steps_of(path, ids, end) for path in tree.paths)
    ]
    tokens = torch.zeros(len(followers), max(map(len, followers)), dtype=torch.long)
    for row, wanted in enumerate(followers):
        for token, column in wanted.items():
            tokens[row, column] = token
    return ScoredTree(tree, tokens, tuple(steps))


@dataclass(frozen=True)
class WeightedAnswers:
    """Answers to one question, each with a probability."""

    tree: CandidateTree
    shares: Mapping[tuple[int, int], float]
    """What predicts and the token that it must predict -> weight of that token's loss. What predicts is a node, -1 for
    the last position before the answers, -2 for the one before that."""


def weigh_answers(
    answers: Items[tuple[Items[int], float]], end: int | None, lead: int | None = None
) -> WeightedAnswers:
    """Merge answers into a tree, with a loss that is the sum over answers of probability x mean loss of its tokens.

    Args:
        answers: Token ids of each and its probability; those of probability 0 are left out, and one must be left.
        end: Token that ends an answer and counts as one of it; None where none does.
        lead: The last token before the answers, where it counts as one of each (layout `released`); None elsewhere.
    """
    kept = [(ids, probability) for ids, probability in answers if probability > 0]
    tree = candidate_tree([ids for ids, _ in kept])
    ids, shares = tree.ids.tolist(), dict[tuple[int, int], float]()
    for path, (_, probability) in zip(tree.paths, kept, strict=True):
        steps = steps_of(path, ids, end)
        if lead is not None:
            steps = [(-2, lead), *steps]
        for step in steps:
            shares[step] = shares.get(step, 0.0) + probability / len(steps)
    return WeightedAnswers(tree, shares)


@dataclass(frozen=True)
class AnswerBlock:
    """Weighted answers behind the suffix of each row of a batch: `B` rows of `L` nodes, padded on the right."""

    ids: Tensor
    """`[B, L]`."""
    depth: Tensor
    """`[B, L]` tokens before each node in its answer."""
    mask: Tensor
    """`[B, L]`, true at real nodes."""
    sees: Tensor
    """`[B, L, L]` which nodes a node sees."""
    rows: Tensor
    """`[U]` the positions that predict something, row by row: their rows,"""
    columns: Tensor
    """`[U]` and their columns in the suffix with the nodes behind it."""
    target_place: Tensor
    """`[M]` for each target the position that must predict it, from 0 to U - 1."""
    target_token: Tensor
    """`[M]` its token."""
    target_share: Tensor
    """`[M]` fp32, the weight of its loss."""

    def moved(self, move: Callable[[Tensor], Tensor]) -> AnswerBlock:
        """The block with each tensor put through `move`."""
        return replace(self, **{field.name: move(getattr(self, field.name)) for field in fields(self)})


def answer_block(answers: Items[WeightedAnswers], lengths: Items[int]) -> AnswerBlock:
    """Collate the answers of a batch.

    Args:
        answers: Answers of each row.
        lengths: Tokens of each row's suffix, which is padded on the right to the longest.
    """
    width, length = max(len(each.tree.ids) for each in answers), max(lengths)
    ids = torch.zeros(len(answers), width, dtype=torch.long)
    depth, mask = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    sees = torch.zeros(len(answers), width, width, dtype=torch.bool)
    places: dict[tuple[int, int], int] = {}
    targets: list[tuple[int, int, float]] = []
    for row, (each, own) in enumerate(zip(answers, lengths, strict=True)):
        count = len(each.tree.ids)
        ids[row, :count], depth[row, :count], mask[row, :count] = each.tree.ids, each.tree.depth, True
        sees[row, :count, :count] = each.tree.sees
        for (node, token), share in sorted(each.shares.items()):
            place = (row, length + node if node >= 0 else own + node)
            targets.append((places.setdefault(place, len(places)), token, share))
    rows, columns = zip(*places, strict=True)
    at, tokens, shares = zip(*targets, strict=True)
    return AnswerBlock(
        ids, depth, mask, sees, torch.tensor(rows), torch.tensor(columns), torch.tensor(at), torch.tensor(tokens),
        torch.tensor(shares, dtype=torch.float32),
    )  # fmt: skip
