"""What the page of `masp annotate --review` shows: of each aspect the least sure answers, and some over all others."""

from __future__ import annotations

from pathlib import Path

from masp.annotation.review_page import ReviewedAspect, ReviewedImage, write_review
from masp.annotation.wanted import open_samples
from masp.cache.annotations.manifest import annotations_directory, read_stored
from masp.cache.annotations.table import StoredAnswer, read_table
from masp.cache.manifest import read_manifest
from masp.config import Config
from masp.config.feature_source import cache_directory
from masp.data.image_files.stored import Location
from masp.data.images import UnreadableImage, load_image
from masp.errors import InputError
from masp.report.html import data_address
from masp.report.images import shown_name
from masp.runtime.log import show

NUM_IMAGES = 300
"""Images per aspect: half of them the least sure, the others evenly over the rest."""
SIDE = 200
"""Longer side of an image on the page, in pixels."""


def review(config: Config, path: str) -> Path:
    """Write the page.

    Raises:
        InputError: No finished cache, no stored answers, or the page cannot be written.
        DataError: A file is damaged.
    """
    cache = cache_directory(config)
    read_manifest(cache)
    stored = read_stored(cache)
    listed = config.annotate.aspects
    names = [name for name in stored if listed is None or name in listed]
    if not names:
        raise InputError(
            f"cache.dir: {annotations_directory(cache)} has no answers{'' if listed is None else ' to these aspects'}; "
            "run `masp annotate` first"
        )
    samples = open_samples(config)
    images = {} if samples is None else dict(zip(samples.keys, samples.images, strict=True))
    kept: dict[str, str | None] = {}
    aspects = []
    for name in names:
        answers = read_table(cache, name, stored[name])
        chosen = least_sure([each for each in answers if each.origin != "dataset"])
        for each in chosen:
            if each.key not in kept:
                kept[each.key] = _thumbnail(images.get(each.key))
        question = stored[name].source.definition.get("question") or "Computed from the pixels."
        shown = tuple(
            ReviewedImage(shown_name(each.key), each.answer, each.confidence, each.origin, kept[each.key])
            for each in chosen
        )
        aspects.append(ReviewedAspect(name, str(question), len(answers), shown))
    written = write_review(path, f"Annotations of {config.dataset.name}: {annotations_directory(cache)}", aspects)
    show(f"review: {written}: {sum(len(aspect.images) for aspect in aspects):,} answers to {len(aspects)} aspects")
    return written


def least_sure(answers: list[StoredAnswer], count: int = NUM_IMAGES) -> list[StoredAnswer]:
    """Some answers by rising confidence: the first half the least sure, the second half evenly over the others."""
    ordered = sorted(answers, key=lambda each: (each.confidence, each.key))
    if len(ordered) <= count:
        return ordered
    first = count // 2
    rest, num_others = ordered[first:], count - first
    return [*ordered[:first], *(rest[place * len(rest) // num_others] for place in range(num_others))]


def _thumbnail(place: Location | None) -> str | None:
    """An image, small, as a data address; None if it is not there."""
    if place is None:
        return None
    try:
        return data_address(load_image(place, SIDE))
    except (UnreadableImage, OSError):
        return None
