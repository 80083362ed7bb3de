"""The language model's input, position by position: one sample's sequence, and batches of mixed lengths."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from masp.models.candidates import AnswerBlock, WeightedAnswers, answer_block
from masp.vlm.features import Features, Grid, ImageLayout
from masp.vlm.prompt import Prompt

LOG = logging.getLogger(__name__)

TEXT, ASPECT, FEATURE, SOFT = range(4)
"""What fills a position: a word embedding, an aspect token, a feature, a vector of the soft prompt."""
IGNORED = -100
"""Label of a position whose next token is not supervised."""
LAYOUTS = ("after_image", "released")


@dataclass(frozen=True)
class Sequence:
    """One sample's input to the language model. `L` positions."""

    ids: Tensor
    """`[L]` token ids; the placeholder's at positions that are not text."""
    kind: Tensor
    """`[L]` TEXT, ASPECT, FEATURE or SOFT."""
    positions: Tensor
    """`[3, L]` rotary positions (time, height, width)."""
    labels: Tensor
    """`[L]` the token to be predicted *at* this position (already shifted), or IGNORED."""
    split: int
    """Everything before this position depends on nothing trained in its stage."""
    types: Mapping[str, Tensor] = field(default_factory=dict)
    """Types of tokens, `[L]` each, that the VLM's language half takes; mostly none."""

    def __len__(self) -> int:
        return len(self.ids)


class _Builder:
    """Grows a sequence piece by piece, in numpy: a step of small images builds hundreds."""

    def __init__(self, prompt: Prompt):
        self.prompt, self.placeholder = prompt, prompt.family.image_token_id
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
        self._run(kind, np.full(count, self.placeholder, dtype=np.int64))

    def _run(self, kind: int, ids: np.ndarray) -> None:
        """Positions that count on, the same in time, height and width."""
        count = np.arange(self.next, self.next + len(ids))
        self._add(kind, ids, np.broadcast_to(count, (3, len(ids))))
        self.next += len(ids)

    def features(self, count: int, grid: Grid | None, flat: bool) -> None:
        """Vision tokens: positions by the VLM's own rule, or plainly one after another."""
        if flat or grid is None:
            self.slots(FEATURE, count)
            return
        positions, following = self.prompt.positions(count, grid)
        self._add(FEATURE, np.full(count, self.placeholder, dtype=np.int64), positions + self.next)
        self.next += following

    def image(self, layout: ImageLayout | None, num_aspect_tokens: int, flat: bool) -> None:
        """What stands for the image: aspect tokens before its first placeholder; without a layout, no features."""
        if layout is None or layout.block is None:
            self.slots(ASPECT, num_aspect_tokens)
            if layout is None:
                self.text(self.prompt.trail)
            else:
                self.features(layout.num_tokens, layout.grid, flat)
            return
        first = next(place for place, (token, _) in enumerate(layout.block) if token == self.placeholder)
        for place, (token, count) in enumerate(layout.block):
            if place == first:
                self.slots(ASPECT, num_aspect_tokens)
            if token == self.placeholder:
                self.features(count, layout.grid if count == layout.num_tokens else None, flat)
            else:
                self.text((token,) * count)


def build_sequence(
    prompt: Prompt,
    question: str,
    answer: str | None,
    *,
    num_aspect_tokens: int,
    image: ImageLayout | None,
    num_soft_tokens: int,
    layout: str,
) -> Sequence:
    """Lay out one sample.

    Stage 1 has the asked aspect's tokens alone (`image` None); stage 2 has all aspects' tokens, then the features.

    Args:
        prompt: Chat template of the VLM.
        question: Text of the question.
        answer: Text of the answer, supervised; None to stop before the answer.
        num_aspect_tokens: Number of aspect tokens in the visual block.
        image: How the image lies in a prompt; None leaves the features out.
        num_soft_tokens: Length of the soft prompt; 0 leaves it out.
        layout: `after_image` (soft prompt after the image; positions by the VLM's own rule; the end token is
            supervised) or `released` (before the image and again before the question; positions count 0, 1, 2 …;
            supervised are the newline after `assistant` and the answer).
    """
    build = _short_sequence if image is None else _lay_out
    return build(prompt, question, answer, num_aspect_tokens, image, num_soft_tokens, layout)


