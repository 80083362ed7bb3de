"""Runs the demo with several seeds: is MASP better, and by more than chance?

    python benchmarks/demo_seeds.py [--seeds 1 2 3] [--dir outputs/demo-seeds]

Each seed draws its own images and trains from scratch. Prints a table of all variants per seed with mean and standard
deviation, and whether each required margin holds; writes `seeds.json`. About six minutes per seed on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

VARIANTS = ("zero_shot", "linear_probe", "soft_prompt_only", "aspects_only", "masp", "best_possible")
MIN_OVER_ZERO_SHOT = 0.25
MIN_SHARE_OF_BEST = 0.80


def run_seed(seed: int, directory: Path) -> dict:
    """Run the demo with one seed in its own directory, and read its summary."""
    out = directory / f"seed-{seed}"
    command = [
        *(sys.executable, "-m", "masp.cli", "demo", f"seed={seed}", f"output_dir={out}"),
        *(f"dataset.root={out}/data", f"cache.dir={out}/cache"),
    ]
    subprocess.run(command, check=True)
    return json.loads((out / "summary.json").read_text())


def margin(runs: list[dict], other: str) -> tuple[float, float]:
    """Mean advantage of MASP over a variant, and the half-width of its 95 % interval over all test images."""
    gain = statistics.mean(r["masp"]["accuracy"] - r[other]["accuracy"] for r in runs)
    variance = 0.0
    for run in runs:
        for name in ("masp", other):
            accuracy, number = run[name]["accuracy"], run[name]["num_samples"]
            variance += accuracy * (1 - accuracy) / number
    return gain, 1.96 * math.sqrt(variance) / len(runs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--dir", type=Path, default=Path("outputs/demo-seeds"))
    arguments = parser.parse_args()
    runs = [run_seed(seed, arguments.dir) for seed in arguments.seeds]

    print(f"\n{'':<18}" + "".join(f"{f'seed {s}':>9}" for s in arguments.seeds) + f"{'mean':>9}{'spread':>9}")
    for name in VARIANTS:
        values = [run[name]["accuracy"] for run in runs]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        cells = "".join(f"{v:>9.3f}" for v in [*values, statistics.mean(values), spread])
        print(f"{name:<18}{cells}")
    share = statistics.mean(r["masp"]["accuracy"] / r["best_possible"]["accuracy"] for r in runs)
    checks = {
        f"MASP over zero-shot by at least {MIN_OVER_ZERO_SHOT:.2f}": margin(runs, "zero_shot")[0] >= MIN_OVER_ZERO_SHOT,
        f"MASP at least {MIN_SHARE_OF_BEST:.2f} of the best possible ({share:.3f})": share >= MIN_SHARE_OF_BEST,
    }
    for other in ("soft_prompt_only", "aspects_only", "linear_probe"):
        gain, half = margin(runs, other)
        checks[f"MASP over {other} by more than the interval ({gain:+.3f} ± {half:.3f})"] = gain > half
    print()
    for text, holds in checks.items():
        print(f"{'yes' if holds else 'NO ':<4}{text}")
    arguments.dir.mkdir(parents=True, exist_ok=True)
    path = arguments.dir / "seeds.json"
    path.write_text(json.dumps({"seeds": arguments.seeds, "runs": runs, "checks": checks}, indent=1) + "\n")
    print(f"\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
