"""The language model's input, position by position: one sample's sequence, and batches of mixed lengths."""

from __future__ import annotations

import functools
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from masp.vlm.prompt import Prompt

TEXT, ASPECT, FEATURE, SOFT = range(4)
"""What fills a position: a word embedding, an aspect token, a feature, a vector of the soft prompt."""
IGNORED = -100
"""Label of a position whose next token is not supervised."""
LAYOUTS = ("after_image", "released")


@dataclass(frozen=True)
class Sequence:
    """One sample's input to the language model. `L` positions."""

    ids: Tensor
    """`[L]` token ids; 0 at positions that are not text."""
    kind: Tensor
    """`[L]` TEXT, ASPECT, FEATURE or SOFT."""
    positions: Tensor
    """`[3, L]` rotary positions (time, height, width)."""
    labels: Tensor
    """`[L]` the token to be predicted *at* this position (already shifted), or IGNORED."""
    split: int
    """Everything before this position depends on nothing trained in its stage."""

    def __len__(self) -> int:
        return len(self.ids)


class _Builder:
    """Grows a sequence piece by piece, in numpy: a step of small images builds hundreds."""

    def __init__(self):
        self.ids: list[np.ndarray] = []
        self.kind: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.length = self.next = 0

    def _add(self, kind: int, ids: np.ndarray, positions: np.ndarray) -> None:
        self.ids.append(ids)
        self.kind.append(np.full(len(ids), kind))
        self.positions.append(positions)
        self.length += len(ids)

    def text(self, ids: Items[int]) -> None:
        self._run(TEXT, np.array(ids, dtype=np.int64))

    def slots(self, kind: int, count: int) -> None:
        self._run(kind, np.zeros(count, dtype=np.int64))

    def _run(self, kind: int, ids: np.ndarray) -> None:
        """Positions that count on, the same in time, height and width."""
        count = np.arange(self.next, self.next + len(ids))
        self._add(kind, ids, np.broadcast_to(count, (3, len(ids))))
        self.next += len(ids)

    def features(self, grid: tuple[int, int, int], merge_size: int, flat: bool) -> None:
        """Vision tokens: positions from the grid as the Qwen family counts them, or plainly one after another."""
        t, h, w = grid[0], grid[1] // merge_size, grid[2] // merge_size
        if flat:
            self.slots(FEATURE, t * h * w)
            return
        positions = np.indices((t, h, w)).reshape(3, -1) + self.next
        self._add(FEATURE, np.zeros(t * h * w, dtype=np.int64), positions)
        self.next += max(h, w)


def build_sequence(
    prompt: Prompt,
    question: str,
    answer: str | None,
    *,
    num_aspect_tokens: int,
    grid: tuple[int, int, int] | None,
    num_soft_tokens: int,
    layout: str,
) -> Sequence:
    """Lay out one sample.

    Stage 1 has the asked aspect's tokens alone (`grid` None); stage 2 has all aspects' tokens, then the features.

    Args:
        prompt: Chat template of the VLM.
        question: Text of the question.
        answer: Text of the answer, supervised; None to stop before the answer.
        num_aspect_tokens: Number of aspect tokens in the visual block.
        grid: Patches of the image in time, height and width; None leaves the features out.
        num_soft_tokens: Length of the soft prompt; 0 leaves it out.
        layout: `after_image` (soft prompt after the image; positions by the VLM's own rule; the end token is
            supervised) or `released` (before the image and again before the question; positions count 0, 1, 2 …;
            supervised are the newline after `assistant` and the answer).
    """
    build = _short_sequence if grid is None else _lay_out
    return build(prompt, question, answer, num_aspect_tokens, grid, num_soft_tokens, layout)


