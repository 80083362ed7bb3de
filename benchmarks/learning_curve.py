"""How many labeled images the method needs on the demo world: a learning curve, with a linear probe on the same images.

    python benchmarks/learning_curve.py [--num-train 1000] [--fractions 0.05 0.1 0.25 0.5 1] [--seeds 1 2 3]

Draws images, then calls `masp sweep`. A small training set is seen in more epochs, up to `--max-epochs` times as many
as in `configs/demo.yaml`, so that the number of steps does not fall as fast as the number of images. Prints the table
of the curve; the figure is in `outputs/learning-curve/sweep`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

EPOCHS = {"stage1": 5, "stage2": 3}
"""Those of `configs/demo.yaml`."""


def members(fractions: Sequence[float], seeds: Sequence[int], max_times: int) -> list[str]:
    """A line per member, for `masp sweep --members`."""
    lines = []
    for fraction in fractions:
        times = min(max_times, round(1 / fraction))
        epochs = " ".join(f"{stage}.num_epochs={number * times}" for stage, number in EPOCHS.items())
        lines += [f"dataset.fraction={fraction} seed={seed} {epochs}" for seed in seeds]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-train", type=int, default=1000)
    parser.add_argument("--num-test", type=int, default=1000)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.05, 0.1, 0.25, 0.5, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--max-epochs", type=int, default=4, help="times the epochs of the largest training set")
    parser.add_argument("--dir", type=Path, default=Path("outputs/learning-curve"))
    asked = parser.parse_args(arguments)
    started = time.monotonic()
    asked.dir.mkdir(parents=True, exist_ok=True)
    listed, data = asked.dir / "members.txt", asked.dir / "data"
    listed.write_text("\n".join(members(asked.fractions, asked.seeds, asked.max_epochs)) + "\n")
    masp = [sys.executable, "-m", "masp.cli"]
    sizes = ["--num-train", str(asked.num_train), "--num-test", str(asked.num_test)]
    subprocess.run([*masp, "make-demo-data", str(data), *sizes, "--seed", "3407"], check=True)
    settings = [
        *(f"output_dir={asked.dir}", f"dataset.root={data}", f"cache.dir={asked.dir / 'cache'}", "order_seed=3407"),
        *("evaluate.linear_probe=true", "evaluate.explain=none", "evaluate.attention=false"),
    ]
    subprocess.run([*masp, "sweep", "--config", "configs/demo.yaml", "--members", str(listed), *settings], check=True)
    print(f"{time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
