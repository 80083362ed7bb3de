"""Measures every part of the pipeline on one GPU, next to the published procedure and the limits of the device.

    python benchmarks/gpu.py [--models qwen2-vl-7b,qwen3-vl-8b,internvl3-8b,gemma3-4b] [--json FILE] [--profile DIR]

To check on a CPU that it runs:

    python benchmarks/gpu.py --device cpu --scale tiny

It uses VLMs of published sizes (tests/vlm_sizes.py) in bf16, with random weights that are drawn on the GPU, and images
of 640 x 480. It needs no network, and in the temporary directory (`--dir`) up to 13 GB, for InternVL3 31 GB. The
measured code is the real code of extraction, training and scoring:

- extraction: `masp extract`, from JPEG files to a finished cache. "encoder": its encoder alone, on preprocessed images.
- stage1, stage2: optimizer steps of `masp train`, fed from that cache by its DataLoader workers.
- evaluation: the likelihood of all categories, with features from the cache.
- published: the same parts as the published code runs them (benchmarks/published.py): one image at a time, the encoder
  every time, logits at every position. Only with the families of Qwen2-VL and Qwen2.5-VL, which it can be run with.

A sample is one aspect of an image in stage 1, and an image in stage 2. TFLOP/s count the operations that a side's own
procedure needs (`masp.vlm.cost`), so a ratio of rates may be larger than the ratio of TFLOP/s.
Memory is the peak of what the side itself allocates; on a CPU, it is the peak resident size of the process. The sides
take turns, and the figures are medians over the rounds. Exit codes: 0 done, 1 a side could not be measured, 2 wrong
input.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, the repository is not on the path

from benchmarks.sides import Done, Side, limits, measure_sides, stepwise, synchronize

CATEGORIES = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")
ANSWERS = {
    "facial_expression": "smile", "object": ["dog", "tree"], "scene": "beach", "human_action": "running",
    "brightness": 0.6, "colorfulness": 0.3,
}  # fmt: skip
PARTS = ("extraction", "stage1", "stage2", "evaluation")
NUM_DISTINCT = 32
"""Number of distinct images; the others are copies under other names."""


def make_images(directory: Path, num_train: int, num_test: int, size: tuple[int, int]) -> Path:
    """Write smooth random JPEG files with annotations, the categories in turn."""
    from PIL import Image

    random = np.random.default_rng(0)
    data = []
    for _ in range(min(NUM_DISTINCT, num_train + num_test)):
        small = random.integers(0, 256, (max(1, size[1] // 16), max(1, size[0] // 16), 3), dtype=np.uint8)
        path = directory / "one.jpg"
        directory.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
        data.append(path.read_bytes())
        path.unlink()
    for split, count in (("train", num_train), ("test", num_test)):
        for number in range(count):
            category = CATEGORIES[number % len(CATEGORIES)]
            path = directory / split / category / f"{split}{number:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data[number % len(data)])
            notes = directory / "annotation" / category / f"{path.stem}.json"
            notes.parent.mkdir(parents=True, exist_ok=True)
            notes.write_text(json.dumps(ANSWERS))
    return directory


def make_config(directory: Path, vlm: Path, images: Path, args: argparse.Namespace):
    """The configuration of all parts: the defaults, except for sizes and paths."""
    from masp.config import load_config

    readers = min(args.workers, 4)
    stage = {"global_batch_size": args.batch, "micro_batch_size": args.micro_batch, "num_epochs": 100_000}
    run = directory / "run"
    return load_config(
        None,
        [
            f"output_dir={run}", f"vlm.path={vlm}", f"dataset.root={images}",
            f"dataset.categories=[{','.join(CATEGORIES)}]", f"cache.dir={directory / 'cache'}", "cache.num_shards=16",
            f"extract.num_workers={args.workers}", f"extract.num_threads={args.threads}",
            f"extract.device={args.device}", f"engine.device={args.device}", f"engine.num_workers={readers}",
            f"evaluate.num_workers={readers}", f"evaluate.batch_size={args.evaluation_batch}",
            *(f"{name}.{key}={value}" for name in ("stage1", "stage2") for key, value in stage.items()),
        ],
    )  # fmt: skip


def runs_published(config) -> bool:
    """Whether the published procedure can be run with the VLM."""
    from benchmarks.random_vlm import PUBLISHED
    from masp.vlm.families import family_of

    return family_of(config.vlm.path).model_type in PUBLISHED


def flops_of_image(config, preprocessor, size: tuple[int, int]) -> float:
    """FLOP of the encoder for an image of a width and height."""
    from masp.errors import InputError
    from masp.vlm.cost.counting import encoder_curve, known_encoder
    from masp.vlm.cost.flops import encoder_flops
    from masp.vlm.families import load_config as load_vlm_config
    from masp.vlm.processor import blank

    path = Path(config.vlm.path)
    if known := known_encoder(load_vlm_config(path)):
        return encoder_flops(known, preprocessor.grid(*size))
    curve = encoder_curve(path, [(1.0, size)], lambda *size: preprocessor(blank(*size)))
    if curve.is_estimate:
        raise InputError(f"{path}: the operations of its encoder cannot be counted, so no share of a limit is known")
    return curve.flops(1.0)


def counted_language(config):
    """What the VLM's decoder takes per token and attended pair."""
    from masp.errors import InputError
    from masp.vlm.cost.counting import language_cost

    cost = language_cost(config.vlm.path)
    if getattr(cost, "is_estimate", False):
        raise InputError(
            f"{config.vlm.path}: the operations of its decoder cannot be counted, so no share of a limit is known"
        )
    return cost


