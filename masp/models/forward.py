"""A batch through the frozen language model: embed, run the frozen prefix apart, project only supervised positions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from masp.models.likelihood import answer_losses
from masp.models.losses import row_losses
from masp.models.sequence import ASPECT, FEATURE, SOFT, TEXT, Batch, Block
from masp.models.trainable import AspectModules, SoftPrompt
from masp.vlm.caches import take_rows
from masp.vlm.language import LanguageHalf, Tokens


def embed(language: LanguageHalf, block: Block, tokens: Tokens, values: Mapping[int, Tensor]) -> Tensor:
    """Fill a block's positions.

    Args:
        language: Language half of the VLM.
        block: Block of `[B, L]` positions.
        tokens: What stands at them.
        values: Values of the ASPECT, FEATURE and SOFT positions, `[n, D]` each, row by row; the soft prompt `[P, D]`
            is repeated as often as it occurs.

    Returns:
        `[B, L, D]` in the language model's dtype.
    """
    embeds = language.embed(tokens)
    for kind, places in block.places.items():
        count = len(places[0])
        if count and kind in values:
            vectors = values[kind].to(embeds.dtype)
            adds = kind == FEATURE and language.adds_features
            embeds = embeds.index_put(places, vectors.repeat(count // len(vectors), 1), accumulate=adds)
    return embeds


def _inputs(
    language: LanguageHalf,
    batch: Batch,
    block: Block,
    types: Mapping[str, Tensor],
    aspect_tokens: Tensor | None,
    soft_prompt: Tensor | None,
) -> tuple[Tensor, Tokens]:
    """Pick each row's aspect tokens and features, and embed the block."""
    images = batch.row_image
    if block is batch.prefix and batch.prefix_row is not None:  # which has a row per image, or no image
        images = torch.arange(len(block.ids), device=images.device)
    values = {} if soft_prompt is None else {SOFT: soft_prompt}
    deep = None
    if len(block.places[ASPECT][0]):
        assert aspect_tokens is not None, "a block with aspect tokens needs them"
        asked = (images,) if batch.row_aspect is None else (images, batch.row_aspect)
        found = aspect_tokens[asked]
        values[ASPECT] = (found if batch.row_kept is None else found[batch.row_kept]).flatten(0, -2)
    if len(block.places[FEATURE][0]):
        at = _feature_places(block, images)
        found = batch.features[at]
        if batch.deep is not None:
            deep = batch.deep[at[0], :, at[1]].transpose(0, 1)
        if language.has_inner_features:
            deep = found[None] if deep is None else torch.cat([found[None], deep])
        else:
            values[FEATURE] = found
    tokens = Tokens(block.ids, block.kind == TEXT, block.kind == FEATURE, types, deep)
    return embed(language, block, tokens, values), tokens


def _feature_places(block: Block, images: Tensor) -> tuple[Tensor, Tensor]:
    """Image and place in it of the features at the FEATURE positions of a block, row by row: `[n]` each.

    `images [B]` is the image of each row, whose features are in the row all or, where they are left out, none.

    By index: how much a mask picks must be counted first, and a GPU would be waited for.
    """
    rows, counts = block.places[FEATURE][0], (block.kind == FEATURE).sum(1)
    first = counts.cumsum(0) - counts
    return images[rows], torch.arange(len(rows), device=rows.device) - first[rows]


def run(
    language: LanguageHalf, batch: Batch, aspect_tokens: Tensor | None, soft_prompt: Tensor | None, cache=None
) -> Tensor:
    """Run a batch; its prefix gets no gradient.

    Args:
        language: Language half of the VLM.
        batch: Batch of either stage.
        aspect_tokens: Aspect tokens of the batch's images, `[I, A, N, D]`, or None.
        soft_prompt: Soft prompt `[P, D]`, or None.
        cache: An empty cache to keep (scoring goes on from it); None to use one only where needed.

    Returns:
        Hidden states of the suffix `[B, Ls, D]`.
    """
    if batch.prefix is not None:
        cache = language.new_cache() if cache is None else cache
        run_prefix(language, batch, aspect_tokens, soft_prompt, cache)
    return run_suffix(language, batch, aspect_tokens, soft_prompt, cache)


