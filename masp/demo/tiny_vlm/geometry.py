"""Where meaning lies in the tiny VLM's hidden space: its word embeddings, and a first layer that reads them. Fixed.

Every axis has one use. Each label has an axis: its word points along it, and so does a vision token that shows it;
another axis marks vision tokens. The first layer, each position by itself, turns what is on labels' axes into codes in
the rest, where the language model computes, unless the mark is there too: then into codes of what is seen, which the
last layer alone hears. So what a picture shows can be named, but little is left that could conclude an emotion from
it; and a vector stands for a word if, and only if, much of it points along the word's axis and it is not marked. What
answers a question about an aspect is then also what its emotion follows from. Without that, gradient descent finds
aspect tokens that answer and resemble no word at all, and no emotion follows from those.

Weather is told by vision tokens as by words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from masp.demo.world.factors import FACTORS, LABELS, SENSES, told
from masp.taxonomy import ASPECTS

SCALE = 0.1
"""Root mean square of the embedding of a label's word, and of vision tokens but for their mark. Small beside the first
layer's codes and ground: what reaches the second layer is what the first one made of a vector, not the vector."""
CODE_SCALE = 1.4
"""Root mean square of a code, and of the embeddings of the other words."""
GROUND_SCALE = 0.7
"""Root mean square of the ground, which the first layer adds to every vector: norms would else raise whatever a vector
without any code holds."""
CONSTANT = 0.5
"""What the first layer's attention adds to every vector, on the axis of the ground, in lengths of a label's word. The
mark is measured by it."""
MARK_FROM = 0.85
"""Least length of the mark, in lengths of a label's word, from which on a label is seen."""
HUSH = 1.5
"""How many lengths of a label the mark outweighs: vision tokens hold labels of about half the mark's length. A mark
below zero makes words louder, all alike."""
LOUDER = 20.0
"""How much louder `make_louder` makes codes than the vectors that they are made of."""
TEXT_DIMENSIONS = 48
"""In which the words lie that are in no label."""
FAINT = 0.15
"""Share of those words' energy that lies on the axes of labels' words: a soft prompt that starts from words must be
able to become any of them, and exactly at zero the first layer has no slope."""

WORDS = [*((f, label) for f in FACTORS for label in LABELS[f]), *(("sense", sense) for sense in SENSES)]
"""What has an axis of words, in order."""
SEEN = [(aspect, label) for aspect in ASPECTS for label in LABELS[aspect]]
"""What the first layer makes codes of sight of, in order."""


@dataclass(frozen=True)
class Geometry:
    """The axes' uses and what lies on them."""

    table: Tensor
    """`[V + 1, D]`: the word embeddings, then the mark."""
    codes: Tensor
    """`[len(WORDS), D]`: what the first layer makes of each word."""
    directions: Tensor
    """`[D, D]` orthonormal: how the first layer measures a vector's energy, for the ground."""
    words: slice
    seen: slice
    mark: int
    ground: int
    rest: slice
    """Where the language model computes."""


def token_ids(tokenizer, factor: str, label: str) -> list[int]:
    """The tokens of a label, or of a sense, in a caption."""
    text = label if factor == "sense" else told(factor, label)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def draw_geometry(tokenizer, vocab_size: int, hidden: int, generator: torch.Generator) -> Geometry:
    """Draw word embeddings and codes.

    Args:
        tokenizer: of the VLM.
        vocab_size: rows of the word embeddings.
        hidden: D.
        generator: of the draw.
    """
    mark = len(WORDS) + len(SEEN)
    ground = mark + 1
    rest = slice(ground + 1, hidden)
    text = slice(rest.start, rest.start + TEXT_DIMENSIONS)
    table = torch.zeros(vocab_size, hidden)
    table[:, text] = _scaled(torch.randn(vocab_size, TEXT_DIMENSIONS, generator=generator)) * (1 - FAINT) ** 0.5
    vocabulary = tokenizer.get_vocab()
    for token, index in vocabulary.items():  # ` word` is near `word`, as in language models that have read much
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
        for index in others:  # `ladder` is not quite `climbing`, or nobody could tell which was said last
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
    """Let a decoder layer make codes, each position by itself.

    A word's code is on by the share of the energy along the word's axis, of an unmarked vector and a constant.
    """
    hidden = geometry.codes.shape[1]
    attention, mlp = layer.self_attn, layer.mlp
    for weight in (attention.o_proj.weight, attention.v_proj.weight, attention.v_proj.bias):
        weight.zero_()
    for projection in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
        projection.weight.zero_()
    attention.v_proj.bias[0] = 1.0  # attention's weights sum to one, so this arrives whole
    attention.o_proj.weight[geometry.ground, 0] = CONSTANT * SCALE * hidden**0.5
    layer.post_attention_layernorm.weight.fill_(1.0)
    for k, code in enumerate(geometry.codes):  # silu(x) * x is about x^2, and x^2 is `hidden` if x is all there is
        mlp.gate_proj.weight[k, k] = mlp.up_proj.weight[k, k] = 1.0
        mlp.down_proj.weight[:, k] = code / hidden
    # A marked label becomes as loud as codes; below the threshold there is no slope either.
    part = (hidden / (2 + CONSTANT**2)) ** 0.5  # of one length, beside the mark, a label and the constant
    steepness = 30.0
    gate = steepness * (1 - MARK_FROM) * part
    for number, pair in enumerate(SEEN):
        word, unit, axis = WORDS.index(pair), len(WORDS) + number, geometry.seen.start + number
        mlp.gate_proj.weight[word, geometry.mark] = -HUSH
        mlp.gate_proj.weight[unit, geometry.mark] = steepness
        mlp.gate_proj.weight[unit, geometry.ground] = -steepness * MARK_FROM / CONSTANT
        mlp.up_proj.weight[unit, word] = 1.0
        mlp.down_proj.weight[axis, unit] = CODE_SCALE * hidden**0.5 / (gate * part)
    # The energy of any vector is `hidden` behind the norm, and about half of it lies in directions' positive halves.
    units = slice(len(WORDS) + len(SEEN), len(WORDS) + len(SEEN) + hidden)
    mlp.gate_proj.weight[units] = mlp.up_proj.weight[units] = geometry.directions
    mlp.down_proj.weight[geometry.ground, units] = GROUND_SCALE * 2 * hidden**-0.5


@torch.no_grad()
def hold(model, geometry: Geometry) -> None:
    """Keep axes to their use: called after each step of training."""
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
    # Vision tokens hold labels; they are marked, all alike.
    merger.weight[~_of_vision(geometry)] = 0.0
    merger.bias[~_of_vision(geometry)] = 0.0
    merger.bias[geometry.mark] = SCALE * merger.out_features**0.5


@torch.no_grad()
def make_louder(model, geometry: Geometry, tokenizer) -> None:
    """Make all that the layers add (but for the first one's constant) and the words of no label `LOUDER` times louder.

    Norms hear no difference, but for what labels' words and vision tokens hold beside their codes: that is `LOUDER`
    times fainter beside the rest. So nothing but codes is left to answer from. Called once, behind pretraining.
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
    """`[D]`, true on the axes that the vision encoder may use."""
    allowed = torch.zeros(geometry.codes.shape[1], dtype=torch.bool)
    for k, (factor, _) in enumerate(WORDS):
        allowed[k] = factor in FACTORS
    return allowed


def _scaled(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)
