"""`explanations.json`: why the images of an evaluation got their categories, and what aspects do on average.

It is in the directory `explanations` in that of the evaluation, beside a `records.h5` of the same images, which holds
where their aspects look. The file has a digest of its content, which its reader checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from masp.errors import DataError
from masp.files.atomic import write_bytes
from masp.files.sealed import read_sealed, sealed
from masp.files.typed import Json
from masp.results.explanations.averages import Averages, Means
from masp.results.explanations.explanation import AspectExplanation, Explanation
from masp.results.metrics import Count, Share
from masp.taxonomy import Split

DIRECTORY = "explanations"
"""Name of the directory, in that of the evaluation."""
FILE = "explanations.json"

NUM_SAMPLE = 200
"""Images of a sample; fewer where the split has fewer."""
VERSION: Literal[1] = 1
MAX_BYTES = 4 << 30
"""Of a file: millions of explained images."""
_REMEDY = "delete it and run the same `masp evaluate` again, which writes it from the ledgers"


@dataclass(frozen=True)
class AspectEntry:
    """An aspect of one image; see `AspectExplanation`."""

    answer: str
    probability: Share
    annotated: str | None
    """What the dataset says; None where it says nothing."""
    contribution: float | None
    log_probability_change: float | None


@dataclass(frozen=True)
class ImageEntry:
    """One image; see `Explanation`."""

    key: str
    """Sample key."""
    label: str
    """The right category."""
    prediction: str
    probabilities: tuple[Share, ...]
    """In the order of the categories."""
    aspects: tuple[AspectEntry, ...]
    """In the order of the aspects."""
    all_aspects: float | None
    vision_features: float | None

    @property
    def is_right(self) -> bool:
        """Whether the prediction is right."""
        return self.prediction == self.label


@dataclass(frozen=True)
class ExplanationsFile:
    """`explanations.json`."""

    version: Literal[1]
    categories: tuple[str, ...]
    aspects: tuple[str, ...]
    """In the order of the prompt."""
    explained: Literal["sample", "all"]
    """`evaluate.explain`."""
    num_images: Count
    """Images that are explained."""
    num_scored: Count
    """Images of the evaluation, of which these are a sample or all."""
    split: Split
    averages: Averages
    images: tuple[ImageEntry, ...]
    """In the order of their keys."""
    records: str
    """Digest of the `records.h5` beside it."""
    has_attention: bool
    """Whether those records hold where the aspects look."""
    notes: tuple[str, ...]
    lineage: dict[str, Json]

    def __post_init__(self) -> None:
        if not len(self.images) == self.num_images <= self.num_scored:
            raise ValueError(f"must hold num_images = {self.num_images} of num_scored = {self.num_scored} images")
        if not self.images or not self.aspects:
            raise ValueError("must hold at least one image and one aspect")
        for image in self.images:
            if len(image.probabilities) != len(self.categories) or len(image.aspects) != len(self.aspects):
                raise ValueError("must hold a probability per category and an entry per aspect of every image")
            if image.prediction not in self.categories or image.label not in self.categories:
                raise ValueError("must hold predictions and labels that are categories")
        means = [self.averages.signed, self.averages.absolute]
        for by_category in (self.averages.by_prediction, self.averages.by_label):
            if set(by_category) != set(self.categories):
                raise ValueError("must hold means of every category")
            means += by_category.values()
        if any(set(mean.aspects) != set(self.aspects) for mean in means):
            raise ValueError("must hold means of every aspect")

    def explanation(self, image: ImageEntry) -> Explanation:
        """The explanation of one of the images; without attention."""
        found = zip(self.aspects, image.aspects, strict=True)
        probabilities = dict(zip(self.categories, image.probabilities, strict=True))
        return Explanation(
            image=image.key,
            category=image.prediction,
            probability=probabilities[image.prediction],
            probabilities=probabilities,
            aspects=tuple(
                AspectExplanation(name, a.answer, a.probability, a.contribution, a.log_probability_change)
                for name, a in found
            ),
            all_aspects=image.all_aspects,
            vision_features=image.vision_features,
        )

    def means_in_order(self, by: Mapping[str, Means]) -> list[tuple[str, Means]]:
        """Means by category, in the order of the categories."""
        return [(category, by[category]) for category in self.categories]


def image_entry(found: Explanation, label: str, annotated: Sequence[str | None]) -> ImageEntry:
    """An explanation as the file has it.

    Args:
        found: The explanation; its image is a sample key.
        label: The right category.
        annotated: What the dataset says of each aspect.
    """
    return ImageEntry(
        key=found.image,
        label=label,
        prediction=found.category,
        probabilities=tuple(found.probabilities.values()),
        aspects=tuple(
            AspectEntry(a.answer, a.probability, says, a.contribution, a.log_probability_change)
            for a, says in zip(found.aspects, annotated, strict=True)
        ),
        all_aspects=found.all_aspects,
        vision_features=found.vision_features,
    )


def write_explanations(path: Path, content: ExplanationsFile) -> None:
    """Write the file.

    Raises:
        OSError: It cannot be written.
    """
    write_bytes(path, sealed(content))


def read_explanations(path: Path) -> ExplanationsFile | None:
    """Read the file; None if there is none.

    Raises:
        InputError: It may not be read. DataError: It is damaged.
    """
    try:
        return read_sealed(ExplanationsFile, path, max_bytes=MAX_BYTES)
    except DataError as error:
        raise DataError(f"{error}; {_REMEDY}") from None
