"""What MASP does with caches of transformers that hold earlier tokens of every kind of layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DummyLayer


def read_only(cache: Any) -> Any:
    """A cache that gives earlier states together with new ones, and keeps only the earlier.

    Behind it a prefix can be used by several passes, and a pass can be repeated for its gradient: layers that keep a
    state would otherwise overwrite what the backward pass needs.

    Args:
        cache: Cache of transformers, of which each layer has seen a prefix.
    """
    found = DynamicCache()
    found.layers = [_frozen(layer) for layer in cache.layers]
    return found


class _Frozen:
    """What replaces the methods by which a decoder layer puts new states into a layer of a cache."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        own: Any = self
        return torch.cat([own.keys, key_states], dim=-2), torch.cat([own.values, value_states], dim=-2)

    def update_indexer(self, indexer_key_states: Tensor) -> Tensor:
        own: Any = self
        return torch.cat([own.indexer_keys, indexer_key_states], dim=1)

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        own: Any = self
        return torch.cat([own.conv_states[state_idx], conv_states], dim=-1)

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        return recurrent_states


def _frozen(layer: Any) -> Any:
    if isinstance(layer, DummyLayer):  # which holds nothing
        return layer
    kind = type(layer)
    methods: dict[str, Any] = {
        name: method for name, method in vars(_Frozen).items() if name.startswith("update") and hasattr(kind, name)
    }
    if hasattr(layer, "indexer_position_ids"):  # which its decoder layer lengthens by itself
        kept = layer.indexer_position_ids
        methods["indexer_position_ids"] = property(lambda _: kept, lambda *_: None)
    found: Any = object.__new__(type(f"ReadOnly{kind.__name__}", (kind,), methods))
    found.__dict__ |= layer.__dict__
    return found


def repeat(cache: Any, count: int, device: torch.device) -> None:
    """Make one row of a cache on a device `count` equal rows, in place."""
    # not `batch_repeat_interleave`, which layers with states lack; from the CPU, every layer would wait for a GPU
    cache.reorder_cache(torch.zeros(count, dtype=torch.long, device=device))