def _lay_out(
    prompt: Prompt,
    question: str,
    answer: str | None,
    num_aspect_tokens: int,
    grid: tuple[int, int, int] | None,
    num_soft_tokens: int,
    layout: str,
) -> Sequence:
    released = layout == "released"
    build = _Builder()
    build.text(prompt.opening)
    if released:
        build.slots(SOFT, num_soft_tokens)
    build.text(prompt.image_start)
    split = build.length  # stage 1 trains the visual block, stage 2 the soft prompt
    build.slots(ASPECT, num_aspect_tokens)
    if grid is not None:
        build.features(grid, prompt.merge_size, flat=released)
    build.text(prompt.image_end)
    if num_soft_tokens or grid is not None:
        split = len(prompt.opening) if released else build.length
    build.slots(SOFT, num_soft_tokens)
    build.text(prompt.ids(question))
    build.text(prompt.closing)
    start = build.length - 1  # the position that predicts the first answer token
    if answer is not None:
        build.text(prompt.ids(answer))
        if not released:
            build.text((prompt.end,))
    ids = torch.from_numpy(np.concatenate(build.ids))
    labels = torch.full_like(ids, IGNORED)
    if answer is not None:
        first = start - 1 if released else start
        labels[first:-1] = ids[first + 1 :]
    kind, positions = (torch.from_numpy(np.concatenate(x, axis=-1)) for x in (build.kind, build.positions))
    return Sequence(ids, kind, positions, labels, split)


# in stage 1 the same few questions and answers come again and again, and are short
_short_sequence = functools.lru_cache(maxsize=8192)(_lay_out)


@dataclass(frozen=True)
class Block:
    """Right-padded columns of a batch."""

    ids: Tensor
    """`[B, L]`."""
    positions: Tensor
    """`[3, B, L]`."""
    mask: Tensor
    """`[B, L]`, true at real tokens."""
    places: dict[int, tuple[Tensor, Tensor]]
    """For ASPECT, FEATURE and SOFT, rows and columns of their positions, row by row; found here, on the CPU, so that a
    GPU need not be waited for."""

    def moved(self, move: Callable[[Tensor], Tensor]) -> Block:
        """The block with each tensor put through `move`."""
        places = {kind: (move(rows), move(columns)) for kind, (rows, columns) in self.places.items()}
        return Block(move(self.ids), move(self.positions), move(self.mask), places)


@dataclass(frozen=True)
class Batch:
    """Samples for one pass of the language model. `B` rows over `I` images."""

    prefix: Block | None
    """What nothing trained can reach, run without gradient."""
    shared_prefix: bool
    """The prefix is plain text and the same for all rows: it is held, and run, as one row."""
    suffix: Block
    labels: Tensor
    """`[B, Ls]`, for the suffix."""
    supervised: tuple[Tensor, Tensor]
    """Rows and columns of the labels that are not IGNORED, row by row; found on the CPU like `Block.places`."""
    weights: Tensor
    """`[B]` fp32; 0 marks padding."""
    features: Tensor
    """`[I, T, D]`, padded."""
    feature_mask: Tensor
    """`[I, T]`, true at real features."""
    row_image: Tensor
    """`[B]` image of each row."""
    row_aspect: Tensor | None
    """`[B]` asked aspect of each row (stage 1); None: all aspects (stage 2)."""
    aspect_tokens: Tensor | None = None
    """`[I, A, N, D]` computed before; None: the aspect modules run."""

    def known(self) -> Tensor:
        """Which tokens of prefix and suffix are real, `[B, Lp + Ls]`."""
        if self.prefix is None:
            return self.suffix.mask
        return torch.cat([self.prefix.mask.expand(len(self.suffix.mask), -1), self.suffix.mask], dim=1)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Batch:
        """Move to a device; features take the language model's dtype."""
        batch = self.moved(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(batch, features=batch.features.to(dtype))

    def pin_memory(self) -> Batch:
        """Page-locked copies, from which transfers to a GPU run beside its work. A DataLoader calls this."""
        return self.moved(Tensor.pin_memory)

    def moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with each tensor put through `move`."""
        rows, columns = self.supervised
        return replace(
            self,
            prefix=None if self.prefix is None else self.prefix.moved(move),
            suffix=self.suffix.moved(move),
            labels=move(self.labels),
            supervised=(move(rows), move(columns)),
            weights=move(self.weights),
            features=move(self.features),
            feature_mask=move(self.feature_mask),
            row_image=move(self.row_image),
            row_aspect=None if self.row_aspect is None else move(self.row_aspect),
            aspect_tokens=None if self.aspect_tokens is None else move(self.aspect_tokens),
        )


def pad_features(features: Items[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack features `[T_i, D]` to `[I, T, D]` with a mask `[I, T]`."""
    padded = torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True)
    lengths = torch.tensor([len(f) for f in features])
    return padded, torch.arange(padded.shape[1])[None] < lengths[:, None]