def _lay_out(
    prompt: Prompt,
    question: str,
    answer: str | None,
    num_aspect_tokens: int,
    image: ImageLayout | None,
    num_soft_tokens: int,
    layout: str,
) -> Sequence:
    released = layout == "released"
    build = _Builder(prompt)
    build.text(prompt.opening)
    if released:
        build.slots(SOFT, num_soft_tokens)
    build.text(prompt.image_start)
    if image is None:
        build.text(prompt.lead)
    split = build.length  # stage 1 trains the visual block, stage 2 the soft prompt
    build.image(image, num_aspect_tokens, flat=released)
    build.text(prompt.image_end)
    if num_soft_tokens or image is not None:
        split = len(prompt.opening) if released else build.length
    build.slots(SOFT, num_soft_tokens)
    build.text(prompt.question(question))
    start = build.length - 1  # the position that predicts the first answer token
    if answer is not None:
        build.text(prompt.answer(answer))
        if not released:
            build.text((prompt.end,))
    limit = prompt.family.max_positions
    if limit is not None and build.next > limit:
        _warn_of_long_prompts(limit)
    ids = torch.from_numpy(np.concatenate(build.ids))
    labels = torch.full_like(ids, IGNORED)
    if answer is not None:
        first = start - 1 if released else start
        labels[first:-1] = ids[first + 1 :]
    kind, positions = (torch.from_numpy(np.concatenate(x, axis=-1)) for x in (build.kind, build.positions))
    return Sequence(ids, kind, positions, labels, split, _types(prompt, ids, kind, start + 1))


@functools.cache
def _warn_of_long_prompts(limit: int) -> None:
    """Once per process: one image of a dataset is enough."""
    LOG.warning(
        "a prompt has more positions than the %d that the VLM was made for (max_position_embeddings in its "
        "config.json); what it answers to such prompts means little; lower vlm.max_pixels or vlm.max_side",
        limit,
    )


def _types(prompt: Prompt, ids: Tensor, kind: Tensor, answer: int) -> dict[str, Tensor]:
    """Types of a sequence's tokens; aspect tokens and soft prompt count as text.

    Args:
        prompt: Chat template of the VLM.
        ids: `[L]`.
        kind: `[L]`.
        answer: Where the answer begins.
    """
    found = {}
    for name, typed in prompt.types.items():
        own = torch.isin(ids, torch.tensor(sorted(typed), dtype=torch.long))
        types = (own & ((kind == TEXT) | (kind == FEATURE))).long()
        if prompt.family.runs_whole:
            types[answer:] = 1
        found[name] = types
    return found


# in stage 1 the same few questions and answers come again and again, and are short
_short_sequence = functools.lru_cache(maxsize=8192)(_lay_out)


@dataclass(frozen=True)
class Block:
    """Padded columns of a batch."""

    ids: Tensor
    """`[B, L]`."""
    positions: Tensor
    """`[3, B, L]`."""
    mask: Tensor
    """`[B, L]`, true at real tokens."""
    places: dict[int, tuple[Tensor, Tensor]]
    """For ASPECT, FEATURE and SOFT, rows and columns of their positions, row by row; found here, on the CPU, so that a
    GPU need not be waited for."""
    kind: Tensor
    """`[B, L]` TEXT, ASPECT, FEATURE or SOFT."""
    types: Mapping[str, Tensor]
    """Types of tokens, `[B, L]` each."""

    def moved(self, move: Callable[[Tensor], Tensor]) -> Block:
        """The block with each tensor put through `move`."""
        places = {kind: (move(rows), move(columns)) for kind, (rows, columns) in self.places.items()}
        types = {name: move(types) for name, types in self.types.items()}
        return Block(move(self.ids), move(self.positions), move(self.mask), places, move(self.kind), types)


