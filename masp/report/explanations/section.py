"""What the report shows of explanations: averages, and some right and wrong predictions one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masp.data.images import UnreadableImage, load_image
from masp.errors import DataError, MaspError
from masp.report.attention import overlay, spread
from masp.report.explanations.heat_map import HeatMap, heat_map, words
from masp.report.html import data_address, small
from masp.report.images import Images
from masp.report.run_config import RunConfig
from masp.results.explanations.averages import Mean
from masp.results.explanations.explanation import Explanation
from masp.results.explanations.explanations_file import ExplanationsFile, ImageEntry
from masp.results.records import FILE as RECORDS
from masp.results.records import read_maps, read_records_file

NUM_SHOWN = 6
"""Predictions that are shown one by one: half of them wrong, if there are as many."""
_SIDE, _OVERLAY_SIDE = 300, 200
"""Longer side of an image and of an attention overlay, in pixels."""


@dataclass(frozen=True)
class Bar:
    """A contribution as a bar to the right (for) or to the left (against) of a middle line."""

    value: float
    left: float
    """Percent of the whole width."""
    width: float
    is_for: bool


@dataclass(frozen=True)
class ShownAspect:
    """What one aspect says about an image and did for its prediction."""

    name: str
    answer: str
    probability: float
    annotated: str | None
    """What the dataset says; None where it says nothing."""
    bar: Bar | None
    look: str | None
    """Where it looks: the image with the attention laid over it, as a data address."""


@dataclass(frozen=True)
class ShownExplanation:
    """One prediction."""

    name: str
    label: str
    prediction: str
    is_right: bool
    label_probability: float
    sentence: str
    image: str | None
    """The image, as a data address."""
    aspects: tuple[ShownAspect, ...]
    together: tuple[tuple[str, Bar], ...]
    """What parts did together."""


@dataclass(frozen=True)
class PartRow:
    """What one part did on average."""

    name: str
    bar: Bar
    ci95: tuple[float, float] | None
    absolute: float


@dataclass(frozen=True)
class ShownExplanations:
    """The section."""

    num_images: int
    num_scored: int
    by_prediction: HeatMap
    by_label: HeatMap
    parts: tuple[PartRow, ...]
    shown: tuple[ShownExplanation, ...]
    notes: tuple[str, ...]


def shown_explanations(
    directory: Path, found: ExplanationsFile, config: RunConfig, problems: list[str]
) -> ShownExplanations:
    """What the report shows.

    Args:
        directory: Directory of the explanations.
        found: Its `explanations.json`.
        config: What is known of the run's configuration.
        problems: What is damaged is left out, and a line appended that says so.
    """
    right = spread([image for image in found.images if image.is_right], NUM_SHOWN // 2)
    wrong = spread([image for image in found.images if not image.is_right], NUM_SHOWN - len(right))
    chosen = [*right, *wrong]
    try:
        looks = _looks(directory / RECORDS, found, chosen)
    except MaspError as error:
        problems.append(str(error))
        looks = {}
    averages, images = found.averages, Images(config)
    means = [(name, mean) for name, mean in averages.signed.parts(found.aspects) if mean is not None]
    explained = [found.explanation(image) for image in chosen]
    largest = max((abs(value) for each in explained for value in _contributions(each)), default=0.0)
    return ShownExplanations(
        num_images=found.num_images,
        num_scored=found.num_scored,
        by_prediction=heat_map(found.means_in_order(averages.by_prediction), found.aspects, "predicted as"),
        by_label=heat_map(found.means_in_order(averages.by_label), found.aspects, "labeled"),
        parts=_part_rows(means, dict(averages.absolute.parts(found.aspects))),
        shown=tuple(
            _shown(entry, each, looks.get(entry.key), largest, images, config)
            for entry, each in zip(chosen, explained, strict=True)
        ),
        notes=found.notes,
    )


def _part_rows(means: Sequence[tuple[str, Mean]], absolute: Mapping[str, Mean | None]) -> tuple[PartRow, ...]:
    largest = max((abs(mean.mean) for _, mean in means), default=0.0)
    return tuple(
        PartRow(words(name), _bar(mean.mean, largest), mean.ci95, of_all.mean)
        for name, mean in means
        if (of_all := absolute[name]) is not None
    )


def _looks(path: Path, found: ExplanationsFile, chosen: Sequence[ImageEntry]) -> dict[str, np.ndarray]:
    """Where the aspects look in some images; nothing where that is not known.

    Raises:
        InputError, DataError: The records are missing, damaged, or not those of the explanations.
    """
    if not found.has_attention:
        return {}
    records = read_records_file(path)
    if records.digest != found.records or records.aspects != found.aspects:
        raise DataError(f"{path}: not the file that the explanations beside it were written with")
    maps = read_maps(path, records, [image.key for image in chosen])
    return {key: np.array([of_image[aspect] for aspect in found.aspects]) for key, of_image in maps.items()}


def _contributions(found: Explanation) -> list[float]:
    values = [aspect.contribution for aspect in found.aspects]
    return [v for v in [*values, found.all_aspects, found.interaction, found.vision_features] if v is not None]


def _shown(
    entry: ImageEntry,
    found: Explanation,
    looks: np.ndarray | None,
    largest: float,
    images: Images,
    config: RunConfig,
) -> ShownExplanation:
    name, file = images.find(entry.key)
    image = None
    if file is not None:
        try:
            image = load_image(file, config.max_side, transparency=config.transparency)
        except (UnreadableImage, OSError):
            image = None
    aspects = []
    for place, (aspect, of_file) in enumerate(zip(found.aspects, entry.aspects, strict=True)):
        look = None
        if image is not None and looks is not None:
            look = data_address(overlay(small(image, _OVERLAY_SIDE), looks[place]))
        bar = None if aspect.contribution is None else _bar(aspect.contribution, largest)
        aspects.append(
            ShownAspect(words(aspect.aspect), aspect.answer, aspect.probability, of_file.annotated, bar, look)
        )
    together = [("all aspects", found.all_aspects), ("interaction", found.interaction)]
    together.append(("vision features", found.vision_features))
    return ShownExplanation(
        name=name,
        label=entry.label,
        prediction=entry.prediction,
        is_right=entry.is_right,
        label_probability=found.probabilities[entry.label],
        sentence=found.sentence,
        image=None if image is None else data_address(small(image, _SIDE)),
        aspects=tuple(aspects),
        together=tuple((what, _bar(value, largest)) for what, value in together if value is not None),
    )


def _bar(value: float, largest: float) -> Bar:
    half = 50 * abs(value) / largest if largest else 0.0
    return Bar(value, 50 - half if value < 0 else 50, half, value >= 0)
