"""The language half of a VLM: embeddings, decoder layers, vocabulary projection; frozen."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import create_masks_for_generate

from masp.config.schema import Quantization
from masp.errors import InputError
from masp.vlm.caches import read_only
from masp.vlm.families import ADDED, CONSTANTS, TABLES, ZEROED, deep_layers, describe
from masp.vlm.loading import Partition, decoder_of, load_part
from masp.vlm.positions import ImagePositions

EXACT_ROWS = 16384
"""Rows of the vocabulary that `exact_logits` holds in fp32 at a time."""


@dataclass(frozen=True)
class Tokens:
    """What stands at the positions of a block `[B, L]` behind `Lc` cached ones, for decoders that look at it."""

    ids: Tensor
    """`[B, L]` token ids; the placeholder's where something else than a word is."""
    is_word: Tensor
    """`[B, L]`, true at words."""
    is_feature: Tensor
    """`[B, L]`, true at features of an image."""
    types: Mapping[str, Tensor] = field(default_factory=dict)
    """Types of tokens, `[B, Lc + L]` each."""
    deep: Tensor | None = None
    """`[K, n, D]` the DeepStack maps at the `n` features, row by row."""


class LanguageHalf(nn.Module):
    """A frozen decoder that takes embeddings, so that anything may take the place of words."""

    model: Any
    """A transformers VLM without its encoder, as `load_part` gives it; transformers does not type its parts."""
    hidden_size: int
    vocab_size: int

    def __init__(self, model: nn.Module, partition: Partition | None = None, counts_only: bool = False):
        """Args:
        model: VLM without its encoder.
        partition: What its parameters are divided by.
        counts_only: The weights have no numbers, so that nothing can be read from them.
        """
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.family = describe(self.model.config)
        self.text = self.model.config.get_text_config()
        self.hidden_size, self.vocab_size = self.family.hidden_size, self.family.vocab_size
        self.recomputes = False
        self.has_grid_positions = ImagePositions(self.model.config).has_grid
        self.takes = frozenset(inspect.signature(self.decoder.forward).parameters)
        """Names of what the decoder takes."""
        self._constants = {} if counts_only else _constants(self.model, partition)
        self._cap, self._scale = (None, None) if counts_only else _head(self.model, partition)

    def train(self, mode: bool = True) -> LanguageHalf:
        """Stay in eval mode whatever the trainer says: the VLM is never changed, nor its behavior."""
        return super().train(False)

    @property
    def decoder(self) -> Any:
        """The decoder stack (transformers' text model, an `nn.Module`)."""
        return decoder_of(self.model)

    @property
    def table(self) -> nn.Parameter:
        """The table of word embeddings `[V, D]`, without a factor by which the VLM multiplies them."""
        return self.model.get_input_embeddings().weight

    @property
    def embedding_scale(self) -> float:
        """The factor by which the VLM multiplies rows of the table."""
        return float(getattr(self.model.get_input_embeddings(), "embed_scale", 1.0))

    @property
    def head(self) -> Any:
        """The vocabulary projection."""
        return self.model.get_output_embeddings()

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    @property
    def adds_features(self) -> bool:
        """Whether features are added to what `embed` gives at their places, instead of replacing it."""
        return self.family.model_type in ADDED

    @property
    def has_inner_features(self) -> bool:
        """Whether features enter inside only, the first map like the others."""
        return self.family.model_type in ZEROED

    def recompute_layers(self) -> None:
        """Keep only the layers' inputs for the backward pass and run each layer again there: less memory, more time.

        transformers' own gradient checkpointing drops the key/value cache, and so the frozen prefix. Here the layers
        read it and leave it as it is, so that running one twice changes nothing.
        """
        if not self.recomputes:
            self.recomputes = True
            for layer in self.decoder.layers:
                layer.forward = functools.partial(_recomputed, layer.forward)

    def embed(self, tokens: Tokens) -> Tensor:
        """Word embeddings `[B, L, D]`; what they are where no word is does not matter, except at features.

        There it is what features are added to in families that add them, and 0 where they only enter inside.
        """
        kind = self.family.model_type
        ids = tokens.ids if kind in ADDED else tokens.ids.masked_fill(~tokens.is_word, self.family.pad_token_id)
        found = self.model.get_input_embeddings()(ids)
        for name in TABLES.get(kind, ()):
            table = getattr(self.model.base_model, name)
            own = (ids >= table.vocab_offset) & (ids < table.vocab_offset + table.vocab_size)
            vectors = table(input_ids=torch.where(own, ids, table.vocab_offset))
            found = torch.where(own[..., None], vectors.to(found.dtype), found)
        for number, vector in self._constants.items():
            found = torch.where((ids == number)[..., None], vector.to(found), found)
        return found.masked_fill(tokens.is_feature[..., None], 0) if kind in ZEROED else found

    def new_cache(self, branches: bool = False):
        """An empty cache of keys, values and states.

        Args:
            branches: A candidate tree comes behind the prefix, which looks at all keys through a mask of its own.
        """
        cache = DynamicCache(config=self.text)
        if branches and not self.family.is_plain:
            cache.layers = [DynamicLayer() for _ in range(self.text.num_hidden_layers)]
        return cache

    def forward(
        self,
        embeds: Tensor,
        mask: Tensor | Mapping[str, Tensor],
        positions: Tensor,
        cache=None,
        tokens: Tokens | None = None,
    ) -> Tensor:
        """Run the decoder.

        Args:
            embeds: `[B, L, D]`.
            mask: `[B, Lc + L]`, true where a token is real, the cached ones included; or additive `[B, 1, L, Lc + L]`,
                by type of layer where there are several.
            positions: `[3, B, L]` (time, height, width).
            cache: Keys, values and states of `Lc` earlier tokens; extended in place, but left as it is under a gradient
                where a layer would overwrite what it needs.
            tokens: What stands at the positions; may be left out where the family is plain.

        Returns:
            Last hidden states `[B, L, D]`, normalized.
        """
        if cache is not None and torch.is_grad_enabled() and (self.recomputes or not self.family.has_tree):
            cache = read_only(cache)
        extra = {}
        if tokens is not None:
            extra = self._extra(tokens, embeds)
            if isinstance(mask, Tensor) and mask.dim() == 2 and not self.family.is_plain:
                make: Any = getattr(self.model, "create_masks_for_generate", create_masks_for_generate)
                types = {name: tokens.types[name] for name in self.family.mask_types if name in tokens.types}
                mask = make(
                    config=self.model.config, inputs_embeds=embeds, attention_mask=mask, past_key_values=cache,
                    position_ids=None, **types,
                )  # fmt: skip
        out = self.decoder(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions if self.has_grid_positions else positions[0],
            past_key_values=cache,
            use_cache=cache is not None,
            **extra,
        )
        return out.last_hidden_state

    def _extra(self, tokens: Tokens, embeds: Tensor) -> dict[str, Any]:
        """What this decoder takes beside embeddings, mask and positions."""
        found: dict[str, Any] = {}
        if "per_layer_inputs" in self.takes and getattr(self.decoder, "hidden_size_per_layer_input", None):
            ids = tokens.ids.masked_fill(~tokens.is_word, self.family.pad_token_id)
            found["per_layer_inputs"] = self.decoder.get_per_layer_inputs(ids)
        if "ple_input_ids" in self.takes:
            found["ple_input_ids"] = tokens.ids
        if "moe_mm_token_type_ids" in tokens.types:
            found["moe_mm_token_type_ids"] = tokens.types["moe_mm_token_type_ids"][:, -tokens.ids.shape[1] :]
        if tokens.deep is not None and tokens.deep.shape[1]:
            deep = list(tokens.deep.to(embeds.dtype))
            if "deepstack_visual_embeds" in self.takes:
                found |= {"visual_pos_masks": tokens.is_feature, "deepstack_visual_embeds": deep}
            else:
                found |= {
                    "vision_mask": tokens.is_feature[..., None],
                    "deepstack_features": dict(zip(deep_layers(self.model.config), deep, strict=True)),
                }
        return found

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary projection: `[..., D]` -> `[..., V]` in fp32."""
        return self._final(self.head(hidden).float())

    def exact_logits(self, hidden: Tensor) -> Tensor:
        """The same, multiplied and added in fp32 whatever the model's dtype.

        Half precision would round a logit of 20 to the nearest 0.125, and categories would tie by rounding alone.
        """
        return torch.cat([*self.exact_parts(hidden)], dim=-1)

    def exact_parts(self, hidden: Tensor, num_rows: int | None = None) -> Iterator[Tensor]:
        """The same, `EXACT_ROWS` words of the vocabulary at a time: `[..., V]` would be gigabytes.

        Args:
            hidden: `[..., D]`.
            num_rows: Rows of the vocabulary that count; None for all.
        """
        hidden = hidden.float()
        for rows in self.head.weight[:num_rows].split(EXACT_ROWS):
            yield self._final(hidden @ rows.float().T)

    def _final(self, logits: Tensor) -> Tensor:
        if self._cap is not None:
            return torch.tanh(logits / self._cap) * self._cap
        return logits if self._scale is None else logits / self._scale


def _constants(model: Any, partition: Partition | None) -> dict[int, Tensor]:
    """Embeddings of tokens that a family keeps in its vision half, whose table is dropped then."""
    name = CONSTANTS.get(model.config.model_type)
    if name is None or not hasattr(model.base_model, name):
        return {}
    numbers = model.config.visual_indicator_token_ids
    weight = getattr(model.base_model, name).weight
    with partition.whole([weight]) if partition else nullcontext():
        first = len(weight) - model.config.vision_config.num_visual_indicator_tokens
        rows = weight.detach()[first : first + len(numbers)].clone()
    delattr(model.base_model, name)
    return dict(zip(numbers, rows, strict=True))


@torch.no_grad()
def _head(model: Any, partition: Partition | None) -> tuple[float | None, float | None]:
    """What the VLM does to logits behind its vocabulary projection: the cap that bounds them, and what divides them.

    Configurations state such numbers also where only the decoder uses them, so the VLM itself is asked.

    Raises:
        InputError: It does something else.
    """
    inner, text, head = model.base_model, model.config.get_text_config(), model.get_output_embeddings()
    cap, scale = getattr(text, "final_logit_softcapping", None), getattr(text, "logits_scaling", None)
    if inner is model or head is None:
        return None, None
    generator = torch.Generator().manual_seed(0)
    with partition.whole(head.parameters()) if partition else nullcontext():
        hidden = torch.randn(1, 1, text.hidden_size, generator=generator).to(head.weight)
        plain = head(hidden).float()
        hidden = hidden * (20 / plain.std().clamp_min(1e-6)).to(hidden.dtype)  # so large that a cap shows
        plain = head(hidden).float()

        class Output(dict):
            """The inner model's output, however the VLM asks for it."""

            def __getitem__(self, name: Any) -> Tensor:
                return hidden

            def __getattr__(self, name: str) -> Tensor | None:
                return hidden if name == "last_hidden_state" else None

        inner.forward = lambda *_, **__: Output()
        try:
            stock = model(input_ids=torch.ones(1, 1, dtype=torch.long, device=hidden.device)).logits.float()
        finally:
            del inner.forward
    ways: dict[tuple[float | None, float | None], Tensor] = {(None, None): plain}
    if cap:
        ways[cap, None] = torch.tanh(plain / cap) * cap
    if scale:
        ways[None, scale] = plain / scale
    errors = {way: float((logits - stock).abs().max()) for way, logits in ways.items()}
    best = min(errors, key=errors.__getitem__)
    if errors[best] > 0.02 * float(plain.abs().max()):
        raise InputError(
            f"vlm.path: {model.config.model_type!r} models transform their logits in a way that MASP does not support "
            f"(largest difference {errors[best]:.3g})"
        )
    return best


def _recomputed(forward: Callable, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(hidden, *args, **kwargs)
    # nothing random runs in a frozen decoder, so no generator state needs to be kept
    return checkpoint(forward, hidden, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def load_language_half(
    path: str,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    attention: str = "sdpa",
    partition: Partition | None = None,
    quantization: Quantization = "none",
) -> LanguageHalf:
    """Load decoder, embeddings and vocabulary projection; the encoder's weights are not read from disk.

    Args:
        path: Directory of the VLM, or its hub name.
        dtype: Data type of the weights.
        device: `cpu` or `cuda`.
        attention: Implementation of attention, `sdpa` or `eager`.
        partition: Divides each parameter over the ranks as soon as it is read (see `load_part`).
        quantization: How the layers keep their weights.
    """
    return LanguageHalf(load_part(path, "language", dtype, device, attention, partition, quantization), partition)
