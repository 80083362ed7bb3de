"""Does it matter who annotated? MASP with the true annotations and with those of the VLM, on the demo world.

    python benchmarks/annotated.py [--seeds 1 2 3] [--dir outputs/annotated] [--num-train 4000] [--num-test 1000]

One extraction, of images without any annotation, serves both sides: `masp annotate` fills one copy of the cache with
the annotations of the dataset and the other with answers of the VLM. Then both sides train and evaluate in turns, seed
after seed. Prints a table of the accuracies and their ratio; writes `annotated.json`. Every step is a command of
`masp`, which resumes: the same call goes on. About ten minutes per seed and side on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from masp.results.metrics_file import METRICS, read_metrics

DEFINITIONS = "configs/aspects-demo.yaml"
SIDES = {"people": "data", "vlm": "bare"}
"""Side -> name of the dataset whose annotations count."""
MIN_RATIO = 0.95


def masp(*arguments: str) -> None:
    """Run a command of `masp`; ends this program where it fails."""
    print("$ masp", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "masp.cli", *arguments], check=True)


def settings(directory: Path, side: str, seed: int, out: str) -> list[str]:
    """What every command of a run is given."""
    return [
        *("--config", "configs/demo.yaml", f"seed={seed}", f"aspect_definitions={DEFINITIONS}"),
        *(f"dataset.root={directory}/{SIDES[side]}", f"cache.dir={directory}/cache-{side}"),
        *(f"output_dir={directory}/{out}", "engine.num_threads=1", "extract.num_threads=1"),
        *("annotate.num_threads=1", "annotate.batch_size=64", "annotate.num_workers=0", "annotate.device=cpu"),
    ]


def prepare(directory: Path, num_train: int, num_test: int) -> None:
    """Draw the images, once with and once without annotations, extract them once, and annotate both sides."""
    counts = ("--num-train", str(num_train), "--num-test", str(num_test))
    masp("make-demo-data", f"{directory}/data", *counts, "--seed", "3407")
    bare = directory / "bare"
    bare.mkdir(exist_ok=True)
    for name in ("train.json", "test.json", "info.json"):
        shutil.copy(directory / "data" / name, bare)
    if not (bare / "image").exists():
        (bare / "image").symlink_to((directory / "data" / "image").resolve())
    masp("extract", *settings(directory, "vlm", 3407, "extract"))
    if not (directory / "cache-people").exists():
        copy = directory / "cache-copy"
        shutil.rmtree(copy, ignore_errors=True)
        # features are the same files; a cache is never changed in place
        shutil.copytree(
            directory / "cache-vlm", copy, copy_function=os.link, ignore=shutil.ignore_patterns("annotations", ".lock")
        )
        copy.rename(directory / "cache-people")
    for side in SIDES:
        masp("annotate", *settings(directory, side, 3407, "extract"))


def run(directory: Path, side: str, seed: int) -> dict:
    """Train and evaluate a side with a seed."""
    out = f"{side}-{seed}"
    given = settings(directory, side, seed, out)
    masp("train", "--stage", "stage1", *given)
    masp("train", "--stage", "stage2", *given)
    masp("evaluate", *given)
    metrics = read_metrics(directory / out / "evaluate" / METRICS, [])
    return {"side": side, "seed": seed, "accuracy": metrics.accuracy, "ci95": metrics.accuracy_ci95}


def table(runs: list[dict], seeds: list[int]) -> str:
    """The table of the documentation."""
    lines = [
        f"| annotated by | {' | '.join(f'seed {seed}' for seed in seeds)} | mean |",
        "|---|" + "---|" * (len(seeds) + 1),
    ]
    means = {}
    for side in SIDES:
        found = {each["seed"]: each["accuracy"] for each in runs if each["side"] == side}
        means[side] = statistics.mean(found.values())
        cells = " | ".join(f"{found[seed]:.3f}" if seed in found else "" for seed in seeds)
        lines.append(f"| {side} | {cells} | {means[side]:.3f} |")
    ratio = means["vlm"] / means["people"]
    lines.append(f"\nratio of the means {ratio:.3f}: {'at least' if ratio >= MIN_RATIO else 'BELOW'} {MIN_RATIO}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--dir", type=Path, default=Path("outputs/annotated"))
    parser.add_argument("--num-train", type=int, default=4000)
    parser.add_argument("--num-test", type=int, default=1000)
    arguments = parser.parse_args()
    directory = arguments.dir
    directory.mkdir(parents=True, exist_ok=True)
    prepare(directory, arguments.num_train, arguments.num_test)
    runs: list[dict] = []
    for seed in arguments.seeds:
        for side in SIDES:
            runs.append(run(directory, side, seed))
            (directory / "annotated.json").write_text(json.dumps(runs, indent=1) + "\n")
            print(runs[-1], flush=True)
    print(f"\n{table(runs, arguments.seeds)}\n\n{directory / 'annotated.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
