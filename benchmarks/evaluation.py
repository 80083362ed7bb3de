"""Compares evaluation from the cache by likelihood with evaluating one image at a time with `generate`.

    python benchmarks/evaluation.py --tokenizer DIR [--rounds 5] [--threads 2] [--dir DIR] [--json FILE]

A model with Qwen2-VL's architecture and random weights (hidden 256, 4 layers, vision 4 x 256, vocabulary 151,936;
fp32), images of 640 x 400, eight categories, the same threads for all sides. DIR holds a tokenizer of the family.

- masp: `masp evaluate` with default settings: features from the cache, the likelihood of all categories in one pass.
- published: a plain loop that follows the published procedure: for each image open, preprocess, encoder, aspect
  modules, and `generate` of up to 4 tokens with the logits of every position of the prompt. Target: masp at least 10
  times as fast.
- live generate: our own `evaluate.source=live evaluate.scoring=generate`, one image at a time. No target: it runs the
  same encoder and prompt as the published loop, but projects one position to the vocabulary instead of all.
- one at a time: our likelihood from the cache, with a separate pass for each category.

The sides take turns, so that other load on the machine affects all of them; figures are medians of seconds per image.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

TARGET = 10.0
CATEGORIES = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")


def make_vlm(directory: Path, tokenizer: Path, hidden: int, layers: int, vocabulary: int) -> Path:
    """A VLM of Qwen2-VL's architecture with random weights and a given tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration

    shutil.copytree(tokenizer, directory)
    words = AutoTokenizer.from_pretrained(directory)
    template = tokenizer / "chat_template.json"
    if not words.chat_template and template.is_file():
        (directory / "chat_template.jinja").write_text(json.loads(template.read_text())["chat_template"])
    names = ("vision_start", "vision_end", "image_pad", "video_pad", "im_end")
    ids = {name: words.convert_tokens_to_ids(f"<|{name}|>") for name in names}
    sections = [hidden // 32, hidden // 21, hidden // 8 - hidden // 32 - hidden // 21]
    text = {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 4 * hidden, "vocab_size": max(vocabulary, len(words)), "eos_token_id": ids["im_end"],
        "rope_parameters": {"rope_type": "default", "mrope_section": sections, "rope_theta": 1e6},
    }  # fmt: skip
    vision = {
        "depth": 4, "embed_dim": hidden, "num_heads": 4, "hidden_size": hidden, "mlp_ratio": 4, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
    }  # fmt: skip
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids["image_pad"], video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"], vision_end_token_id=ids["vision_end"],
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(config).save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps({
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3,
        "image_mean": [0.48, 0.45, 0.4], "image_std": [0.27, 0.26, 0.28], "rescale_factor": 1 / 255,
        "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056,
        "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2,
    }))  # fmt: skip
    return directory


def make_images(root: Path, count: int, size: tuple[int, int]) -> Path:
    """Smooth random JPEG files with the categories in turn, plus one training image, as every dataset has some."""
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(count + 1):
        split = "test" if number < count else "train"
        directory = root / split / CATEGORIES[number % len(CATEGORIES)]
        directory.mkdir(parents=True, exist_ok=True)
        small = random.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(directory / f"{number:04d}.jpg", quality=90)
    return root


def make_config(directory: Path, vlm: Path, images: Path, threads: int, overrides: Sequence[str]):
    """Write random aspect modules and a random soft prompt as released files; returns a configuration with them."""
    import torch

    from masp.config import load_config
    from masp.models.trainable import AspectModules, to_released
    from masp.vlm.families import load_config as load_vlm_config

    hidden = load_vlm_config(vlm).text_config.hidden_size
    settings = [
        f"vlm.path={vlm}", f"dataset.root={images}", f"dataset.categories=[{','.join(CATEGORIES)}]",
        f"cache.dir={directory / 'cache'}", "cache.dtype=fp32", "cache.num_shards=2", "extract.num_workers=0",
        f"extract.num_threads={threads}", "extract.device=cpu", "engine.device=cpu", "engine.precision=fp32",
        "evaluate.num_workers=0", "checkpoint.layout=after_image", f"checkpoint.aspect={directory / 'aspect.pth'}",
        f"checkpoint.soft_prompt={directory / 'soft_prompt.pt'}", *overrides,
    ]  # fmt: skip
    config = load_config(None, settings)
    torch.save(to_released(AspectModules(config.aspects, hidden)), directory / "aspect.pth")
    rows = {f"<|reserved_special_token_{i}|>": torch.randn(hidden) for i in range(32)}
    torch.save(rows, directory / "soft_prompt.pt")
    return config


