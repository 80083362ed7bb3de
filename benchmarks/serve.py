"""Compares the throughput of `masp serve` with that of `Model.predict`, which it must nearly reach.

    python benchmarks/serve.py [--vlm DIR] [--rounds 5] [--clients 64] [--threads 1] [--dir DIR] [--json FILE]

Aspect modules and soft prompt with random numbers around the demo's VLM, or another one; JPEG files of 640 x 400, fp32,
the same threads and batch size for both sides.

- predict: `Model.predict` over all images in this process.
- serve: the same images sent to `masp serve`, a process of its own on this machine, by as many clients at once, which
  share the machine's cores with it. Target: at least 0.9 times the throughput of the other side.

The sides take turns (A B A B …), so that other load on the machine affects both; figures are medians. Every answer of
the server is compared with that of the other side.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TARGET = 0.9
TOLERANCE = 1e-5
"""Log-likelihoods of both sides may differ by so much (nats)."""


def make_run(directory: Path, vlm: Path, images: Path, threads: int, batch_size: int) -> Path:
    """A run directory that names random aspect modules and a random soft prompt."""
    from benchmarks.evaluation import make_config
    from masp.config import save_config

    run = directory / "run"
    run.mkdir()
    settings = [f"output_dir={run}", f"evaluate.batch_size={batch_size}", f"engine.num_threads={threads}"]
    config = make_config(directory, vlm, images, threads, settings)
    save_config(config, run / "config.yaml")
    return run


@contextmanager
def serving(run: Path, threads: int, queue: int) -> Iterator[int]:
    """`masp serve` on a port, which is yielded."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "masp", "serve", str(run), "--port", "0", "--queue", str(queue)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            port = int(re.search(r":(\d+)[;/]", process.stdout.readline())[1])
            assert process.stdout.readline().startswith("ready")
            yield port
        finally:
            process.terminate()


def ask(port: int, images: Sequence[bytes], num_clients: int) -> list[dict[str, float]]:
    """The log-likelihoods of all images, by clients that each keep a connection and ask for one image after another."""
    found: list[dict[str, float]] = [{}] * len(images)
    numbers = iter(range(len(images)))
    lock = threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                connection.close()
                return
            connection.request("POST", "/predict", images[number], {"Content-Type": "image/jpeg"})
            answer = json.loads(connection.getresponse().read())
            found[number] = answer["log_likelihoods"]

    clients = [threading.Thread(target=client) for _ in range(num_clients)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    return found


def measure(arguments: argparse.Namespace, directory: Path) -> dict:
    """Images per second of both sides."""
    import torch

    import masp
    from benchmarks.evaluation import make_images

    torch.set_num_threads(arguments.threads)
    root = make_images(directory / "images", arguments.images, (arguments.width, arguments.height))
    images = [path.read_bytes() for path in sorted((root / "test").rglob("*.jpg"))]
    run = make_run(directory, arguments.vlm, root, arguments.threads, arguments.batch_size)
    model = masp.load(run)
    rates: dict[str, list[float]] = {"predict": [], "serve": []}
    largest = 0.0
    with serving(run, arguments.threads, max(128, 2 * arguments.clients)) as port:
        for number in range(arguments.rounds + 1):
            started = time.perf_counter()
            expected = model.predict(images, arguments.batch_size)
            between = time.perf_counter()
            found = ask(port, images, arguments.clients)
            ended = time.perf_counter()
            if number:  # the first round warms up
                rates["predict"].append(len(images) / (between - started))
                rates["serve"].append(len(images) / (ended - between))
            for one, other in zip(found, expected, strict=True):
                largest = max(largest, *(abs(one[name] - value) for name, value in other.log_likelihoods.items()))
    assert largest < TOLERANCE, f"answers differ by {largest}"
    medians = {name: statistics.median(values) for name, values in rates.items()}
    pairs = [served / predicted for predicted, served in zip(rates["predict"], rates["serve"], strict=True)]
    return {
        "images_per_second": medians,
        "ratio": medians["serve"] / medians["predict"],
        "ratios": pairs,
        "largest_difference": largest,
        "clients": arguments.clients,
        "batch_size": arguments.batch_size,
        "threads": arguments.threads,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    weights = Path(__file__).resolve().parents[1] / "masp" / "demo" / "tiny_vlm" / "weights"
    parser.add_argument("--vlm", type=Path, default=weights)
    parser.add_argument(
        "--dir", type=Path, help="parent of the working directory (default: the system's temporary directory)"
    )
    parser.add_argument("--json", type=Path)
    numbers = {
        "rounds": 5, "images": 256, "clients": 64, "batch-size": 16, "threads": 1, "width": 640, "height": 400,
    }  # fmt: skip
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.dir) as directory:
        found = measure(arguments, Path(directory))
    for name, rate in found["images_per_second"].items():
        print(f"{name:<8}{rate:>10.2f} images/s")
    print(f"serve / predict: {found['ratio']:.2f} (target >= {TARGET}); by round: ", end="")
    print(", ".join(f"{ratio:.2f}" for ratio in found["ratios"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main())
