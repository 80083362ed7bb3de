"""Compares the speed of two versions of MASP, each a checkout with its own code and its own benchmarks/gpu.py.

    git worktree add ../before COMMIT
    python benchmarks/versions.py --before ../before --tokenizer DIR [--json FILE]

On a CPU in fp32, with VLMs of random weights (hidden 256, 4 layers, encoder 4 x 256, the family's vocabulary) and
images of 640 x 400: extraction, both stages of training, and evaluation from the cache, as `benchmarks/gpu.py` runs its
side "masp". Both versions are open at the same time, in a process of one thread each, and take turns: before, after,
after, before. Other load only adds to what a turn takes, so the fastest turn of a process counts. Processes of the same
code differ by a few per cent, for as long as they live, so several pairs of processes are measured (`--pairs`). A line
gives the fastest CPU milliseconds per sample of both versions, and the median over the pairs of after / before, in CPU
time (with its range) and in wall time: above 1, the later version is slower.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
PARTS = ("extraction", "stage1", "stage2", "evaluation")
MODELS = ("qwen2-vl-7b", "qwen2.5-vl-7b")


class Version:
    """A process that runs the code of a checkout.

    Args:
        checkout: Its directory.
        settings: What `serve` takes.
    """

    def __init__(self, checkout: Path, settings: dict[str, Any]):
        environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        # -P: what lies beside this script belongs to this version alone
        command = [sys.executable, "-P", __file__, "--serve", json.dumps(settings | {"checkout": str(checkout)})]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=checkout
        )

    def __call__(self, part: str, seconds: float) -> dict[str, float]:
        """Run a part for at least this long; returns its samples, and seconds of wall and CPU time."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{part} {seconds}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"a version ended with code {self.process.wait()} in {part}")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def serve(settings: dict[str, Any]) -> None:
    """Measure the version on PYTHONPATH, part by part as lines on stdin ask for."""
    import torch

    import masp
    from benchmarks import gpu
    from benchmarks.throughput import save_untrained

    assert Path(masp.__file__).is_relative_to(settings["checkout"]), masp.__file__
    torch.set_num_threads(1)
    options = argparse.Namespace(
        device="cpu", size=tuple(settings["size"]), workers=0, threads=1, batch=settings["batch"],
        micro_batch=settings["batch"], evaluation_batch=settings["batch"],
    )  # fmt: skip
    config = gpu.make_config(Path(settings["directory"]), Path(settings["vlm"]), Path(settings["images"]), options)
    config = dataclasses.replace(
        config,
        engine=dataclasses.replace(config.engine, precision="fp32"),
        cache=dataclasses.replace(config.cache, dtype="fp32"),
    )
    sides: dict[str, Any] = {}

    def opened(part: str) -> Any:
        if part == "extraction":
            return gpu.extraction_sides(config, options)["masp"]()
        if part == "evaluation":
            return gpu.evaluation_sides(config, options)["masp"]()
        side = gpu.training_sides(config, part, options)["masp"]()
        save_untrained(config, part)  # for the parts behind it
        return side

    for line in sys.stdin:
        part, seconds = line.split()
        if part not in sides:
            sides[part] = opened(part)
            sides[part].run(0.0)
        cpu = time.process_time()
        done = sides[part].run(float(seconds))
        print(json.dumps({
            "samples": done.samples, "seconds": done.seconds, "cpu_seconds": time.process_time() - cpu,
        }), flush=True)  # fmt: skip


def take_turns(before: Version, after: Version, part: str, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Fastest CPU and wall seconds per sample of a part, each of both versions."""
    for version in (before, after):
        version(part, 0.0)
    turns: dict[Version, list[dict[str, float]]] = {before: [], after: []}
    for number in range(rounds):
        for version in (before, after) if number % 2 == 0 else (after, before):
            turns[version].append(version(part, seconds))
    return {
        name: [min(turn[key] / turn["samples"] for turn in turns[version]) for version in (before, after)]
        for name, key in (("cpu", "cpu_seconds"), ("wall", "seconds"))
    }


def summary(pairs: list[dict[str, list[float]]]) -> dict[str, Any]:
    """Ratios over all pairs of processes."""
    found: dict[str, Any] = {}
    for name in ("cpu", "wall"):
        ratios = [after / before for before, after in (pair[name] for pair in pairs)]
        before, after = (min(pair[name][which] for pair in pairs) for which in (0, 1))
        found[name] = {"before": before, "after": after, "ratio": statistics.median(ratios), "ratios": ratios}
    return found


def show(model: str, part: str, row: dict[str, Any]) -> str:
    """A line of the table."""
    cpu, wall = row["cpu"], row["wall"]
    return (
        f"{model:<14}{part:<11}{1e3 * cpu['before']:>9.1f}{1e3 * cpu['after']:>9.1f}"
        f"{cpu['ratio']:>8.3f} ({min(cpu['ratios']):.3f} to {max(cpu['ratios']):.3f}){wall['ratio']:>8.3f}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="DIR", help="checkout of the earlier version")
    parser.add_argument("--after", type=Path, metavar="DIR", default=HERE, help="of the later one (default: this one)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--scale", choices=("small", "tiny"), default="small")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="of the Qwen2-VL family (default: a small one)")
    for name, default, what in (
        ("pairs", 5, "pairs of processes"), ("rounds", 5, "turns of each process"),
        ("images", 30, "images to extract"), ("width", 640, "of the images"),
        ("height", 400, "of the images"), ("batch", 24, "images per step"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} ({default})")
    parser.add_argument("--seconds", type=float, default=2.0, help="per turn (extraction always takes all images)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--serve", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        serve(args.serve)
        return 0
    if not args.before or not (args.before / "benchmarks" / "gpu.py").is_file():
        parser.error("--before must be a checkout that has benchmarks/gpu.py")
    from benchmarks.gpu import make_images
    from benchmarks.random_vlm import make_vlm

    size, found = (args.width, args.height), {}
    print(f"{'':<25}{'ms of CPU a sample':>18}")
    print(f"{'':<25}{'before':>9}{'after':>9}{'CPU ratio (range)':>25}{'wall':>8}")
    for model in args.models:
        with tempfile.TemporaryDirectory(prefix="masp-versions-") as base:
            directory = Path(base)
            shared = {
                "vlm": str(make_vlm(directory / "vlm", model, args.tokenizer, args.scale, weights=True)),
                "images": str(make_images(directory / "images", args.images * 4 // 5, args.images // 5, size)),
                "size": size, "batch": args.batch,
            }  # fmt: skip
            measured: dict[str, list[dict[str, list[float]]]] = {part: [] for part in args.parts}
            for pair in range(args.pairs):
                versions = []
                for name in ("before", "after"):
                    own = directory / f"{name}-{pair}"
                    own.mkdir()
                    versions.append(Version(getattr(args, name).resolve(), shared | {"directory": str(own)}))
                try:
                    for part in args.parts:
                        measured[part].append(take_turns(*versions, part, args.rounds, args.seconds))
                finally:
                    for version in versions:
                        version.close()
            for part, pairs in measured.items():
                found[f"{model} {part}"] = summary(pairs)
                print(show(model, part, found[f"{model} {part}"]), flush=True)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    if "--serve" not in sys.argv:
        sys.path.insert(0, str(HERE))
    sys.exit(main())