def extraction_sides(config, args: argparse.Namespace) -> dict[str, Callable[[], Side]]:
    """Sides of extraction: the whole job, its encoder alone, and one image at a time."""
    from dataclasses import replace

    from benchmarks.published import PublishedEncoder
    from benchmarks.random_vlm import draw_part
    from masp.data.datasets import dataset_of
    from masp.extraction.image_stream import ImageDataset, batches
    from masp.extraction.job import extract
    from masp.extraction.progress import TIMINGS
    from masp.vlm.preprocessor import load_preprocessor
    from masp.vlm.vision import load_vision_half

    samples = dataset_of(config).samples
    preprocessor = load_preprocessor(config.vlm.path)
    tokens = preprocessor.num_tokens(*args.size)
    flops = flops_of_image(config, preprocessor, args.size)
    numbers = itertools.count()

    def job() -> Side:
        def run(_: float) -> Done:
            """Extract the whole dataset; the first run writes the cache that training reads."""
            number = next(numbers)
            directory = Path(f"{config.cache.dir}-{number}" if number else config.cache.dir)
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                extract(replace(config, cache=replace(config.cache, dir=str(directory))))
            # measured by the job itself, starting when the encoder is loaded
            seconds = json.loads((directory / TIMINGS).read_text().splitlines()[-1])["seconds"]
            if number:
                shutil.rmtree(directory)
            return Done(len(samples), tokens * len(samples), flops * len(samples), seconds)

        return Side(run, warm_ups=1)

    class Counted:
        num_tokens, flops = 0, 0.0

    def encoder() -> Side:
        vision = load_vision_half(config.vlm.path, torch.bfloat16, args.device, config.vlm.attention)
        images = ImageDataset(samples, preprocessor, config.vlm)
        found = next(batches((images[n] for n in range(len(images))), config.extract.batch_tokens))
        ready = [image.pin_memory() if args.device == "cuda" else image for image in found]
        counted = Counted()

        def step() -> int:
            vision.encode([p.inputs for p in ready], [p.layout for p in ready])
            counted.num_tokens += tokens * len(ready)
            counted.flops += flops * len(ready)
            return len(ready)

        return stepwise(bounded(step, args.device), counted, args.device)

    def published() -> Side:
        half = draw_part(config.vlm.path, "vision", torch.bfloat16, args.device, config.vlm.attention)
        encode, counted = PublishedEncoder(config, half.model), Counted()
        paths = itertools.cycle(sample.image for sample in samples)

        def step() -> int:
            encode(next(paths)).cpu()
            counted.num_tokens += tokens
            counted.flops += flops
            return 1

        return stepwise(step, counted, args.device)

    return {"masp": job, "encoder": encoder} | ({"published": published} if runs_published(config) else {})


def bounded(step: Callable[[], int], device: str) -> Callable[[], int]:
    """The same step, at most one ahead of the GPU; otherwise far more steps would be launched than run in the time."""
    if device != "cuda":
        return step
    events: list[torch.cuda.Event] = []

    def stepped() -> int:
        count = step()
        events.append(torch.cuda.Event())
        events[-1].record()
        if len(events) > 1:
            events.pop(0).synchronize()
        return count

    return stepped


def training_sides(config, stage: str, args: argparse.Namespace) -> dict[str, Callable[[], Side]]:
    """Sides of a training stage."""
    from benchmarks.published import PublishedTraining
    from benchmarks.random_vlm import draw_whole
    from benchmarks.throughput import Ours

    counted_language(config)  # a training step counts with it

    def ours() -> Side:
        side = Ours(config, stage, args.device)
        return stepwise(side, side, args.device, side.close)

    def published() -> Side:
        side = PublishedTraining(config, stage, draw_whole(config.vlm.path, torch.bfloat16, args.device))
        return stepwise(side, side, args.device)

    return {"masp": ours} | ({"published": published} if runs_published(config) else {})


