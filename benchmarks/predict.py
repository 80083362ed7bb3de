"""Compares `masp predict --output` with `masp evaluate evaluate.source=live` on the same images.

    python benchmarks/predict.py --tokenizer DIR [--rounds 4] [--images 128] [--num-workers 2] [--json FILE]

The model is that of `benchmarks/evaluation.py`: Qwen2-VL's architecture with random weights, images of 640 x 400, eight
categories. Both read, decode, encode and score every image once, with the same batches, workers and threads, in whole
commands that load the VLM and write their results. They take turns (A B A B), so that other load on the machine affects
both; figures are medians of images per second. Target: predicting at least 0.9 times as fast.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TARGET = 0.9


def measure(arguments: argparse.Namespace, directory: Path) -> dict:
    """Measure both in turns; images per second, and their ratio."""
    from benchmarks.evaluation import make_config, make_images, make_vlm
    from masp.cli.main import main as masp
    from masp.config import save_config

    vlm = make_vlm(directory / "vlm", arguments.tokenizer, arguments.hidden, arguments.layers, arguments.vocabulary)
    images = make_images(directory / "images", arguments.images, (arguments.width, arguments.height))
    settings = [f"evaluate.batch_size={arguments.batch_size}", f"engine.num_threads={arguments.threads}"]
    config = make_config(directory, vlm, images, arguments.threads, settings)
    save_config(config, directory / "config.yaml")
    common = ["--config", str(directory / "config.yaml"), f"evaluate.num_workers={arguments.num_workers}"]
    rates: dict[str, list[float]] = {"evaluate": [], "predict": []}
    for number in range(arguments.rounds + 1):
        results, output = directory / f"evaluated{number}", directory / f"{number}.csv"
        commands = {
            "evaluate": ["evaluate", *common, "evaluate.source=live", f"evaluate.output_dir={results}"],
            "predict": ["predict", str(images / "test"), *common, "--output", str(output)],
        }
        for name, command in commands.items():
            started = time.perf_counter()
            if masp(command):
                raise SystemExit(f"masp {name} failed")
            if number:  # the first round warms up
                rates[name].append(arguments.images / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "images_per_second": medians,
        "rounds": rates,
        "ratio": medians["predict"] / medians["evaluate"],
        "images": arguments.images,
        "threads": arguments.threads,
        "num_workers": arguments.num_workers,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="directory with a tokenizer of the family")
    parser.add_argument("--dir", type=Path, help="parent of the working directory")
    parser.add_argument("--json", type=Path)
    numbers = {
        "rounds": 4, "threads": 1, "images": 128, "num-workers": 2, "batch-size": 16, "hidden": 256, "layers": 4,
        "vocabulary": 151_936, "width": 640, "height": 400,
    }  # fmt: skip
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.dir) as directory:
        found = measure(arguments, Path(directory))
    for name, rate in found["images_per_second"].items():
        print(f"{name:<10}{rate:>8.2f} images/s   rounds: {', '.join(f'{each:.2f}' for each in found['rounds'][name])}")
    print(f"predict is {found['ratio']:.2f} times as fast, target >= {TARGET}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main())