def our_sides(config) -> dict[str, Callable[[int, int], int]]:
    """Our own sides: each scores samples `start` to `stop` of the split and returns their number."""
    import copy

    from masp.artifacts.trained import load_trained
    from masp.data.questions import questions_of
    from masp.evaluation.feed import open_feed
    from masp.evaluation.scorers import ScoreRequest, TargetScorer
    from masp.models.likelihood import score_categories
    from masp.models.sequence import build_sequence, make_batch

    live = copy.deepcopy(config)
    live.evaluate.source, live.evaluate.scoring, live.evaluate.batch_size = "live", "generate", 1
    questions = questions_of(config)

    def open_side(config):
        feed = open_feed(config)
        trained = load_trained(config, feed.hidden_size, feed.model)
        return feed, TargetScorer(config, trained, questions, feed.categories, "cpu")

    sides = {"masp": open_side(config), "live generate": open_side(live)}

    def whole(name: str) -> Callable[[int, int], int]:
        feed, scorer = sides[name]

        def score(start: int, stop: int) -> int:
            batches = feed.batches(feed.keys[start:stop], scorer.config.evaluate.batch_size)
            return sum(len(scorer.score([ScoreRequest(i.features, i.layout) for i in b])) for b in batches)

        return score

    def one_at_a_time(start: int, stop: int) -> int:
        feed, scorer = sides["masp"]
        count = 0
        for batch in feed.batches(feed.keys[start:stop], scorer.config.evaluate.batch_size):
            sequences = [
                build_sequence(
                    scorer.prompt, scorer.question, None, num_aspect_tokens=len(scorer.aspects) * scorer.num_queries,
                    image=item.layout, num_soft_tokens=scorer.num_soft_tokens, layout=scorer.layout,
                )
                for item in batch
            ]  # fmt: skip
            rows = make_batch(
                scorer.prompt, sequences, [i.features for i in batch], row_image=range(len(batch)), frozen_prefix=False
            )
            for candidate in scorer.candidates:
                score_categories(scorer.model, rows, [candidate], scorer.prompt.end)
            count += len(batch)
        return count

    return {"masp": whole("masp"), "live generate": whole("live generate"), "one at a time": one_at_a_time}


def measure(arguments: argparse.Namespace, directory: Path) -> dict:
    """Measure seconds per image of every side, and how many times faster masp is."""
    import torch

    from benchmarks.published import PublishedScoring, load_model
    from masp.data.questions import questions_of
    from masp.extraction.job import extract

    vlm = make_vlm(directory / "vlm", arguments.tokenizer, arguments.hidden, arguments.layers, arguments.vocabulary)
    images = make_images(directory / "images", arguments.images, (arguments.width, arguments.height))
    config = make_config(directory, vlm, images, arguments.threads, [f"evaluate.batch_size={arguments.batch_size}"])
    extract(config)
    torch.set_num_threads(arguments.threads)
    question = questions_of(config).target_first(CATEGORIES)
    loop = PublishedScoring(config, question, load_model(config.vlm.path))
    paths = sorted((images / "test").rglob("*.jpg"))
    sides = our_sides(config) | {"published": lambda start, stop: len(loop(paths[start:stop]))}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    # the slow sides score fewer images per round
    counts = {name: arguments.images if name in ("masp", "one at a time") else arguments.slow_images for name in sides}
    for number in range(arguments.rounds + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            done = side(0, counts[name])
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - started) / done)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    fastest = {name: min(values) for name, values in seconds.items()}
    others = [name for name in sides if name != "masp"]
    return {
        "seconds_per_image": medians,
        "images_per_second": {name: 1 / value for name, value in medians.items()},
        "times_as_fast": {name: medians[name] / medians["masp"] for name in others},
        "times_as_fast_in_the_fastest_rounds": {name: fastest[name] / fastest["masp"] for name in others},
        "threads": arguments.threads,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument(
        "--dir", type=Path, help="parent of the working directory (default: the system's temporary directory)"
    )
    parser.add_argument("--json", type=Path)
    numbers = {
        "rounds": 5, "threads": 2, "images": 32, "slow-images": 4, "batch-size": 16, "hidden": 256, "layers": 4,
        "vocabulary": 151_936, "width": 640, "height": 400,
    }  # fmt: skip
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.dir) as directory:
        found = measure(arguments, Path(directory))
    print(f"{'':<16}{'images/s':>10}{'masp is':>10}")
    for name, rate in found["images_per_second"].items():
        times = found["times_as_fast"].get(name)
        target = f"  times as fast, target >= {TARGET:.0f}" if name == "published" else ""
        print(f"{name:<16}{rate:>10.2f}{'' if times is None else f'{times:>10.1f}'}{target}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main())
