"""The fixed geometry of the tiny VLM's hidden space: its word embeddings, and a first layer that reads them.

Every axis has one use. Each label has an axis: the word for the label points along it, and so does a vision token that
shows it. Another axis marks vision tokens. The first layer acts on each position separately. It converts components on
the label axes into codes in the remaining dimensions, where the language model computes. If the mark is present, it
instead converts them into codes for seen labels, which only the last layer can read. The model can therefore name what
an image shows, but has little from which it could infer an emotion. A vector acts as a word if and only if much of it
points along the axis of the word and it is not marked, so tokens that answer the question about an aspect also
determine the emotion. Without this geometry, gradient descent finds aspect tokens that give the right answers but do
not resemble any word, and no emotion follows from those.

The weather is the exception: vision tokens convey it in the same way as words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from masp.demo.world.factors import ASPECTS, FACTORS, LABELS, SENSES, caption_words

SCALE = 0.1
"""Root mean square of the embedding of a label word, and of vision tokens without their mark. It is small compared with
the codes and the ground of the first layer, so the second layer receives the codes and hardly the vectors
themselves."""
CODE_SCALE = 1.4
"""Root mean square of a code, and of the embeddings of all other words."""
GROUND_SCALE = 0.7
"""Root mean square of the ground, a constant that the first layer adds to every vector. Without it, the norms would
amplify whatever a vector without a code contains."""
CONSTANT = 0.5
"""Constant that the attention of the first layer adds to every vector along the axis of the ground, in units of the
norm of a label word. The mark is measured relative to it."""
MARK_FROM = 0.85
"""Threshold of the mark above which a label counts as seen, in units of the norm of a label word."""
HUSH = 1.5
"""How strongly the mark suppresses words, in units of a label. Vision tokens contain labels of about half the length of
the mark. A negative mark amplifies all words equally."""
LOUDER = 20.0
"""Factor by which `make_louder` scales codes relative to the vectors that they are computed from."""
TEXT_DIMENSIONS = 48
"""Number of dimensions for words that do not occur in any label."""
FAINT = 0.15
"""Share of the energy of those words on the axes of label words. A soft prompt that starts from such words must be able
to become any label word, and exactly at zero the first layer has no gradient."""

WORDS = [*((f, label) for f in FACTORS for label in LABELS[f]), *(("sense", sense) for sense in SENSES)]
"""The label words and senses that have an axis, in order."""
SEEN = [(aspect, label) for aspect in ASPECTS for label in LABELS[aspect]]
"""The labels for which the first layer computes codes of seen labels, in order."""


@dataclass(frozen=True)
class Geometry:
    """The use of each axis, and the vectors along them."""

    table: Tensor
    """`[V + 1, D]`: the word embeddings, then the mark."""
    codes: Tensor
    """`[len(WORDS), D]`: the code that the first layer computes for each word."""
    directions: Tensor
    """`[D, D]` orthonormal: directions in which the first layer measures the energy of a vector, for the ground."""
    words: slice
    seen: slice
    mark: int
    ground: int
    rest: slice
    """Dimensions in which the language model computes."""


def token_ids(tokenizer, factor: str, label: str) -> list[int]:
    """Token ids of a label, or of a sense, in a caption."""
    text = label if factor == "sense" else caption_words(factor, label)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def draw_geometry(tokenizer, vocab_size: int, hidden: int, generator: torch.Generator) -> Geometry:
    """Draw word embeddings and codes.

    Args:
        tokenizer: Tokenizer of the VLM.
        vocab_size: Number of rows of the word embeddings.
        hidden: D.
        generator: Random generator.
    """
    mark = len(WORDS) + len(SEEN)
    ground = mark + 1
    rest = slice(ground + 1, hidden)
    text = slice(rest.start, rest.start + TEXT_DIMENSIONS)
    table = torch.zeros(vocab_size, hidden)
    table[:, text] = _scaled(torch.randn(vocab_size, TEXT_DIMENSIONS, generator=generator)) * (1 - FAINT) ** 0.5
    vocabulary = tokenizer.get_vocab()
    for token, index in vocabulary.items():  # ` word` is close to `word`, as in language models trained on much text
        twin = vocabulary.get(token.removeprefix("Ġ"))
        if token.startswith("Ġ") and twin is not None:
            table[index] = 0.95 * table[twin] + 0.3 * table[index]
    faint = _scaled(torch.randn(vocab_size, len(WORDS), generator=generator)) * FAINT**0.5
    table[:, : len(WORDS)] += faint
    table = _scaled(table) * CODE_SCALE
    axes = torch.eye(hidden) * SCALE
    for k, pair in enumerate(WORDS):
        first, *others = token_ids(tokenizer, *pair)
        table[first] = axes[k]
        for index in others:  # `ladder` differs from `climbing`, so that it is clear which came last
            table[index] = 0.9 * axes[k] + 0.4 * table[index] * SCALE / CODE_SCALE
    basis = torch.linalg.qr(torch.randn(hidden - rest.start, hidden - rest.start, generator=generator)).Q
    codes = torch.zeros(len(WORDS), hidden)
    codes[:, rest] = basis[: len(WORDS)]
    loud = hidden**0.5
    return Geometry(
        table=torch.cat([table, axes[mark : mark + 1]]) * loud,
        codes=codes * CODE_SCALE * loud,
        directions=torch.linalg.qr(torch.randn(hidden, hidden, generator=generator)).Q,
        words=slice(0, len(WORDS)),
        seen=slice(len(WORDS), mark),
        mark=mark,
        ground=ground,
        rest=rest,
    )


@torch.no_grad()
def set_first_layer(layer, geometry: Geometry) -> None:
    """Set a decoder layer so that it computes codes, for each position separately.

    The code of a word is scaled by the share of the energy of an unmarked vector (plus a constant) along the word's
    axis.
    """
    hidden = geometry.codes.shape[1]
    attention, mlp = layer.self_attn, layer.mlp
    for weight in (attention.o_proj.weight, attention.v_proj.weight, attention.v_proj.bias):
        weight.zero_()
    for projection in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
        projection.weight.zero_()
    attention.v_proj.bias[0] = 1.0  # attention weights sum to one, so this is passed on unchanged
    attention.o_proj.weight[geometry.ground, 0] = CONSTANT * SCALE * hidden**0.5
    layer.post_attention_layernorm.weight.fill_(1.0)
    for k, code in enumerate(geometry.codes):  # silu(x) * x is about x^2, which is `hidden` if x is the only component
        mlp.gate_proj.weight[k, k] = mlp.up_proj.weight[k, k] = 1.0
        mlp.down_proj.weight[:, k] = code / hidden
    # A marked label gets the scale of codes; below the threshold the gradient is zero as well.
    part = (hidden / (2 + CONSTANT**2)) ** 0.5  # one unit, next to the mark, a label and the constant
    steepness = 30.0
    gate = steepness * (1 - MARK_FROM) * part
    for number, pair in enumerate(SEEN):
        word, unit, axis = WORDS.index(pair), len(WORDS) + number, geometry.seen.start + number
        mlp.gate_proj.weight[word, geometry.mark] = -HUSH
        mlp.gate_proj.weight[unit, geometry.mark] = steepness
        mlp.gate_proj.weight[unit, geometry.ground] = -steepness * MARK_FROM / CONSTANT
        mlp.up_proj.weight[unit, word] = 1.0
        mlp.down_proj.weight[axis, unit] = CODE_SCALE * hidden**0.5 / (gate * part)
    # After the norm, the energy of any vector is `hidden`; about half of it is in the positive halves of the
    # directions.
    units = slice(len(WORDS) + len(SEEN), len(WORDS) + len(SEEN) + hidden)
    mlp.gate_proj.weight[units] = mlp.up_proj.weight[units] = geometry.directions
    mlp.down_proj.weight[geometry.ground, units] = GROUND_SCALE * 2 * hidden**-0.5


@torch.no_grad()
def hold(model, geometry: Geometry) -> None:
    """Restrict every axis to its use; called after each training step."""
    language, merger = model.model.language_model, model.model.visual.merger.mlp[-1]
    norms = [n for layer in language.layers[1:] for n in (layer.input_layernorm, layer.post_attention_layernorm)]
    for layer in language.layers[1:]:
        for writes in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            writes[: geometry.rest.start] = 0.0
    last = language.layers[-1].input_layernorm
    for norm in (*norms, language.norm):
        norm.weight[geometry.words] = norm.weight[geometry.ground] = 0.0
        if norm is not last:
            norm.weight[geometry.seen] = 0.0
    # Vision tokens represent labels and carry the same mark.
    merger.weight[~_of_vision(geometry)] = 0.0
    merger.bias[~_of_vision(geometry)] = 0.0
    merger.bias[geometry.mark] = SCALE * merger.out_features**0.5


@torch.no_grad()
def make_louder(model, geometry: Geometry, tokenizer) -> None:
    """Scale the output of all layers (except the constant of the first) and all non-label words by `LOUDER`.

    The norms undo this scale, except for what label words and vision tokens contain besides their codes: that becomes
    `LOUDER` times smaller relative to the rest, so the model can answer only from codes. Called once, after
    pretraining.
    """
    language = model.model.language_model
    others = torch.ones(len(language.embed_tokens.weight), dtype=torch.bool)
    for pair in WORDS:
        others[token_ids(tokenizer, *pair)] = False
    language.embed_tokens.weight[others] *= LOUDER
    language.layers[0].mlp.down_proj.weight *= LOUDER
    for layer in language.layers[1:]:
        layer.self_attn.o_proj.weight *= LOUDER
        layer.mlp.down_proj.weight *= LOUDER
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight[geometry.mark] *= LOUDER
    language.norm.weight[geometry.mark] *= LOUDER


def _of_vision(geometry: Geometry) -> Tensor:
    """Mask `[D]`, true on the axes that the vision encoder may use."""
    allowed = torch.zeros(geometry.codes.shape[1], dtype=torch.bool)
    for k, (factor, _) in enumerate(WORDS):
        allowed[k] = factor in FACTORS
    return allowed


def _scaled(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)
