"""Which images lack an aspect, so that the VLM is to annotate them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from masp.config import Config


@dataclass(frozen=True)
class Lacking:
    """What decides whether an image is to be asked about an aspect; the same for a dataset, its plan and its cache."""

    in_use: tuple[str, ...]
    """The aspects in use."""
    is_listed: bool
    """Whether `annotate.aspects` lists the aspects that are asked about."""
    answered: frozenset[str]
    """Aspects that people annotated, so that an image without one usually does not show it."""

    @classmethod
    def of(cls, config: Config, kinds: Iterable[tuple[str, Collection[str]]]) -> Lacking:
        """From the images of all splits.

        Stage 1 learns from training images, so an aspect that only images of other splits are annotated with counts as
        one that nobody annotated; in a dataset without training images, all count.

        Args:
            config: Run configuration; `aspects` and `annotate.aspects` matter.
            kinds: Split and annotated aspects of each image, or of each kind of images.
        """
        every: set[str] = set()
        train: set[str] = set()
        has_train = False
        for split, aspects in kinds:
            every.update(aspects)
            if split == "train":
                has_train = True
                train.update(aspects)
        return cls(tuple(config.aspects), config.annotate.aspects is not None, frozenset(train if has_train else every))

    def unanswered(self, aspects: Iterable[str]) -> list[str]:
        """Those of some aspects that nobody annotated."""
        return [aspect for aspect in aspects if aspect not in self.answered]

    def lacks(self, aspect: str, annotated: Collection[str]) -> bool:
        """Whether an image lacks an aspect.

        Args:
            aspect: Name of the aspect.
            annotated: The aspects that the image is annotated with.
        """
        if aspect in annotated:
            return False
        if self.is_listed or aspect not in self.answered:
            return True
        return not any(other in annotated for other in self.in_use)