@torch.no_grad()
def run_prefix(
    language: LanguageHalf, batch: Batch, aspect_tokens: Tensor | None, soft_prompt: Tensor | None, cache
) -> None:
    """Run the prefix of a batch that has one, and leave its keys and values in an empty cache, row by row."""
    block = batch.prefix
    assert block is not None, "the batch has no prefix"
    embeds, tokens = _inputs(language, batch, block, block.types, aspect_tokens, soft_prompt)
    language(embeds, block.mask, block.positions, cache, tokens)
    if batch.prefix_row is not None:
        take_rows(cache, batch.prefix_row)


def run_suffix(
    language: LanguageHalf, batch: Batch, aspect_tokens: Tensor | None, soft_prompt: Tensor | None, cache=None
) -> Tensor:
    """Run the rest of a batch behind its prefix, which the cache holds; returns hidden states `[B, Ls, D]`."""
    embeds, tokens = _inputs(language, batch, batch.suffix, batch.known_types(), aspect_tokens, soft_prompt)
    return language(embeds, batch.known(), batch.suffix.positions, cache, tokens)


class Stage1Model(nn.Module):
    """Stage 1: aspect tokens replace the image; the language model answers a question about that aspect."""

    def __init__(self, language: LanguageHalf, aspect_modules: AspectModules, num_logits: int | None = None):
        super().__init__()
        self.language, self.aspect_modules, self.num_logits = language, aspect_modules, num_logits

    def trained(self) -> nn.Module:
        return self.aspect_modules

    def parts(self) -> dict[str, nn.Module]:
        """What is trained, by aspect. A part that no sample of a step asks for does not move in it."""
        return dict(self.aspect_modules.by_aspect.items())

    def forward(self, batch: Batch) -> Tensor:
        """Losses of the rows `[B]`, fp32."""
        tokens = self.aspect_modules(batch.features, batch.feature_mask)
        return row_losses(self.language, run(self.language, batch, tokens, None), batch, self.num_logits)


class Stage2Model(nn.Module):
    """Stage 2: aspect tokens, features and soft prompt; the language model answers with the category.

    Either of aspect modules and soft prompt may be absent (the baselines).
    """

    def __init__(
        self,
        language: LanguageHalf,
        aspect_modules: AspectModules | None,
        soft_prompt: SoftPrompt | None,
        num_logits: int | None = None,
    ):
        super().__init__()
        self.language, self.num_logits = language, num_logits
        self.aspect_modules = None if aspect_modules is None else aspect_modules.requires_grad_(False)
        self.soft_prompt = soft_prompt

    def trained(self) -> nn.Module:
        assert self.soft_prompt is not None, "without a soft prompt nothing is trained"
        return self.soft_prompt

    def parts(self) -> dict[str, nn.Module]:
        """What is trained: the soft prompt, which every sample asks for."""
        return {"soft_prompt": self.trained()}

    def hidden(self, batch: Batch, cache=None) -> Tensor:
        """Hidden states of the suffix `[B, Ls, D]`."""
        tokens = batch.aspect_tokens
        if tokens is None and self.aspect_modules is not None:
            with torch.no_grad():
                tokens = self.aspect_modules(batch.features, batch.feature_mask)
        soft_prompt = None if self.soft_prompt is None else self.soft_prompt()
        return run(self.language, batch, tokens, soft_prompt, cache)

    def forward(self, batch: Batch) -> Tensor:
        """Losses of the rows `[B]`, fp32."""
        if batch.answers is not None:
            return answer_losses(self, batch)
        return row_losses(self.language, self.hidden(batch), batch, self.num_logits)


def num_logits(layout: str, prompt, vocab_size: int, num_soft_tokens: int) -> int | None:
    """Rows of the vocabulary that the softmax runs over.

    The released code resizes the vocabulary in stage 2 to the tokenizer's length with the soft prompt's tokens added,
    which shrinks Qwen2-VL's (151,936 to 151,689); `after_image` keeps it whole.
    """
    if layout != "released":
        return None
    return min(vocab_size, len(prompt.tokenizer) + num_soft_tokens)