@dataclass(frozen=True)
class Batch:
    """Samples for one pass of the language model. `B` rows over `I` images."""

    prefix: Block | None
    """What nothing trained can reach, run without gradient."""
    prefix_row: Tensor | None
    """`[B]` row of the prefix that each row goes on from, where several rows have one in common: all, if it is plain
    text and the same for all of them, or those of an image. None: each row has its own."""
    suffix: Block
    labels: Tensor
    """`[B, Ls]`, for the suffix."""
    supervised: tuple[Tensor, Tensor]
    """Rows and columns of the labels that are not IGNORED, row by row; found on the CPU like `Block.places`."""
    weights: Tensor
    """`[B]` fp32; 0 marks padding."""
    features: Tensor
    """`[I, T, D]`, padded."""
    deep: Tensor | None
    """`[I, K, T, D]` DeepStack maps, padded; None for VLMs without them, and where no features are in the sequences."""
    feature_mask: Tensor
    """`[I, T]`, true at real features."""
    row_image: Tensor
    """`[B]` image of each row."""
    row_aspect: Tensor | None
    """`[B]` asked aspect of each row (stage 1); None: all aspects (stage 2)."""
    row_kept: Tensor | None = None
    """`[B, A]` the aspects whose tokens are in each row (stage 2); None: all of them are in every row."""
    aspect_tokens: Tensor | None = None
    """`[I, A, N, D]` computed before; None: the aspect modules run."""
    answers: AnswerBlock | None = None
    """Several answers to each row, weighted; the rows end before the answer then, and have no labels."""

    def known(self) -> Tensor:
        """Which tokens of prefix and suffix are real, `[B, Lp + Ls]`."""
        if self.prefix is None:
            return self.suffix.mask
        return torch.cat([self._of_row(self.prefix.mask), self.suffix.mask], dim=1)

    def known_types(self) -> dict[str, Tensor]:
        """Types of the tokens of prefix and suffix, `[B, Lp + Ls]` each."""
        prefix = self.prefix
        if prefix is None:
            return dict(self.suffix.types)
        return {n: torch.cat([self._of_row(prefix.types[n]), own], dim=1) for n, own in self.suffix.types.items()}

    def _of_row(self, prefixes: Tensor) -> Tensor:
        """Of what the prefixes have, `[P, Lp]`, each row's."""
        return prefixes if self.prefix_row is None else prefixes[self.prefix_row]

    @property
    def num_tokens(self) -> int:
        """Tokens that run through the language model, padding left out."""
        blocks = (self.prefix, self.suffix, self.answers)
        return sum(int(block.mask.sum()) for block in blocks if block is not None)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Batch:
        """Move to a device; features take the language model's dtype."""
        batch = self.moved(lambda tensor: tensor.to(device, non_blocking=True))
        deep = None if batch.deep is None else batch.deep.to(dtype)
        return replace(batch, features=batch.features.to(dtype), deep=deep)

    def pin_memory(self) -> Batch:
        """Page-locked copies, from which transfers to a GPU run beside its work. A DataLoader calls this."""
        return self.moved(lambda tensor: tensor if tensor.is_meta else tensor.pin_memory())

    def with_features(self, features: Items[Features]) -> Batch:
        """The batch with other features in the place of its own, which may be on the meta device until they are known.

        Args:
            features: Features of each image, of the shapes that the batch was made with.
        """
        padded, _ = pad_features([each.tokens for each in features])
        if padded.shape != self.features.shape:
            raise ValueError(f"the batch has features {list(self.features.shape)}, but these are {list(padded.shape)}")
        return replace(self, features=padded, deep=None if self.deep is None else _pad_deep(features))

    def moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with each tensor put through `move`."""
        rows, columns = self.supervised
        return replace(
            self,
            prefix=None if self.prefix is None else self.prefix.moved(move),
            prefix_row=None if self.prefix_row is None else move(self.prefix_row),
            suffix=self.suffix.moved(move),
            labels=move(self.labels),
            supervised=(move(rows), move(columns)),
            weights=move(self.weights),
            features=move(self.features),
            deep=None if self.deep is None else move(self.deep),
            feature_mask=move(self.feature_mask),
            row_image=move(self.row_image),
            row_aspect=None if self.row_aspect is None else move(self.row_aspect),
            row_kept=None if self.row_kept is None else move(self.row_kept),
            aspect_tokens=None if self.aspect_tokens is None else move(self.aspect_tokens),
            answers=None if self.answers is None else self.answers.moved(move),
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


def _block(sequences: Items[Sequence], bounds: Items[tuple[int, int]], padding: int, left: bool) -> Block:
    length = max(1, max(stop - start for start, stop in bounds))
    ids = torch.full((len(sequences), length), padding, dtype=torch.long)
    kind = torch.full_like(ids, TEXT)
    positions = torch.zeros(3, len(sequences), length, dtype=torch.long)
    mask = torch.zeros(len(sequences), length, dtype=torch.bool)
    types = {name: torch.zeros_like(ids) for name in sequences[0].types}
    for row, (sequence, (start, stop)) in enumerate(zip(sequences, bounds, strict=True)):
        count = stop - start
        columns = slice(length - count, length) if left else slice(0, count)
        ids[row, columns] = sequence.ids[start:stop]
        kind[row, columns] = sequence.kind[start:stop]
        positions[:, row, columns] = sequence.positions[:, start:stop]
        mask[row, columns] = True
        for name, own in types.items():
            own[row, columns] = sequence.types[name][start:stop]
    places = {slot: _places(kind == slot) for slot in (ASPECT, FEATURE, SOFT)}
    return Block(ids, positions, mask, places, kind, types)


def make_batch(
    prompt: Prompt,
    sequences: Items[Sequence],
    features: Items[Features],
    *,
    row_image: Items[int],
    row_aspect: Items[int] | None = None,
    row_kept: Items[Items[bool]] | None = None,
    weights: Items[float] | None = None,
    frozen_prefix: bool = True,
    aspect_tokens: Items[Tensor] | None = None,
    goes_on: bool = False,
    answers: Items[WeightedAnswers] | None = None,
) -> Batch:
    """Collate sequences into a batch.

    Padding may not be between a row's tokens where windows and states would count it (`Family.pads_left`): there a
    prefix is padded on its left, and what tokens will follow is one block padded on its left.

    Args:
        prompt: Chat template of the VLM, by which the sequences were built.
        sequences: Sequences, one per row.
        features: Features of each image.
        row_image: Index into `features` of each row.
        row_aspect: Asked aspect of each row (stage 1).
        row_kept: Of each row, which aspects' tokens are in its sequence, where some lack any (stage 2, and only
            without `frozen_prefix`).
        weights: Weight of each row; ones if None.
        frozen_prefix: Whether what comes before each sequence's `split` runs apart, without gradient.
        aspect_tokens: Aspect tokens, one `[A, N, D]` per image, where they were computed before (stage 2).
        goes_on: Whether tokens will follow the rows' last ones (scoring).
        answers: Answers of each row, whose sequence ends before the answer (stage 2).
    """
    count, family = len(sequences), prompt.family
    # then padding may be neither before nor behind what a row has
    in_one = goes_on and family.pads_left
    starts = [s.split if frozen_prefix and not in_one and not family.runs_whole else 0 for s in sequences]
    prefix = prefix_row = None
    if any(starts):
        heads, prefix_row = _heads(sequences, starts, row_image)
        bounds = [(0, starts[row]) for row in heads]
        prefix = _block([sequences[row] for row in heads], bounds, family.pad_token_id, family.pads_left)
    bounds = [(start, len(s)) for start, s in zip(starts, sequences, strict=True)]
    suffix = _block(sequences, bounds, family.pad_token_id, in_one)
    labels = torch.full_like(suffix.ids, IGNORED)
    if not in_one:  # where tokens follow, nothing is supervised
        for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
            labels[row, : len(sequence) - start] = sequence.labels[start:]
    padded, mask = pad_features([each.tokens for each in features])
    return Batch(
        prefix=prefix,
        prefix_row=prefix_row,
        suffix=suffix,
        labels=labels,
        supervised=_places(labels != IGNORED),
        weights=torch.ones(count) if weights is None else torch.tensor(weights, dtype=torch.float32),
        features=padded,
        deep=_pad_deep(features) if any(bool((s.kind == FEATURE).any()) for s in sequences) else None,
        feature_mask=mask,
        row_image=torch.tensor(row_image),
        row_aspect=None if row_aspect is None else torch.tensor(row_aspect),
        row_kept=None if row_kept is None else torch.tensor(row_kept),
        aspect_tokens=None if aspect_tokens is None else torch.stack(list(aspect_tokens)),
        answers=None if answers is None else answer_block(answers, [stop - start for start, stop in bounds]),
    )


def _heads(sequences: Items[Sequence], starts: Items[int], row_image: Items[int]) -> tuple[Items[int], Tensor | None]:
    """Rows whose prefix runs, and which of these prefixes each row goes on from; None: each from its own.

    In stage 1 the same system turn opens every row; in stage 2 the rows of an image have all before the soft prompt in
    common.
    """
    kind = sequences[0].kind[: starts[0]]

    def equal(row: int, other: int) -> bool:
        start, mine, its = starts[row], sequences[row], sequences[other]
        same = start == starts[other] and torch.equal(mine.ids[:start], its.ids[:start])
        return same and torch.equal(mine.kind[:start], its.kind[:start])

    rows = range(len(sequences))
    if (kind == TEXT).all() and all(equal(row, 0) for row in rows):
        return [0], torch.zeros(len(sequences), dtype=torch.long)
    first: dict[int, int] = {}
    for row, image in enumerate(row_image):
        first.setdefault(image, row)
    if len(first) == len(sequences) or list(first) != list(range(len(first))):
        return rows, None
    if not all(equal(row, first[image]) for row, image in enumerate(row_image)):
        return rows, None  # in stage 1, where what is asked is part of it
    return list(first.values()), torch.tensor(row_image)


def _pad_deep(features: Items[Features]) -> Tensor | None:
    """Stack DeepStack maps `[K, T_i, D]` to `[I, K, T, D]`; None where there are none."""
    maps = [each.deep for each in features if each.deep is not None]
    if not maps:
        return None
    return torch.nn.utils.rnn.pad_sequence([each.transpose(0, 1) for each in maps], batch_first=True).transpose(1, 2)
