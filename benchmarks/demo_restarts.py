"""The demo with restarts of stage 1 and a learning rate of stage 2 chosen on held-out images: how far from the best?

    python benchmarks/demo_restarts.py [--seeds 1,2,3,4,5] [--dir DIR] [--only NAMES] [--rates 1,4] [key=value …]

All seeds train on the same images: of the demo's 4,000 training images, 400 are replaced by a validation split. Stage 1
trains several initializations of every aspect module and keeps of each aspect the best by its held-out loss
(`stage1.restarts`). Stage 2 trains a soft prompt for each of several learning rates behind one pass of the prefix; the
rate with the lowest mean held-out loss over the seeds is taken for all of them. Then `masp study` trains and scores the
variants. Test images are looked at once, by the study. Everything resumes.

Writes `rates.json`, the tables of the study (`study/study.json`, `.csv`, `.tex`) and their plot. `--only masp` leaves
out the variants. Settings change the configuration of all runs, `stage1.restarts=6`.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import statistics
import sys
from pathlib import Path

from masp.artifacts.trained import default_aspect_path, default_soft_prompt_path
from masp.config import Config, load_config
from masp.demo.data import make_demo_data
from masp.demo.world.write_dataset import best_possible
from masp.experiments.study.run import run_study
from masp.experiments.study.runs import run_config
from masp.experiments.study.variants import FULL, variants_of
from masp.extraction.job import extract
from masp.files.jsonl import read_lines
from masp.training.group.together import train_together
from masp.training.logs import LossLine
from masp.training.loop import train
from masp.training.validation import FILE

WORLD_SEED = 3407
NUM_TRAIN, NUM_VAL, NUM_TEST = 3600, 400, 1000
RATES = "1,4"
SMALL_BATCHES = [
    f"{stage}.{setting}"
    for stage, num_epochs in (("stage1", 1), ("stage2", 2))
    for setting in (f"num_epochs={num_epochs}", "global_batch_size=16", "micro_batch_size=16", "validate_every=75")
]
PARTS = (
    "without_soft_prompt without_aspects without_vision_features without_facial_expression without_object "
    "without_scene without_human_action without_brightness without_colorfulness zero_shot"
).split()
GOAL_SHARE, GOAL_SPREAD = 0.90, 0.02


def settings(directory: Path, given: list[str]) -> Config:
    """The demo's configuration with restarts and many small steps, shorter than the demo's own training."""
    return load_config(
        "configs/demo.yaml",
        [
            f"output_dir={directory}",
            f"dataset.root={directory}/data",
            f"cache.dir={directory}/cache",
            "stage1.restarts=3",
            *SMALL_BATCHES,
            "evaluate.attention=false",
            *given,
        ],
    )


def member(config: Config, seed: int, rate: float) -> Config:
    """The run of stage 2 with a learning rate, on the aspect modules of a seed."""
    method = run_config(config, variants_of(config)[0], seed)
    found = copy.deepcopy(method)
    found.checkpoint.aspect = str(default_aspect_path(method))
    found.output_dir = f"{config.output_dir}/rates/seed-{seed}/rate-{rate:g}"
    found.stage2.learning_rate = rate
    return found


def held_out_loss(run: Config) -> float:
    """The lowest loss on the validation split."""
    return min(line.loss for line in read_lines(LossLine, Path(run.output_dir) / "stage2" / FILE) or ())


def choose_rate(config: Config, seeds: list[int], rates: list[float]) -> float:
    """Train every rate with every seed; returns that with the lowest mean held-out loss."""
    losses: dict[str, list[float | None]] = {}
    for seed in seeds:
        runs = [member(config, seed, rate) for rate in rates]
        failures = train_together(runs)
        for rate, run, failure in zip(rates, runs, failures, strict=True):
            losses.setdefault(f"{rate:g}", []).append(None if failure else held_out_loss(run))
    means = {rate: statistics.mean(own) for rate, own in losses.items() if None not in own}
    chosen = min(means, key=means.__getitem__)
    print(f"\n{'rate':<8}" + "".join(f"{f'seed {seed}':>9}" for seed in seeds) + f"{'mean':>9}   held-out loss")
    for rate, own in losses.items():
        cells = "".join(f"{'failed' if loss is None else f'{loss:.4f}':>9}" for loss in [*own, means.get(rate)])
        print(f"{rate:<8}{cells}{'   chosen' if rate == chosen else ''}")
    path = Path(config.output_dir) / "rates.json"
    path.write_text(json.dumps({"seeds": seeds, "losses": losses, "chosen": float(chosen)}, indent=1) + "\n")
    return float(chosen)


def take_over(config: Config, seed: int) -> None:
    """Let the study find the chosen run, which is its own to the last setting."""
    source = Path(member(config, seed, config.stage2.learning_rate).output_dir) / "stage2"
    target = run_config(config, variants_of(config)[0], seed)
    if not default_soft_prompt_path(target).is_file():
        shutil.copytree(source, Path(target.output_dir) / "stage2", dirs_exist_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--dir", type=Path, default=Path("outputs/demo-restarts"))
    parser.add_argument("--only", default=",".join(PARTS), help="variants beside the method")
    parser.add_argument("--rates", default=RATES)
    arguments, given = parser.parse_known_args()
    config = settings(arguments.dir, given)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    make_demo_data(config.dataset.root, NUM_TRAIN, NUM_TEST, WORLD_SEED, num_val=NUM_VAL)
    extract(config)
    for seed in seeds:
        train(run_config(config, variants_of(config)[0], seed), "stage1")
    config.stage2.learning_rate = choose_rate(config, seeds, [float(rate) for rate in arguments.rates.split(",")])
    for seed in seeds:
        take_over(config, seed)
    path = run_study(config, arguments.seeds, arguments.only)
    assert path is not None
    found = json.loads(path.read_text())["variants"][FULL]
    best = best_possible(config.dataset.root, "test")
    share, spread = found["accuracy"] / best, found["spread"] or 0.0
    print(f"\nbest possible {best:.3f}; MASP {found['accuracy']:.3f}, {share:.3f} of it, spread {spread:.3f}")
    for text, holds in (
        (f"at least {GOAL_SHARE:.2f} of the best possible", share >= GOAL_SHARE),
        (f"a spread of at most {GOAL_SPREAD:.2f} over seeds", len(seeds) > 1 and spread <= GOAL_SPREAD),
    ):
        print(f"{'yes' if holds else 'NO ':<4}{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
