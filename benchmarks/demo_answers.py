"""Where the demo's accuracy is lost: in the answers about aspects, or between them and the emotion?

    python benchmarks/demo_answers.py [--dir outputs/demo-restarts] [--seed 1]

Takes a finished study of `benchmarks/demo_restarts.py`. The aspect modules of a seed answer the questions of stage 1 on
the test images. If these answers were the truth, the world's own posterior would give an emotion for every image: its
expected accuracy is what the answers allow (the weather, about which nobody is asked, is taken as it is). Beside it
stand what is possible with the true labels and what the method reaches, for all images and by the number of wrong
answers.

The last line says how much each factor counts in the method's scores: least squares of the centered log-likelihoods on
the world's logits, and the share of their variance that this explains. Weights that are alike leave the order of the
emotions as it is; what is not explained is noise.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, the repository is not on the path

from benchmarks.demo_restarts import settings
from masp.artifacts.trained import default_aspect_path
from masp.data.keys import path_of
from masp.demo.world.factors import EMOTIONS, FACTORS, LOGITS, Annotation, Scene, posterior
from masp.evaluation.run import evaluate
from masp.experiments.study.runs import run_config
from masp.experiments.study.variants import variants_of
from masp.files.typed import read
from masp.results.ledger import read_records
from masp.results.ledger_format import Record


@dataclass(frozen=True)
class Losses:
    """Expected accuracies on `N` test images."""

    num_wrong: np.ndarray
    """`[N]`: wrong answers about each image."""
    possible: np.ndarray
    """`[N]`: by the true labels."""
    by_answers: np.ndarray
    """`[N]`: by the answers."""
    reached: np.ndarray
    """`[N]`: by the method's prediction."""
    weights: np.ndarray
    """`[7]`: how much each of `FACTORS` counts in the method's scores."""
    explained: float
    """Share of the variance of the scores that the weighted logits explain."""


def compare(scenes: dict[str, Scene], answers: Sequence[Record], emotions: Sequence[Record]) -> Losses:
    """Compare answers and predictions with the world.

    Args:
        scenes: What each image shows, by sample key.
        answers: Records of stage 1.
        emotions: Records of the method, whose categories are the world's emotions in alphabetical order.
    """
    indices: dict[tuple[str, str], int] = {}  # of a label as stage 1 spells it
    said: dict[str, dict[str, tuple[str, str | None]]] = {}
    for record in answers:
        image, aspect = record.image_key, record.sample_key.rpartition("#")[2]
        indices[aspect, record.label] = scenes[image].labels[FACTORS.index(aspect)]
        said.setdefault(image, {})[aspect] = record.label, record.prediction
    order, rows = [EMOTIONS.index(name) for name in sorted(EMOTIONS)], []
    logits, scores = [], []
    for record in emotions:
        truth, taken, wrong = scenes[record.image_key].labels, [*scenes[record.image_key].labels], 0
        for aspect, (label, answer) in said.get(record.image_key, {}).items():
            if answer != label:
                wrong += 1
                taken[FACTORS.index(aspect)] = indices.get(
                    (aspect, str(answer)), -1
                )  # an answer of no label says nothing
        chances, best = posterior(truth), int(posterior(taken).argmax())
        reached = chances[EMOTIONS.index(str(record.prediction))]
        rows.append((wrong, chances.max(), chances[best], reached))
        own = np.array(record.scores)
        scores.append(own - own.mean())
        table = np.stack([LOGITS[f][truth[k]][order] for k, f in enumerate(FACTORS)], axis=1)
        logits.append(table - table.mean(axis=0))
    inputs, targets = np.concatenate(logits), np.concatenate(scores)
    weights, *_ = np.linalg.lstsq(inputs, targets, rcond=None)
    left = float(((inputs @ weights - targets) ** 2).sum() / (targets**2).sum())
    num_wrong, possible, by_answers, reached = np.array(rows, dtype=float).T
    return Losses(num_wrong, possible, by_answers, reached, weights, 1 - left)


def table(found: Losses) -> list[str]:
    """The comparison as lines of Markdown."""
    lines = ["| wrong answers | images | possible | by the answers | reached |", "|---" * 5 + "|"]
    groups = [("any", found.num_wrong >= 0)]
    groups += [(str(n), found.num_wrong == n) for n in (0, 1)] + [("2 or more", found.num_wrong > 1)]
    for name, chosen in groups:
        if chosen.any():
            cells = (f"{each[chosen].mean():.3f}" for each in (found.possible, found.by_answers, found.reached))
            lines.append(f"| {name} | {chosen.sum()} | {' | '.join(cells)} |")
    each = ", ".join(f"{name.replace('_', ' ')} {w:.2f}" for name, w in zip(FACTORS, found.weights, strict=True))
    return [*lines, "", f"weights: {each}; they explain {found.explained:.2f} of the variance"]


def read_scenes(root: Path, keys: Sequence[str]) -> dict[str, Scene]:
    """What images show, by sample key, from their annotations."""
    found = {}
    for key in keys:
        path = root / "annotation" / Path(path_of(key)).relative_to("image").with_suffix(".json")
        annotation = read(Annotation, path)
        if annotation is None:
            raise SystemExit(f"{path} is missing; its images must be where the study was run")
        found[key] = annotation.to_scene()
    return found


def main() -> int:
    """Evaluate stage 1 and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dir", type=Path, default=Path("outputs/demo-restarts"), help="of benchmarks/demo_restarts.py"
    )
    parser.add_argument("--seed", type=int, default=1)
    arguments, given = parser.parse_known_args()
    config = settings(arguments.dir, given)
    method = run_config(config, variants_of(config)[0], arguments.seed)
    asked = copy.deepcopy(method)
    asked.evaluate.stage, asked.evaluate.explain = "stage1", "none"
    asked.checkpoint.aspect = str(default_aspect_path(method))
    asked.output_dir = f"{config.output_dir}/answers/seed-{arguments.seed}"
    evaluate(asked)
    emotions = read_records(Path(method.output_dir) / "evaluate" / "ledger")
    if not emotions:
        raise SystemExit(f"{method.output_dir} is not evaluated; run benchmarks/demo_restarts.py first")
    scenes = read_scenes(Path(config.dataset.root), [record.image_key for record in emotions])
    answers = read_records(Path(asked.output_dir) / "evaluate-stage1" / "ledger")
    print("\n".join(table(compare(scenes, answers, emotions))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
