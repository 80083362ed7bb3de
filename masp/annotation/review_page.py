"""A page of images with the answers that were given to an aspect, the least sure first, for people to check.

It opens anywhere, without a network and without scripts: its filters are a form whose state the style sheet looks at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from masp.errors import InputError
from masp.files.atomic import write_bytes
from masp.files.text import reason
from masp.report.html import environment

BELOW = (0.5, 0.7, 0.9)
"""Confidences below which images can be chosen."""


@dataclass(frozen=True)
class ReviewedImage:
    """One image with the answer to an aspect."""

    name: str
    answer: str | None
    """None: the image does not have the aspect."""
    confidence: float
    origin: str
    image: str | None
    """The image, as a data address; None if it is not there."""

    @property
    def marks(self) -> str:
        """Names of style classes that the filters look at."""
        below = [f"below-{place}" for place, limit in enumerate(BELOW) if self.confidence < limit]
        return " ".join([*below, "absent" if self.answer is None else "answered"])


@dataclass(frozen=True)
class ReviewedAspect:
    """The images of one aspect, by confidence."""

    name: str
    question: str
    num_answers: int
    """All that are stored; the page may show fewer."""
    images: tuple[ReviewedImage, ...]


def write_review(path: str | Path, title: str, aspects: Sequence[ReviewedAspect]) -> Path:
    """Write the page.

    Args:
        path: HTML file; its directory is made if it is missing.
        title: What is reviewed.
        aspects: What it shows.

    Raises:
        InputError: It cannot be written.
    """
    path = Path(path)
    page = environment().get_template("review.html.j2").render(title=title, aspects=list(aspects), below=BELOW)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, page.encode("utf-8", errors="backslashreplace"))
    except OSError as error:
        raise InputError(f"--review {path}: cannot be written: {reason(error)}") from None
    return path
