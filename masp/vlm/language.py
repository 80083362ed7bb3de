"""The language half of a VLM: embeddings, decoder layers, vocabulary projection; frozen."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from masp.config.schema import Quantization
from masp.vlm.loading import Partition, load_part

EXACT_ROWS = 16384
"""Rows of the vocabulary that `exact_logits` holds in fp32 at a time."""


class LanguageHalf(nn.Module):
    """A frozen decoder that takes embeddings, so that anything may take the place of words."""

    model: Any
    """A transformers VLM without its encoder, as `load_part` gives it; transformers does not type its parts."""
    hidden_size: int
    vocab_size: int

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        text = self.model.config.text_config
        self.hidden_size, self.vocab_size = text.hidden_size, text.vocab_size
        self.recomputes = False

    def train(self, mode: bool = True) -> LanguageHalf:
        """Stay in eval mode whatever the trainer says: the VLM is never changed, nor its behavior."""
        return super().train(False)

    @property
    def decoder(self) -> Any:
        """The decoder stack (transformers' text model, an `nn.Module`)."""
        return self.model.model.language_model

    @property
    def dtype(self) -> torch.dtype:
        return self.model.lm_head.weight.dtype

    def recompute_layers(self) -> None:
        """Keep only the layers' inputs for the backward pass and run each layer again there: less memory, more time.

        transformers' own gradient checkpointing drops the key/value cache, and so the frozen prefix. Here the layers
        read it and leave it as it is, so that running one twice changes nothing.
        """
        if not self.recomputes:
            self.recomputes = True
            for layer in self.decoder.layers:
                layer.forward = functools.partial(_recomputed, layer.forward)

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings: `[...]` token ids -> `[..., D]`."""
        return self.decoder.embed_tokens(ids)

    def new_cache(self):
        """An empty key/value cache."""
        return DynamicCache(config=self.model.config.text_config)

    def forward(self, embeds: Tensor, mask: Tensor, positions: Tensor, cache=None) -> Tensor:
        """Run the decoder.

        Args:
            embeds: `[B, L, D]`.
            mask: `[B, Lc + L]`, true where a token is real, the cached ones included; or additive `[B, 1, L, Lc + L]`.
            positions: `[3, B, L]` (time, height, width).
            cache: Keys and values of `Lc` earlier tokens; extended in place, but under a gradient with
                `recompute_layers` left as it is.

        Returns:
            Last hidden states `[B, L, D]`, normalized.
        """
        if self.recomputes and cache is not None and torch.is_grad_enabled():
            cache = _read_only(cache)
        out = self.decoder(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary projection: `[..., D]` -> `[..., V]` in fp32."""
        return self.model.lm_head(hidden).float()

    def exact_logits(self, hidden: Tensor) -> Tensor:
        """The same, multiplied and added in fp32 whatever the model's dtype.

        Half precision would round a logit of 20 to the nearest 0.125, and categories would tie by rounding alone.
        """
        head = self.model.lm_head
        parts = [hidden.float() @ rows.float().T for rows in head.weight.split(EXACT_ROWS)]
        return torch.cat(parts, dim=-1)


def _recomputed(forward: Callable, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(hidden, *args, **kwargs)
    # nothing random runs in a frozen decoder, so no generator state needs to be kept
    return checkpoint(forward, hidden, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _read_only(cache):
    """A cache that gives earlier keys and values together with new ones, and keeps only the earlier."""

    class ReadOnlyLayer(DynamicLayer):
        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            assert self.keys is not None and self.values is not None  # set below
            return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)

    found = DynamicCache()
    for layer in cache.layers:
        frozen = ReadOnlyLayer()
        frozen.keys, frozen.values = layer.keys, layer.values
        frozen.dtype, frozen.device, frozen.is_initialized = layer.keys.dtype, layer.keys.device, True
        found.layers.append(frozen)
    return found


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
    return LanguageHalf(load_part(path, "language", dtype, device, attention, partition, quantization))
