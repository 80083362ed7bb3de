"""Do explanations say what the demo world knows? Contributions of aspects beside the weights of the factors.

    python benchmarks/explanations.py [--run outputs/demo] [--root data/demo]

Takes a finished demo run. The world draws the emotion from additive logits, one per factor, so for each explained image
it is known which of the aspects speaks most for the predicted emotion. Images are grouped by that aspect; a row per
group gives the mean contribution of every aspect over its images. Exits with 1 unless, in every row, the largest is
that of the aspect to which the world gave most weight. Seconds on one core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masp.data.keys import path_of
from masp.demo.world.factors import EMOTIONS, LOGITS, Annotation, Scene
from masp.files.typed import read
from masp.results.explanations.explanations_file import DIRECTORY, FILE, ExplanationsFile, read_explanations


@dataclass(frozen=True)
class Comparison:
    """What the world knows beside what explanations say."""

    aspects: tuple[str, ...]
    counts: np.ndarray
    """`[A]`: images in which the world gave each aspect most weight."""
    means: np.ndarray
    """`[A, A]`: a row per such group, a column per aspect: the mean contribution, nats; NaN of no image."""
    agreement: float
    """Share of all images whose largest contribution is that of the aspect with most weight."""
    correlation: float
    """Between weights and contributions, over images and aspects."""

    @property
    def is_diagonal(self) -> bool:
        """Whether the largest mean of every group is that of its own aspect."""
        rows = np.flatnonzero(self.counts)
        return bool((self.means[rows].argmax(axis=1) == rows).all())


def world_weights(scene: Scene, emotion: str, aspects: Sequence[str]) -> list[float]:
    """The logit that each factor gives to an emotion; 0 where it is absent."""
    place = EMOTIONS.index(emotion)
    table = {factor: LOGITS[factor][index][place] for factor, index in zip(LOGITS, scene.labels, strict=True)}
    return [float(table[aspect]) for aspect in aspects]


def compare(found: ExplanationsFile, scenes: Sequence[Scene]) -> Comparison:
    """Compare explanations with the world.

    Args:
        found: The explanations.
        scenes: What each of the images shows.
    """
    weights = np.array(
        [world_weights(s, image.prediction, found.aspects) for image, s in zip(found.images, scenes, strict=True)]
    )
    contributions = np.array([[aspect.contribution for aspect in image.aspects] for image in found.images], dtype=float)
    strongest = weights.argmax(axis=1)
    groups = [contributions[strongest == place] for place in range(len(found.aspects))]
    nothing = np.full(len(found.aspects), np.nan)
    return Comparison(
        aspects=found.aspects,
        counts=np.array([len(group) for group in groups]),
        means=np.array([group.mean(axis=0) if len(group) else nothing for group in groups]),
        agreement=float((contributions.argmax(axis=1) == strongest).mean()),
        correlation=float(np.corrcoef(weights.ravel(), contributions.ravel())[0, 1]),
    )


def table(result: Comparison) -> list[str]:
    """The comparison as lines of Markdown."""
    names = [aspect.replace("_", " ") for aspect in result.aspects]
    lines = [f"| most weight in the world | images | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for place, name in enumerate(names):
        cells = [f"{value:+.2f}" for value in result.means[place]]
        cells[place] = f"**{cells[place]}**"
        lines.append(f"| {name} | {result.counts[place]} | {' | '.join(cells)} |")
    lines += ["", f"largest contribution where the world gave most weight: {result.agreement:.3f} of the images"]
    lines.append(f"correlation of weights and contributions: {result.correlation:.3f}")
    return lines


def read_scenes(found: ExplanationsFile, root: Path) -> list[Scene]:
    """What the explained images show, from their annotations."""
    scenes = []
    for image in found.images:
        path = root / "annotation" / Path(path_of(image.key)).relative_to("image").with_suffix(".json")
        annotation = read(Annotation, path)
        if annotation is None:
            raise SystemExit(f"{path} is missing; --root must be the images of the run")
        scenes.append(annotation.to_scene())
    return scenes


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("outputs/demo"), help="a finished demo run")
    parser.add_argument("--root", type=Path, default=Path("data/demo"), help="its images")
    options = parser.parse_args()
    path = options.run / "evaluate" / DIRECTORY / FILE
    found = read_explanations(path)
    if found is None:
        raise SystemExit(f"{path} is missing; run `masp demo` first")
    result = compare(found, read_scenes(found, options.root))
    print("\n".join(table(result)))
    return 0 if result.is_diagonal else 1


if __name__ == "__main__":
    sys.exit(main())
