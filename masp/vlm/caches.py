"""What MASP does with caches of transformers that hold earlier tokens of every kind of layer."""

from __future__ import annotations

import copy
import functools
import weakref
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DummyLayer


def read_only(cache: Any, place: int = 0) -> Any:
    """A cache that gives earlier states together with new ones, and keeps only the earlier.

    Behind it a prefix can be used by several passes, and a pass can be repeated for its gradient: layers that keep a
    state would otherwise overwrite what the backward pass needs.

    Args:
        cache: Cache of transformers, of which each layer has seen a prefix.
        place: A pass may begin before the gradient of another one has been taken if their places differ; each place
            has a copy of the prefix.
    """
    found, notes = DynamicCache(), hasattr(cache, _LAST)
    found.layers = [_frozen(layer, notes, place) for layer in cache.layers]
    if notes:
        setattr(cache, _LAST, found)
    return found


_LAST = "last_read_only"
"""Name of the attribute by which a cache that is to be gone on from knows its last read-only copy."""


class _Room:
    """Room for the states of a layer: those of the prefix, and behind them those of the pass that runs now.

    Passes behind one prefix, at one place, take turns. Each writes its own states behind the prefix's, which are not
    copied again. Whoever needs those of an earlier pass after another one has begun, for its gradient, gets an error
    from torch.

    Args:
        layer: Layer of a cache.
        name: Name of its states `[B, H, Lc, d]`.
        is_first: Whether the layer's own states are to be those in this room, or the first would be held twice.
    """

    def __init__(self, layer: Any, name: str, is_first: bool):
        self._layer, self.name, self.is_first = weakref.ref(layer), name, is_first
        self.states = self.before = getattr(layer, name)
        self.length = self.states.shape[-2]

    @property
    def layer(self) -> Any:
        """The layer; it holds its rooms, and a room that held it too would keep all these states until Python's
        collector of garbage finds them, when the next prefix is in memory."""
        return self._layer()

    @property
    def is_current(self) -> bool:
        """Whether the layer still holds the same states."""
        return getattr(self.layer, self.name, None) is self.before

    def put(self, new: Tensor) -> Tensor:
        """Write new states `[B, H, L, d]`; returns all `[B, H, Lc + L, d]`."""
        end = self.length + new.shape[-2]
        if end > self.states.shape[-2]:
            takes_over = self.is_first and self.is_current
            self.states = new.new_empty((*self.states.shape[:-2], end, self.states.shape[-1]))
            before = self.states[..., : self.length, :]
            before.copy_(self.before)
            if takes_over:
                self.before = before
                setattr(self.layer, self.name, before)
                # rooms of other places would hold what the layer held before
                places = self.layer.places.items()
                self.layer.places = {place: rooms for place, rooms in places if all(room.is_current for room in rooms)}
        self.states[..., self.length : end, :] = new
        return self.states[..., :end, :]


class _Joined(torch.autograd.Function):
    """The states in a room; what is behind the prefix has a gradient."""

    @staticmethod
    def forward(ctx: Any, room: _Room, new: Tensor) -> Tensor:
        ctx.start = room.length
        return room.put(new)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0][..., ctx.start :, :]


