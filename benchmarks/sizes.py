"""Small datasets: does the rule that sizes training (`masp/start/sizing.py`) work on the demo world?

    python benchmarks/sizes.py [--sizes 140 1000 4000] [--seeds 1 2] [--dir outputs/sizes]

For every number of training images and every seed, both stages are trained and 500 test images are scored with

    rule       the settings that `masp init` writes; a tenth of the training images is held out for validation
    demo       the fixed settings of configs/demo.yaml, which suit 4,000 images
    published  the published hyperparameters, for 94,500 images: 3 epochs at 1e-5 and 1 epoch at 5e-6, batches of 8

and, where --methods asks for them, with what tells whether the rule's two numbers are about right

    half-steps              half as many epochs, at twice the learning rate
    half-reach, twice-reach half and twice the learning rate

all with the demo's VLM and otherwise the settings of the demo. Each training is one process with one thread, one after
the other; what is finished is in `sizes.json` and not run again. Prints the table after each one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from masp.start.scales import read_scales
from masp.start.sizing import stage_sizes

NUM_TEST = 500
METHODS = ("rule", "demo", "published")
VARIANTS = ("half-steps", "half-reach", "twice-reach")
VLM = "masp/demo/tiny_vlm/weights"
PUBLISHED = (
    *("stage1.num_epochs=3", "stage1.learning_rate=1e-5", "stage1.global_batch_size=8"),
    *("stage2.num_epochs=1", "stage2.learning_rate=5e-6", "stage2.global_batch_size=8"),
)


def settings_of(method: str, size: int) -> list[str]:
    """The settings of a method for so many training images, validation images included."""
    if method == "demo":
        return []
    if method == "published":
        return list(PUBLISHED)
    scales, held_out, found = read_scales(VLM), size // 10, []
    for stage, rms in (("stage1", scales.stage1), ("stage2", scales.stage2)):
        rms *= {"half-reach": 0.5, "twice-reach": 2.0}.get(method, 1.0)
        sizes = stage_sizes(stage, size - held_out, rms)
        if method == "half-steps":
            sizes = stage_sizes(stage, size - held_out, rms, num_epochs=max(1, sizes.num_epochs // 2))
        names = ("num_epochs", "global_batch_size", "learning_rate", "warmup_ratio", "validate_every", "patience")
        found += [f"{stage}.{name}={getattr(sizes, name)}" for name in names]
        found += [f"{stage}.checkpoint_every={sizes.validate_every}", f"{stage}.validation_size={held_out}"]
    return found


def run(method: str, size: int, seed: int, directory: Path) -> dict:
    """Train and score once; the images and their features are shared by the methods."""
    shared, out = directory / f"{size}-{seed}", directory / f"{size}-{seed}" / method
    common = [
        *("--config", "configs/demo.yaml", f"seed={seed}", f"output_dir={out}", f"dataset.root={shared}/data"),
        *(f"cache.dir={shared}/cache", "engine.num_threads=1", "extract.num_threads=1", *settings_of(method, size)),
    ]
    data = ["make-demo-data", f"{shared}/data", "--num-train", size, "--num-test", NUM_TEST, "--seed", seed]
    commands = (data, ["extract", *common], ["train", "--stage", "stage1", *common])
    started = time.monotonic()
    for command in (*commands, ["train", "--stage", "stage2", *common], ["evaluate", *common]):
        subprocess.run([sys.executable, "-m", "masp", *map(str, command)], check=True)
    metrics = json.loads((out / "evaluate" / "metrics.json").read_text())
    steps = {stage: json.loads((out / stage / "status.json").read_text())["step"] for stage in ("stage1", "stage2")}
    return {
        "method": method, "size": size, "seed": seed, "accuracy": metrics["accuracy"], "steps": steps,
        "minutes": (time.monotonic() - started) / 60,
    }  # fmt: skip


def table(runs: Sequence[dict]) -> list[str]:
    """The accuracies as a table in Markdown."""
    methods = (*METHODS, *(name for name in VARIANTS if any(run["method"] == name for run in runs)))
    lines = ["| training images | " + " | ".join(methods) + " |", "|---|" + "---|" * len(methods)]
    for size in sorted({run["size"] for run in runs}):
        cells = []
        for method in methods:
            found = [run["accuracy"] for run in runs if (run["size"], run["method"]) == (size, method)]
            each = ", ".join(f"{accuracy:.3f}" for accuracy in found)
            cells.append(f"{statistics.mean(found):.3f} ({each})" if found else "")
        lines.append(f"| {size:,} | " + " | ".join(cells) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[140, 1000, 4000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=(*METHODS, *VARIANTS))
    parser.add_argument("--dir", type=Path, default=Path("outputs/sizes"))
    arguments = parser.parse_args()
    arguments.dir.mkdir(parents=True, exist_ok=True)
    path = arguments.dir / "sizes.json"
    runs: list[dict] = json.loads(path.read_text()) if path.is_file() else []
    done = {(run["size"], run["seed"], run["method"]) for run in runs}
    for size in arguments.sizes:
        for seed in arguments.seeds:
            for method in arguments.methods:
                if (size, seed, method) not in done:
                    runs.append(run(method, size, seed, arguments.dir))
                    path.write_text(json.dumps(runs, indent=1) + "\n")
                    print("\n".join(table(runs)), flush=True)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
