"""The tiny VLM's word embeddings: fixed from the start, with a geometry that says where meaning lies.

The words that labels are made of are orthogonal to each other and to everything else; the other words share a space
of their own; one direction marks vision tokens; and nothing lives in the rest. In pretraining, noise in the visual
block is the louder the less a direction means, so the language model learns to read meaning there and nothing else. A
model without that answers about an aspect from vectors that resemble no word at all (they are what gradient descent
finds first), and then cannot tell what follows from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TEXT_DIMENSIONS = 48
"""What all words that are in no label share."""
LABEL_NOISE, TEXT_NOISE, SILENT_NOISE = 1.0, 1.5, 2.5
"""How loud noise of standard deviation one is in each space."""


@dataclass(frozen=True)
class Geometry:
    """Word embeddings and what their directions mean."""

    table: Tensor
    """`[V, D]`, every row at scale one."""
    noise: Tensor
    """`[D, D]`: times a unit normal vector gives noise as loud as each direction takes."""


def draw_geometry(
    tokenizer, label_ids: list[int], vocab_size: int, hidden: int, generator: torch.Generator
) -> Geometry:
    """Draw word embeddings.

    Args:
        tokenizer: of the VLM.
        label_ids: tokens that labels are made of.
        vocab_size: rows of the table.
        hidden: D.
        generator: of the draw.
    """
    num_labels = len(label_ids)
    basis = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator)).Q
    labels, mark, rest = basis[:, :num_labels], basis[:, num_labels], basis[:, num_labels + 1 :]
    text = rest[:, :TEXT_DIMENSIONS]
    table = _scaled(torch.randn(vocab_size, TEXT_DIMENSIONS, generator=generator)) @ text.T
    table[label_ids] = labels.T * hidden**0.5
    table[tokenizer.convert_tokens_to_ids("<|image_pad|>")] = mark * hidden**0.5
    vocabulary = tokenizer.get_vocab()
    for token, index in vocabulary.items():  # ` word` is near `word`, as in language models that have read much
        twin = vocabulary.get(token.removeprefix("Ġ"))
        if token.startswith("Ġ") and twin is not None and index not in label_ids:
            table[index] = 0.95 * table[twin] + 0.3 * table[index]
    table = table * hidden**0.5 / table.norm(dim=-1, keepdim=True)
    loudness = torch.full((hidden,), SILENT_NOISE)
    loudness[:num_labels], loudness[num_labels] = LABEL_NOISE, 0.0
    loudness[num_labels + 1 : num_labels + 1 + TEXT_DIMENSIONS] = TEXT_NOISE
    return Geometry(table, basis * loudness @ basis.T)


def _scaled(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)