class _Frozen:
    """What replaces the methods by which a decoder layer puts new states into a layer of a cache."""

    rooms: tuple[_Room, ...] = ()
    """Where the states of a pass are written behind those of the prefix."""
    more: tuple[tuple[Tensor, Tensor], ...] = ()
    """Keys and values behind those of the prefix, of passes before this one."""
    notes: bool = False
    """Whether to remember those of this pass, which keeps them in memory."""
    added: tuple[Tensor, Tensor] | None = None
    """Those that were remembered. A repeated pass has the same, so the first ones stay: with later ones, all that led
    to them would stay in memory."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        own: Any = self
        if self.notes and self.added is None:
            self.added = key_states, value_states
        if own.rooms and not self.more:
            keys, values = (
                _Joined.apply(room, new) for room, new in zip(own.rooms, (key_states, value_states), strict=True)
            )
            return keys, values
        before = ((own.keys, own.values), *self.more) if own.is_initialized else self.more  # or without a prefix
        keys, values = zip(*before, (key_states, value_states), strict=True)
        return torch.cat(keys, dim=-2), torch.cat(values, dim=-2)

    def update_indexer(self, indexer_key_states: Tensor) -> Tensor:
        own: Any = self
        return torch.cat([own.indexer_keys, indexer_key_states], dim=1)

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        own: Any = self
        return torch.cat([own.conv_states[state_idx], conv_states], dim=-1)

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        return recurrent_states


def _frozen(layer: Any, notes: bool = False, place: int = 0) -> Any:
    if isinstance(layer, DummyLayer):  # which holds nothing
        return layer
    given = {name: value for name, value in layer.__dict__.items() if name != "places"}
    kind: Any = type(layer)
    kind = kind if "rooms" in given else _frozen_kind(kind)
    rooms = given.get("rooms", ())  # of one that is read-only already
    if not rooms:
        rooms = layer.__dict__.get("places", {}).get(place, ())
        rooms = rooms if all(room.layer is layer and room.is_current for room in rooms) else ()
    if not rooms and hasattr(kind, "update") and layer.is_initialized and not layer.keys.requires_grad:
        rooms = _Room(layer, "keys", not place), _Room(layer, "values", not place)
        layer.places = layer.__dict__.get("places", {}) | {place: rooms}
    found: Any = object.__new__(kind)
    found.__dict__ |= given | {"rooms": rooms, "notes": notes}
    return found


@functools.cache
def _frozen_kind(kind: type) -> type:
    """The read-only form of a kind of layer; made once, since a class is freed only by the collector of garbage."""
    names = [name for name in vars(_Frozen) if not name.startswith("__")]
    found = {name: vars(_Frozen)[name] for name in names if not name.startswith("update") or hasattr(kind, name)}
    if hasattr(kind, "update_indexer"):  # whose positions its decoder layer lengthens by itself
        found["indexer_position_ids"] = property(lambda layer: layer.__dict__["indexer_position_ids"], lambda *_: None)
    # by this name, transformers would from now on take the new class for new caches
    made: Any = type(f"ReadOnly{kind.__name__}", (kind,), found | {"_layer_type": None})
    del made._layer_type
    return made


def go_on_from(cache: Any) -> Any:
    """The same cache, behind whose last pass another one will go on, see `behind`; nothing may have been run yet."""
    setattr(cache, _LAST, None)
    return cache


def behind(cache: Any) -> Any:
    """The cache that the pass behind the last one goes on from.

    Args:
        cache: Cache of `go_on_from` that the last pass was given: extended in place, or read-only, and then the keys
            and values that it added are put behind it here.
    """
    last = getattr(cache, _LAST)
    if last is None:
        return cache
    found = DynamicCache()
    found.layers = [_longer(layer) for layer in last.layers]
    return found


def _longer(layer: Any) -> Any:
    if isinstance(layer, DummyLayer):
        return layer
    found = _frozen(layer)
    found.more, found.added = (*layer.more, layer.added), None
    return found


def hold_same(cache: Any, other: Any) -> None:
    """Put what one cache holds into an empty one of the same kind; whoever extends that leaves the first as it is.

    Layers that keep keys and values replace them when they grow. Those with states change these in place, so that they
    have to run again instead.
    """
    cache.layers = [copy.copy(layer) for layer in other.layers]


def take_rows(cache: Any, rows: Tensor) -> None:
    """Make some rows of a cache all of its rows, in place; one may be taken several times.

    Args:
        cache: Cache of transformers.
        rows: Rows, on the device of the cache: from the CPU, every layer would wait for a GPU.
    """
    # not `batch_repeat_interleave`, which layers with states lack
    cache.reorder_cache(rows)
