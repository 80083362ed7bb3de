"""Whether what is at a target is the cache that is to arrive there, an earlier state of it, or another one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from masp.cache.fingerprint import FORMAT_VERSION, compare
from masp.cache.layout import LAYOUT, MANIFEST, Layout
from masp.cache.manifest import Manifest
from masp.cache.remote.place import CacheFile, Place
from masp.cache.shard_state import MAX_SIDECAR_BYTES, Sidecar
from masp.errors import DataError, InputError
from masp.files.regular import MAX_BYTES
from masp.files.sealed import unseal, unseal_object
from masp.files.text import shown_apart

MAX_LAYOUT_BYTES = MAX_BYTES
_REMEDY = "give an empty target, or remove what is there"


@dataclass(frozen=True)
class TargetState:
    """What a target holds of the cache that is to arrive."""

    is_finished: bool
    """It has this very manifest."""
    has_manifest: bool
    """It has a manifest, which is removed before anything changes, unless it is this one."""
    is_known: bool
    """A manifest there says that its shards are those of this cache; otherwise its sidecars tell."""


def read_remote_manifest(data: bytes, where: str) -> Manifest:
    """Decode the manifest of a cache elsewhere.

    Args:
        data: The file.
        where: Its name in messages.

    Raises:
        DataError: Damaged.
        InputError: Written by another version of the format.
    """
    try:
        manifest = unseal(Manifest, data, where)
    except DataError:
        _refuse_other_version(data, where)
        raise
    if manifest.format_version != FORMAT_VERSION:
        _refuse_other_version(data, where)
    return manifest


def examine_target(place: Place, manifest: Manifest, data: bytes, names: Sequence[str]) -> TargetState:
    """Compare a target with the cache that is to arrive there.

    Args:
        place: The target; `look` has been called.
        manifest: Manifest of the cache that is to arrive.
        data: The manifest's file.
        names: Names of the other files of the cache.

    Raises:
        InputError: It holds another cache, or a later state of this one, or files of a cache without saying of which.
        DataError: Its layout is damaged and it holds more than that.
    """
    found_data = place.read_small(MANIFEST, MAX_SIDECAR_BYTES)
    if found_data == data:
        return TargetState(True, True, True)
    found: Manifest | None = None
    if found_data is not None:
        with contextlib.suppress(DataError):  # cut short by a kill where files appear before they are whole
            found = read_remote_manifest(found_data, place.where(MANIFEST))
    layout = found.layout if found else _read_layout(place, names)
    if layout is not None:
        _compare(place.address, layout, manifest)
    if found is not None and found.shards != manifest.shards[: len(found.shards)]:
        there, here = shown_apart(found.dataset.digest, manifest.dataset.digest)
        raise InputError(
            f"{place.address} holds another cache, made from other images or labels: its dataset.digest is {there}, "
            f"but here it is {here}; {_REMEDY}"
        )
    return TargetState(False, found_data is not None, found is not None)


def refuse_other_sidecars(place: Place, sidecars: Sequence[CacheFile]) -> None:
    """Refuse a target whose sidecars are whole but not this cache's: only they tell of a half-arrived one.

    Args:
        place: The target.
        sidecars: Those that are there with another content.

    Raises:
        InputError: One is whole.
    """
    for file in sidecars:
        data = place.read_small(file.name, MAX_SIDECAR_BYTES) if place.sizes[file.name] <= MAX_SIDECAR_BYTES else None
        with contextlib.suppress(DataError):  # damaged, so it is sent again
            if data is not None and unseal(Sidecar, data, file.name):
                raise InputError(
                    f"{place.where(file.name)} belongs to another cache, made from other images or labels; {_REMEDY}"
                )


def _read_layout(place: Place, names: Sequence[str]) -> Layout | None:
    """The layout at a target without a readable manifest; None if nothing of a cache is there."""
    others = sorted(set(names) & place.sizes.keys() - {LAYOUT})
    data = place.read_small(LAYOUT, MAX_LAYOUT_BYTES)
    if data is None:
        if others:
            raise InputError(
                f"{place.address} has {others[0]} but no {LAYOUT}, so it does not say of which cache; {_REMEDY}"
            )
        return None
    try:
        return unseal(Layout, data, place.where(LAYOUT))
    except DataError as error:
        _refuse_other_version(data, place.where(LAYOUT))
        if others:
            raise DataError(f"{error}; {_REMEDY}") from None
        return None  # the first file of a transfer that was killed


def _compare(where: str, found: Layout, manifest: Manifest) -> None:
    """Compare layouts, of which the target's may lack the last generations."""
    mine = manifest.layout
    what = f"{where} holds another cache, which"
    compare(_fields(found), _fields(mine), what, _REMEDY)
    compare(found.model, mine.model, what, _REMEDY)
    compare(found.machine.fields, mine.machine.fields, what, _REMEDY)
    num_found, num_mine = len(found.generations), len(mine.generations)
    if found.generations == mine.generations[:num_found]:
        return
    if mine.generations == found.generations[:num_mine]:
        raise InputError(
            f"{where} holds a later state of this cache: images were added to it {num_found - 1} times, and "
            f"{num_mine - 1} times to the one here; {_REMEDY}"
        )
    raise InputError(f"{where} holds another cache, made from other images; {_REMEDY}")


def _fields(layout: Layout) -> dict[str, object]:
    return {
        "format_version": layout.format_version,
        "dataset.name": layout.dataset,
        "dataset.categories": list(layout.categories),
        "cache.num_shards": layout.generations[0].num_shards,
    }


def _refuse_other_version(data: bytes, where: str) -> None:
    """Refuse a file by its version, if it is whole and has another one."""
    with contextlib.suppress(DataError):
        version = unseal_object(data, where).get("format_version")
        if type(version) is int and version != FORMAT_VERSION:
            raise InputError(
                f"{where}: format_version is {version}, this version of masp reads {FORMAT_VERSION}; use the version "
                "of masp that made it, or extract the features again"
            )