def _places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns where a mask `[B, L]` is true."""
    rows, columns = mask.nonzero(as_tuple=True)
    return rows, columns


def _block(sequences: Items[Sequence], bounds: Items[tuple[int, int]]) -> Block:
    length = max(1, max(stop - start for start, stop in bounds))
    ids = torch.zeros(len(sequences), length, dtype=torch.long)
    kind = torch.full_like(ids, TEXT)
    positions = torch.zeros(3, len(sequences), length, dtype=torch.long)
    mask = torch.zeros(len(sequences), length, dtype=torch.bool)
    for row, (sequence, (start, stop)) in enumerate(zip(sequences, bounds, strict=True)):
        count = stop - start
        ids[row, :count] = sequence.ids[start:stop]
        kind[row, :count] = sequence.kind[start:stop]
        positions[:, row, :count] = sequence.positions[:, start:stop]
        mask[row, :count] = True
    places = {slot: _places(kind == slot) for slot in (ASPECT, FEATURE, SOFT)}
    return Block(ids, positions, mask, places)


def make_batch(
    sequences: Items[Sequence],
    features: Items[Tensor],
    *,
    row_image: Items[int],
    row_aspect: Items[int] | None = None,
    weights: Items[float] | None = None,
    frozen_prefix: bool = True,
    aspect_tokens: Items[Tensor] | None = None,
) -> Batch:
    """Collate sequences into a batch.

    Args:
        sequences: Sequences, one per row.
        features: Features, one `[T, D]` per image.
        row_image: Index into `features` of each row.
        row_aspect: Asked aspect of each row (stage 1).
        weights: Weight of each row; ones if None.
        frozen_prefix: Whether what comes before each sequence's `split` runs apart, without gradient.
        aspect_tokens: Aspect tokens, one `[A, N, D]` per image, where they were computed before (stage 2).
    """
    count = len(sequences)
    starts = [s.split if frozen_prefix else 0 for s in sequences]
    prefix, shared = None, False
    if any(starts):
        # in stage 1 the same system turn opens every row
        first, start = sequences[0], starts[0]
        ids, kind = first.ids[:start], first.kind[:start]
        shared = bool((kind == TEXT).all()) and all(
            torch.equal(s.ids[:n], ids) and torch.equal(s.kind[:n], kind)
            for s, n in zip(sequences, starts, strict=True)
        )
        heads = sequences[:1] if shared else sequences
        prefix = _block(heads, [(0, start) for start in starts[: len(heads)]])
    suffix = _block(sequences, [(start, len(s)) for start, s in zip(starts, sequences, strict=True)])
    labels = torch.full_like(suffix.ids, IGNORED)
    for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        labels[row, : len(sequence) - start] = sequence.labels[start:]
    padded, mask = pad_features(features)
    return Batch(
        prefix=prefix,
        shared_prefix=shared,
        suffix=suffix,
        labels=labels,
        supervised=_places(labels != IGNORED),
        weights=torch.ones(count) if weights is None else torch.tensor(weights, dtype=torch.float32),
        features=padded,
        feature_mask=mask,
        row_image=torch.tensor(row_image),
        row_aspect=None if row_aspect is None else torch.tensor(row_aspect),
        aspect_tokens=None if aspect_tokens is None else torch.stack(list(aspect_tokens)),
    )
