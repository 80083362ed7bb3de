"""Batches of images, read ahead: features for the VLM, or what the pixels say."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from masp.annotation.pixels import level_of
from masp.cache.annotations.source import MAX_PIXEL_SIDE
from masp.cache.reader import Cache, CachedSample
from masp.config.aspects import FROM_PIXELS, Aspect
from masp.config.schema import Transparency
from masp.data.image_files.stored import Location
from masp.data.images import UnreadableImage, decode_image, read_image_file
from masp.errors import InputError


@dataclass(frozen=True)
class Unit:
    """Images of one shard that are asked about together."""

    shard: int
    """Number of the shard."""
    rows: tuple[int, ...]
    aspects: tuple[Aspect, ...]
    from_pixels: bool


def units_of(cache: Cache, shard: int, todo: Mapping[Aspect, Sequence[int]], batch_size: int) -> list[Unit]:
    """Cut a shard's images into batches.

    Aspects that the same images lack share their batches; which other aspects there are changes no batch.

    Args:
        cache: The cache.
        shard: Number of the shard.
        todo: Aspect -> rows of the images to ask about it.
        batch_size: Largest number of images of a batch.
    """
    groups: dict[tuple[bool, tuple[int, ...]], list[Aspect]] = {}
    for aspect, asked in todo.items():
        groups.setdefault((aspect.annotate in FROM_PIXELS, tuple(asked)), []).append(aspect)
    tokens = cache.index.num_tokens
    units = []
    for (from_pixels, rows), aspects in groups.items():
        ordered = sorted(rows, key=lambda row: (int(tokens[row]), row))  # similar lengths need little padding
        for start in range(0, len(ordered), batch_size):
            units.append(Unit(shard, tuple(ordered[start : start + batch_size]), tuple(aspects), from_pixels))
    return units


class UnitReader(Dataset):
    """Reads units, in worker processes: samples with features, or levels by aspect."""

    def __init__(
        self, cache: Cache, units: Sequence[Unit], images: Mapping[str, Location] | None, transparency: Transparency
    ):
        """Args:
        cache: The cache.
        units: What is read.
        images: Sample key -> where its image is; None where there are no images.
        transparency: See `masp.data.images.load_image`.
        """
        self.cache, self.units, self.images, self.transparency = cache, units, images, transparency

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, number: int) -> list[CachedSample] | dict[str, list[str]]:
        unit = self.units[number]
        if not unit.from_pixels:
            return [self.cache.read(row) for row in unit.rows]
        found: dict[str, list[str]] = {aspect.name: [] for aspect in unit.aspects}
        for row in unit.rows:
            image = self._image(row, unit.aspects[0].name)
            for aspect in unit.aspects:
                found[aspect.name].append(level_of(aspect, image))
        return found

    def _image(self, row: int, aspect: str):
        """The image of a sample, as it was when its features were computed.

        Raises:
            InputError: It is gone or has changed.
        """
        record = self.cache.read_record(row)
        place = None if self.images is None else self.images.get(record.key)
        remedy = (
            f"aspect {aspect} is computed from the images: restore dataset.root, leave it out of annotate.aspects, or "
            "define it with annotate: likelihood, which needs the cache alone"
        )
        if place is None:
            raise InputError(f"dataset.root: the image of sample {record.key} is not there; {remedy}")
        try:
            data = read_image_file(place)
            if hashlib.sha256(data).hexdigest() != record.source_sha256:
                raise InputError(f"{place} is not the image that the cache holds features of; {remedy}")
            return decode_image(data, MAX_PIXEL_SIDE, transparency=self.transparency)
        except UnreadableImage as error:
            raise InputError(f"sample {record.key}: {place} cannot be read ({error.reason}); {remedy}") from None