def evaluation_sides(config, args: argparse.Namespace) -> dict[str, Callable[[], Side]]:
    """Sides of scoring the emotion of images: from the cache, and live."""
    import copy

    from benchmarks.published import PublishedScoring
    from benchmarks.random_vlm import draw_whole
    from masp.artifacts.trained import default_aspect_path, default_soft_prompt_path, load_trained
    from masp.data.datasets import dataset_of
    from masp.data.questions import questions_of
    from masp.evaluation.feed import open_feed
    from masp.evaluation.scorers import ScoreRequest, TargetScorer
    from masp.models.candidates import candidate_tree
    from masp.models.sequence import build_sequence
    from masp.vlm.cost.flops import aspect_module_flops, language_flops

    questions = questions_of(config)

    def ours() -> Side:
        feed = open_feed(config)
        trained = load_trained(config, feed.hidden_size, feed.model)
        scorer = TargetScorer(config, trained, questions, CATEGORIES, args.device)
        language = counted_language(config)
        with closing(feed.batches(feed.keys[:1], 1)) as batches:
            image_layout = next(batches)[0].layout
        length = len(build_sequence(
            scorer.prompt, scorer.question, None, num_aspect_tokens=len(scorer.aspects) * scorer.num_queries,
            image=image_layout,
            num_soft_tokens=scorer.num_soft_tokens, layout=scorer.layout,
        ))  # fmt: skip
        nodes = len(candidate_tree(scorer.candidates).ids)
        flops = language_flops(language, suffix=length + nodes, num_logits=nodes + 1, gradient=False)
        modules = scorer.model.aspect_modules
        flops += len(modules.aspects) * aspect_module_flops(
            language.width, modules.num_queries, image_layout.num_tokens, gradient=False
        )
        size = config.evaluate.batch_size
        rate = 0.0

        def run(seconds: float) -> Done:
            """Score as many images as should take this long at the last rate; starting to read ahead takes time."""
            nonlocal rate
            count = max(size, -(-int(rate * seconds) // size) * size)
            keys = list(itertools.islice(itertools.cycle(feed.keys), count))
            synchronize(args.device)
            started = time.perf_counter()
            with closing(feed.batches(keys, size)) as batches:
                for items in batches:
                    scorer.score([ScoreRequest(i.features, i.layout) for i in items])
            synchronize(args.device)
            spent = time.perf_counter() - started
            rate = count / spent
            return Done(count, count * (length + nodes), count * flops, spent)

        def once() -> None:
            with closing(feed.batches(feed.keys[:size], size)) as batches:
                items = next(batches)
            scorer.score([ScoreRequest(i.features, i.layout) for i in items])

        return Side(run, once)

    def published() -> Side:
        released = copy.deepcopy(config)
        released.checkpoint.aspect = str(default_aspect_path(config).with_suffix(".pth"))
        released.checkpoint.soft_prompt = str(default_soft_prompt_path(config).with_suffix(".pt"))
        model = draw_whole(config.vlm.path, torch.bfloat16, args.device)
        score = PublishedScoring(released, questions.target_first(CATEGORIES), model)
        samples = [s for s in dataset_of(config).samples if s.split == config.evaluate.split]
        paths = itertools.cycle(sample.image for sample in samples)
        return stepwise(lambda: len(score([next(paths)])), score, args.device)

    return {"masp": ours} | ({"published": published} if runs_published(config) else {})


def measure_model(model: str, directory: Path, images: Path, args: argparse.Namespace, report: Callable) -> None:
    """Measure all parts with one VLM; `report` is called with the name and the results of each part."""
    from benchmarks.random_vlm import drawn_weights, make_vlm
    from benchmarks.throughput import save_untrained

    config = make_config(directory, make_vlm(directory / "vlm", model, args.tokenizer, args.scale), images, args)
    with drawn_weights():
        for part in PARTS:
            if part in ("stage1", "stage2"):
                sides = training_sides(config, part, args)
            else:
                sides = (extraction_sides if part == "extraction" else evaluation_sides)(config, args)
            traces = args.profile and args.profile / f"{model}-{part}"
            report(part, measure_sides(sides, args.device, args.rounds, args.seconds, traces))
            if part in ("stage1", "stage2"):
                save_untrained(config, part, args.device)
            if args.device == "cuda":
                gc.collect()
                torch.cuda.empty_cache()


def add_utilization(row: dict, best: dict) -> None:
    """Add the model FLOPs utilization of a side, relative to the measured matrix product and to the data sheet."""
    sheet = best["data_sheet_tflops"]
    row["utilisation_of_product"] = row["tflops"] / best["matmul_tflops"]
    row["utilisation_of_data_sheet"] = row["tflops"] / sheet if sheet else None


def show(model: str, part: str, found: dict[str, dict]) -> Iterator[str]:
    """Lines of the table for one part."""
    for side, row in found.items():
        name = f"{model:<14}{part:<11}{side:<10}"
        if "error" in row:
            yield f"{name} not measured: {row['error']}"
            continue
        ratio = ""
        if side == "published" and "samples_per_s" in found["masp"]:
            ratio = f"  masp {found['masp']['samples_per_s'] / row['samples_per_s']:.1f} times as fast"
        of_sheet = row["utilisation_of_data_sheet"]
        yield (
            f"{name}{row['samples_per_s']:>11.2f}{row['tokens_per_s']:>11.0f}{row['tflops']:>9.3g}"
            f"{row['utilisation_of_product']:>8.1%}{'-' if of_sheet is None else f'{of_sheet:.1%}':>8}"
            f"{row['peak_memory_gb']:>9.2f}{ratio}"
        )


HEADER = (
    f"{'':<35}{'samples/s':>11}{'tokens/s':>11}{'TFLOP/s':>9}{'product':>8}{'sheet':>8}{'GB':>9}"
    "    (product, sheet: share of the measured matrix product and of the data sheet)"
)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    from benchmarks.random_vlm import MODELS, SCALES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", metavar="NAME", default=["qwen2-vl-2b", "qwen2-vl-7b"], help=f"of {', '.join(MODELS)}"
    )
    parser.add_argument(
        "--scale", choices=SCALES, default="real", help="other sizes of the same families, to check that all runs"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="of the models' family (default: a small one)")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="per side and round (extraction always processes all images)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    for name, default, what in (
        ("images", 640, "images to extract"), ("width", 640, "of the images"), ("height", 480, "of the images"),
        ("batch", 32, "images per optimizer step"), ("micro-batch", 16, "images per micro-batch"),
        ("evaluation-batch", 16, "images scored at once"), ("product", 8192, "matrix size for the measured limit"),
        ("copied", 4000, "megabytes copied for the measured limit"), ("threads", 2, "CPU threads"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} ({default})")
    parser.add_argument(
        "--workers", type=int, help="reader processes (default: one per core with a GPU, otherwise none)"
    )
    parser.add_argument("--dir", type=Path, help="parent of the working directory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the results, updated after every part")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="directory for a trace of one step of every side")
    args = parser.parse_args(argv)
    args.models = [name for names in args.models for name in names.split(",")]
    if unknown := [name for name in args.models if name not in MODELS]:
        parser.error(f"--models: {unknown[0]!r} is not one of {', '.join(MODELS)}")
    if args.workers is None:
        args.workers = min(os.cpu_count() or 1, 16) if args.device == "cuda" else 0
    args.size = (args.width, args.height)
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            "error: --device cuda: torch finds no GPU; to check that it runs, use --device cpu --scale tiny",
            file=sys.stderr,
        )
        return 2
    from masp.errors import MaspError

    for directory in (args.dir, args.json and args.json.parent):
        if directory:
            directory.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    started = time.monotonic()
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    best = limits(args.device, args.product, args.copied)
    found = {
        "device": name, "cores": os.cpu_count(), "torch": torch.__version__, "limits": best,
        "arguments": {key: str(value) for key, value in vars(args).items()}, "models": {},
    }  # fmt: skip
    copies = f"copy {best['copy_gb_per_s']:.0f} GB/s"
    if "to_device_gb_per_s" in best:
        copies += f", to the device {best['to_device_gb_per_s']:.0f} GB/s"
    print(f"{name}: bf16 matrix product {best['matmul_tflops']:.3g} TFLOP/s, {copies}\n{HEADER}", flush=True)
    try:
        with tempfile.TemporaryDirectory(dir=args.dir, prefix="masp-gpu-") as base:
            directory = Path(base)
            num_test = max(1, args.images // 4)
            images = make_images(directory / "images", max(1, args.images - num_test), num_test, args.size)
            for model in args.models:
                parts = found["models"][model] = {}

                def report(part: str, sides: dict, model: str = model, parts: dict = parts) -> None:
                    parts[part] = sides
                    for row in sides.values():
                        if "error" not in row:
                            add_utilization(row, best)
                    found["seconds"] = round(time.monotonic() - started, 1)
                    print("\n".join(show(model, part, sides)), flush=True)
                    if args.json:
                        args.json.write_text(json.dumps(found, indent=1) + "\n")

                (directory / model).mkdir()
                measure_model(model, directory / model, images, args, report)
                shutil.rmtree(directory / model)
    except MaspError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{time.monotonic() - started:.0f} s")
    rows = [row for parts in found["models"].values() for sides in parts.values() for row in sides.values()]
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
