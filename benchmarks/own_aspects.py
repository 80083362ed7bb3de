"""Does an aspect of one's own help? The demo with the weather as a seventh aspect, by configuration alone.

    python benchmarks/own_aspects.py [--seeds 1 2 3] [--dir outputs/own-aspects] [--num-train 4000] [--num-test 1000]

One cache with the annotations of all seven aspects of `configs/aspects-demo.yaml`; per training seed, stage 1 with the
seven, then stage 2 with the modules of the six of the method and with all seven, in turns, with the vision features
(which convey the weather in this world) and without. So two runs that are compared differ in the module of the weather
alone. Prints a table of the accuracies, paired comparisons over the same images, and how often the modules answer
right; writes `own_aspects.json`. Every step is a command of `masp`, which resumes: the same call goes on. About twelve
minutes per seed on one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from masp.config import load_aspects
from masp.demo.world.factors import ASPECTS, FACTORS, WEATHER, best_possible_accuracy
from masp.experiments.seed_statistics import compare_seeds
from masp.results.aspect_records import DIRECTORY as STAGE1
from masp.results.metrics_file import METRICS, read_metrics
from masp.results.records import FILE, read_records_file

DEFINITIONS = "configs/aspects-demo.yaml"
ASPECT_SETS = {"six": ASPECTS, "seven": tuple(load_aspects(DEFINITIONS))}
DATA_SEED = 3407
ANSWERS = "answers of the seven modules"


def masp(*arguments: str) -> None:
    """Run a command of `masp`; ends this program where it fails."""
    print("$ masp", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "masp.cli", *arguments], check=True)


def settings(directory: Path, out: Path, aspects: tuple[str, ...], seed: int) -> list[str]:
    """What every command of a run is given."""
    return [
        *("--config", "configs/demo.yaml", f"seed={seed}", f"aspect_definitions={DEFINITIONS}"),
        *(f"aspects=[{','.join(aspects)}]", f"dataset.root={directory}/data", f"cache.dir={directory}/cache"),
        *(f"output_dir={out}", "engine.num_threads=1"),
    ]


def run_seed(directory: Path, seed: int) -> dict[str, Path]:
    """Train and evaluate all variants with one seed; returns the directory of each evaluation."""
    root = directory / f"seed-{seed}"
    modules = settings(directory, root, ASPECT_SETS["seven"], seed)
    masp("train", "--stage", "stage1", *modules)
    found = {}
    for features in (False, True):
        for name, aspects in ASPECT_SETS.items():
            name += "" if features else ", no features"
            out = root / name.replace(", ", "-").replace(" ", "-")
            given = [
                *settings(directory, out, aspects, seed),
                *(
                    f"stage2.vision_features={str(features).lower()}",
                    f"checkpoint.aspect={root}/stage1/aspect.safetensors",
                ),
            ]
            masp("train", "--stage", "stage2", *given)
            masp("evaluate", *given)
            found[name] = out / "evaluate"
    masp("evaluate", *modules, "evaluate.stage=stage1")
    found[ANSWERS] = root / STAGE1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--dir", type=Path, default=Path("outputs/own-aspects"))
    parser.add_argument("--num-train", type=int, default=4000)
    parser.add_argument("--num-test", type=int, default=1000)
    arguments = parser.parse_args()
    directory, seeds = arguments.dir, arguments.seeds
    counts = ("--num-train", str(arguments.num_train), "--num-test", str(arguments.num_test))
    masp("make-demo-data", f"{directory}/data", *counts, "--seed", str(DATA_SEED))
    masp("extract", *settings(directory, directory, ASPECT_SETS["seven"], DATA_SEED))
    evaluated = [run_seed(directory, seed) for seed in seeds]
    found = summarize(evaluated, seeds)
    path = directory / "own_aspects.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    show(found, seeds)
    print(f"\n{path}")
    return 0


def summarize(evaluated: list[dict[str, Path]], seeds: list[int]) -> dict:
    """Accuracies, comparisons and the shares of right answers about each aspect, over all seeds."""
    emotions = sorted((name for name in evaluated[0] if name != ANSWERS), key=lambda name: "no features" in name)
    accuracy = {name: [read_metrics(each[name] / METRICS, []).accuracy for each in evaluated] for name in emotions}
    right = {name: [_right(each[name] / FILE) for each in evaluated] for name in emotions}
    pairs = (("six", "seven"), ("six, no features", "seven, no features"), ("seven, no features", "seven"))
    comparisons = {}
    for first, second in pairs:
        test = compare_seeds(right[first], right[second])
        comparisons[f"{second} minus {first}"] = {
            "difference": test.difference,
            "images_ci95": test.images_ci95,
            "seeds_ci95": test.seeds_ci95,
        }
    answers = [json.loads((each[ANSWERS] / METRICS).read_text())["per_aspect"] for each in evaluated]
    return {
        "seeds": seeds,
        "accuracy": accuracy,
        "comparisons": comparisons,
        "answers": {aspect: [each[aspect]["accuracy"] for each in answers] for aspect in ASPECT_SETS["seven"]},
        "best_possible": {
            "all factors": best_possible_accuracy(FACTORS),
            f"without {WEATHER}": best_possible_accuracy(ASPECTS),
        },
    }


def _right(path: Path) -> np.ndarray:
    """Which predictions are right, bool, in the order of the sample keys."""
    records = read_records_file(path)
    return records.is_right[records.order]


def show(found: dict, seeds: list[int]) -> None:
    """Print the tables in the form of the documentation."""
    print(f"\n| | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | spread |\n|---|{'---|' * (len(seeds) + 2)}")
    for name, values in found["accuracy"].items():
        print(_row(name, values))
    print("\n| difference | mean | 95 % interval over images | over seeds |\n|---|---|---|---|")
    for name, test in found["comparisons"].items():
        images, over = (
            "" if ci is None else f"{ci[0]:+.3f} to {ci[1]:+.3f}" for ci in (test["images_ci95"], test["seeds_ci95"])
        )
        print(f"| {name} | {test['difference']:+.3f} | {images} | {over} |")
    print(f"\n| right answers | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | spread |")
    print(f"|---|{'---|' * (len(seeds) + 2)}")
    for aspect, values in found["answers"].items():
        print(_row(aspect, values))
    for name, value in found["best_possible"].items():
        print(f"best possible, {name}: {value:.3f}")


def _row(name: str, values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"| {name} | {' | '.join(f'{v:.3f}' for v in [*values, statistics.mean(values), spread])} |"


if __name__ == "__main__":
    sys.exit(main())
