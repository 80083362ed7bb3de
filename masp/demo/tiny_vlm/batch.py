"""Packs pretraining examples into tensors: one row holds the visual block of an example and all its questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from masp.demo.tiny_vlm.examples import Example, Slot
from masp.demo.tiny_vlm.geometry import SCALE
from masp.demo.tiny_vlm.tokenizer import SYSTEM
from masp.demo.world.factors import EMOTIONS

MIX = 20
"""Maximum number of words that one slot mixes."""
GROUPS = 6
"""Maximum number of groups of slots that share noise."""


@dataclass
class Packed:
    """A batch of rows with `L` positions each, after the opening that all of them share."""

    words: Tensor
    """`[B, L, MIX]` rows of the table to mix."""
    shares: Tensor
    """`[B, L, MIX]` weights of these rows; all zero for vision tokens."""
    noise: Tensor
    """`[B, L]` standard deviation of the noise."""
    shared: Tensor
    """`[B, L, GROUPS]` standard deviation of each group's noise."""
    vision: Tensor
    """`[B, L]` true for vision tokens, which are in order."""
    positions: Tensor
    """`[3, B, L]`."""
    mask: Tensor
    """`[B, 1, L, opening + L]` true where a position may attend."""
    supervised: Tensor
    """`[N]` flat indices of the positions that predict."""
    targets: Tensor
    """`[N]` token ids to predict."""
    soft: Tensor
    """`[N, 8]` target distributions of emotions, zero rows elsewhere."""
    weights: Tensor
    """`[N]`, summing to one per question."""
    running: Tensor
    """`[N]` true where the emotion is predicted without a question."""


class Packer:
    """Builds rows from the token ids of the turn format."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.cache: dict[str, list[int]] = {}
        self.opening = self.ids(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<|vision_start|>")
        self.image_end = self.ids("<|vision_end|>")
        self.closing = self.ids("<|im_end|>\n<|im_start|>assistant\n")
        self.end = self.ids("<|im_end|>")
        self.emotions = [self.ids(emotion)[0] for emotion in EMOTIONS]

    def ids(self, text: str) -> list[int]:
        if text not in self.cache:
            self.cache[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.cache[text]

    def length(self, example: Example) -> int:
        """Approximate number of positions of an example, without the opening."""
        asked = sum(len(turn.before) + len(self.ids(turn.question)) + 8 for turn in example.turns)
        return len(example.slots) + len(example.grid_slots) + asked

    def pack(self, examples: Sequence[Example]) -> Packed:
        rows = [self._row(example.check()) for example in examples]
        length = max(len(row["slots"]) for row in rows)
        count = len(rows)
        words = np.zeros((count, length, MIX), dtype=np.int64)
        shares = np.zeros((count, length, MIX), dtype=np.float32)
        noise = np.zeros((count, length), dtype=np.float32)
        shared = np.zeros((count, length, GROUPS), dtype=np.float32)
        vision = np.zeros((count, length), dtype=bool)
        positions = np.zeros((3, count, length), dtype=np.int64)
        segment = np.full((count, length), -1)
        supervised, targets, soft, weights, running = [], [], [], [], []
        for b, row in enumerate(rows):
            for k, slot in enumerate(row["slots"]):
                if slot is None:
                    vision[b, k] = True
                elif isinstance(slot, int):
                    words[b, k, 0], shares[b, k, 0] = slot, 1.0
                else:
                    words[b, k, : len(slot.words)] = slot.words
                    shares[b, k, : len(slot.words)] = slot.shares
                    noise[b, k] = slot.noise
                    shared[b, k, slot.shared[0]] = slot.shared[1]
            n = len(row["slots"])
            positions[:, b, :n] = np.array(row["positions"]).T
            segment[b, :n] = row["segment"]
            for k, target, chances, weight in row["supervised"]:
                supervised.append(b * length + k)
                targets.append(target)
                soft.append(chances)
                weights.append(weight)
                running.append(k < row["block"])
        turns = torch.from_numpy(segment)
        seen = (turns[:, None, :] == 0) | (turns[:, None, :] == turns[:, :, None])
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        opening = torch.ones(count, length, len(self.opening), dtype=torch.bool)
        mask = torch.cat([opening, seen & causal], 2)
        return Packed(
            torch.from_numpy(words),
            torch.from_numpy(shares),
            torch.from_numpy(noise),
            torch.from_numpy(shared),
            torch.from_numpy(vision),
            torch.from_numpy(positions),
            mask[:, None],
            torch.tensor(supervised),
            torch.tensor(targets),
            torch.from_numpy(np.array(soft, dtype=np.float32)),
            torch.tensor(weights, dtype=torch.float32),
            torch.tensor(running),
        )

    def _row(self, example: Example) -> dict:
        slots: list[int | Slot | None] = list(example.slots)
        start = len(self.opening) + len(slots)
        positions = [(p, p, p) for p in range(len(self.opening), start)]
        rows, columns = example.grid
        if rows:
            slots += [None] * (rows * columns) if example.image is not None else example.grid_slots
            positions += [(start, start + i, start + j) for i in range(rows) for j in range(columns)]
        start += max(rows, columns)
        for slot in self.image_end:
            slots.append(slot)
            positions.append((start,) * 3)
            start += 1
        start += example.gap
        block = len(slots)
        segment, supervised = [0] * block, []
        for index, chances in example.marks:
            supervised.append((index - 1, self.emotions[0], chances, 1 / len(example.marks)))
        for number, turn in enumerate(example.turns, 1):
            answer = self.ids(turn.answer) + self.end
            asked: list[int | Slot] = [*turn.before, *self.ids(turn.question), *self.closing]
            first = len(slots) + len(asked) - 1
            tokens = [*asked, *answer[:-1]]
            slots += tokens
            positions += [(p, p, p) for p in range(start, start + len(tokens))]
            segment += [number] * len(tokens)
            for k, target in enumerate(answer):
                chances = turn.emotions if k == 0 and turn.emotions is not None else np.zeros(len(EMOTIONS))
                supervised.append((first + k, target, chances, 1 / len(answer)))
        row = {"slots": slots, "positions": positions, "segment": segment, "supervised": supervised}
        return row | {"block": block}


def embed(
    model,
    packed: Packed,
    features: Tensor | None = None,
    table: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Input embeddings `[B, L, D]`.

    Args:
        model: The tiny VLM.
        packed: The batch.
        features: `[B, T, D]`, fill the vision tokens of each row in order.
        table: Rows that slots mix; None for the word embeddings.
        generator: Random generator of the noise.
    """
    table = model.model.language_model.embed_tokens.weight if table is None else table
    mixture = packed.shares.new_zeros(*packed.shares.shape[:2], len(table))
    # The backward pass of a matrix product is far cheaper than that of indexing.
    x = mixture.scatter_add_(2, packed.words, packed.shares) @ table
    if packed.noise.any() or packed.shared.any():
        noise = packed.noise[..., None] * torch.randn(x.shape, generator=generator)
        noise = noise + packed.shared @ torch.randn(len(x), GROUPS, x.shape[-1], generator=generator)
        x = x + SCALE * noise
    if features is not None:
        x = x.masked_scatter(packed.vision[..., None], features)
    return x


def hidden_states(model, packed: Packed, embeddings: Tensor, opening: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Final hidden states of the supervised positions, `[N, D]`, and the same without the last layer.

    The opening is run once for all rows.
    """
    language = model.model.language_model
    first = language(input_ids=torch.tensor([list(opening)]), use_cache=True).past_key_values
    cache = DynamicCache(config=model.config.text_config)
    for number, layer in enumerate(first.layers):
        rows = (embeddings.shape[0], -1, -1, -1)
        cache.update(layer.keys.expand(rows), layer.values.expand(rows), number)
    out = language(
        inputs_embeds=embeddings,
        position_ids=packed.positions,
        attention_mask={"full_attention": packed.mask},
        past_key_values=cache,
        use_cache=True,
        output_hidden_states=True,
    )
    early = out.hidden_states[-2].flatten(0, 1)[packed.supervised]
    return out.last_hidden_state.flatten(0, 1)[packed.supervised], language.norm(early)


def losses(model, packed: Packed, hidden: Tensor, emotion_ids: Sequence[int]) -> Tensor:
    """Loss of every supervised position, `[N]`: cross-entropy with the token or with the distribution of emotions."""
    scores = model.lm_head(hidden).float().log_softmax(-1)
    hard = -scores.gather(1, packed.targets[:, None])[:, 0]
    soft = -(scores[:, list(emotion_ids)] * packed.soft).sum(-1)
    return torch.where(packed.soft.sum(-1) > 0, soft, hard)
