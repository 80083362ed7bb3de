"""The settings of a run, chosen for a dataset and a machine, each with the reason."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.config import load_config
from masp.config.aspects import load_aspects
from masp.config.fields import describe_settings
from masp.config.loading import check_together, default_aspects
from masp.config.reading import load_settings
from masp.config.schema import Config, StageName
from masp.config.yaml_text import dump_value
from masp.errors import InputError
from masp.start.held_out import precision
from masp.start.look import Look, look_at
from masp.start.machine import Machine
from masp.start.scales import Scales, read_scales
from masp.start.sizing import REACH, stage_sizes

DEFAULT_VLM = "Qwen/Qwen2-VL-7B-Instruct"
"""The VLM of `configs/train.yaml`."""
IMAGES_PER_SHARD = 230
"""As `configs/train.yaml` has for EmoSet: about 1.7 GB of features of the largest images."""
MIN_SHARDS, MAX_SHARDS = 4, 512
MIN_BAD = 5
"""Broken images with which extraction still succeeds, however few images there are."""
LARGEST_MICRO_BATCH = 8


@dataclass(frozen=True)
class Choice:
    """One setting."""

    key: str
    """Dotted name."""
    value: Any
    why: str
    """The reason in plain words, for a comment."""


@dataclass(frozen=True)
class Chosen:
    """All that `masp init` writes."""

    look: Look
    config: Config
    choices: tuple[Choice, ...]
    """In the order of the file."""
    scales: Scales


def choose(root: str, overrides: Sequence[str], name: str, machine: Machine) -> Chosen:
    """Choose all settings that depend on the dataset, the VLM or the machine.

    Args:
        root: What `dataset.root` is to be.
        overrides: `key=value` strings of the user, which win.
        name: Name of the run, part of its directories.
        machine: Where it will run.

    Raises:
        InputError: A setting is not valid, `root` is not a dataset that anything could be learned from, or `vlm.path`
            is not a VLM. DataError: The dataset is damaged.
    """
    given = {override.partition("=")[0].strip() for override in overrides if "=" in override}
    if "dataset.root" in given:
        raise InputError(f"command line: dataset.root is the first argument, {root}; give one of the two")
    wanted = [f"vlm.path={DEFAULT_VLM}", f"cache.dir=outputs/{name}/cache", *overrides, f"dataset.root={root}"]
    asked = load_settings(Config, None, wanted, check_together, complete=default_aspects)
    fields = {key.removeprefix("dataset.").partition(".")[0] for key in given if key.startswith("dataset.")}
    look = look_at(asked.dataset, load_aspects(asked.aspect_definitions), fields)
    scales = read_scales(asked.vlm.path)
    chosen = [
        Choice(choice.key, operator.attrgetter(choice.key)(asked), "as given") if choice.key in given else choice
        for choice in [
            *_run(name),
            *_vlm(machine),
            *_dataset(look),
            *_cache(name, look, machine),
            *_aspects(look, asked),
            *_stage("stage1", _num_stage1(look, asked), scales, asked, given),
            *_stage("stage2", look.num_train, scales, asked, given),
            *_machine(machine, scales),
        ]
    ]
    known = {choice.key for choice in chosen}
    names = describe_settings(Config)
    for key in sorted({_setting(key, names) for key in given} - known, key=list(names).index):
        chosen.append(Choice(key, operator.attrgetter(key)(asked), "as given"))
    config = load_config(None, [as_override(choice) for choice in chosen])
    return Chosen(look, config, tuple(chosen), scales)


def as_override(choice: Choice) -> str:
    """A choice as it would be given on the command line."""
    return f"{choice.key}={dump_value(choice.value)}"


def _setting(key: str, names: Any) -> str:
    """The setting that a key is, or an entry of which it is."""
    return key if key in names else key.rpartition(".")[0]


def _run(name: str) -> list[Choice]:
    return [Choice("output_dir", f"outputs/{name}", "What the run leaves: checkpoints, metrics, report.")]


def _vlm(machine: Machine) -> list[Choice]:
    why = "The frozen VLM: a local directory, or a name on the Hugging Face Hub. This is that of the published work."
    if machine.gpu is None:
        why += " It has 7 billion weights, which takes long on a CPU; vlm.path=DIR chooses a smaller one."
    return [
        Choice("vlm.path", DEFAULT_VLM, why),
        Choice("vlm.max_side", 1024, "Larger images are scaled down to this longer side, as published."),
    ]


def _dataset(look: Look) -> list[Choice]:
    settings, categories = look.settings, look.dataset.categories
    what = "no published dataset by its structure" if settings.name == "folder" else "recognized by its structure"
    found = [
        Choice("dataset.name", settings.name, what[0].upper() + what[1:] + f"; read as {look.kind}."),
        Choice("dataset.root", settings.root, f"{len(categories)} categories: {', '.join(categories)}."),
    ]
    if settings.split is not None:
        counts = look.dataset.holdings
        each = ", ".join(f"{counts.num_images(split):,} {split}" for split in counts.splits)
        why = f"What the images lack of train, val and test is divided by a hash of their names; this gives {each}."
        if counts.num_images("test"):
            why += f" An accuracy is then known to about ±{precision(counts.num_images('test')):.2g} (95 % interval)."
        found.append(Choice("dataset.split", settings.split, why))
    return found


def _cache(name: str, look: Look, machine: Machine) -> list[Choice]:
    num_images = len(look.dataset.samples)
    shards = min(max(num_images // IMAGES_PER_SHARD, MIN_SHARDS), MAX_SHARDS)
    dtype = "fp32" if machine.gpu is None else "bf16"
    why = "The encoder computes in this format on a CPU."
    if machine.gpu is not None:
        why = "The encoder computes in this format on the GPU; half the size of fp32."
    return [
        Choice("cache.dir", f"outputs/{name}/cache", "Features are computed once and kept here."),
        Choice("cache.dtype", dtype, why),
        Choice("cache.num_shards", shards, f"Files of about {IMAGES_PER_SHARD} images, but at least {MIN_SHARDS}."),
        Choice(
            "extract.max_bad_fraction",
            max(0.01, _two_digits(MIN_BAD / num_images)),
            f"Broken images are left out and listed; more than 1 % of them, or {MIN_BAD}, end the run.",
        ),
    ]


def _aspects(look: Look, asked: Config) -> list[Choice]:
    annotated = [aspect for aspect in asked.aspects if look.annotated.get(aspect)]
    if annotated:
        return [Choice("aspects", annotated, "The aspects that people annotated in training images.")]
    why = (
        "Nobody annotated any aspect. masp annotate lets the VLM answer these; aspects=[] does without, and trains the "
        "soft prompt alone."
    )
    defined = load_aspects(asked.aspect_definitions)
    answered = [aspect for aspect in asked.aspects if defined[aspect].annotate != "never"]
    found = [Choice("aspects", list(asked.aspects), why)]
    if answered and asked.cache.dir is not None:
        found.append(Choice("annotate.aspects", answered, "What the VLM is to annotate, in images that lack it."))
    return found


def _num_stage1(look: Look, asked: Config) -> int:
    """Training images that stage 1 will learn from: the annotated ones, or all where the VLM is to annotate them."""
    return max((look.annotated.get(aspect, 0) for aspect in asked.aspects), default=0) or look.num_train


def _stage(stage: StageName, num_images: int, scales: Scales, asked: Config, given: Collection[str]) -> list[Choice]:
    """The settings of a stage; what the user gave of its steps is what the rest must suit."""
    rms = scales.stage1 if stage == "stage1" else scales.stage2
    settings = asked.stage1 if stage == "stage1" else asked.stage2
    sizes = stage_sizes(
        stage,
        num_images,
        rms,
        settings.global_batch_size if f"{stage}.global_batch_size" in given else None,
        settings.num_epochs if f"{stage}.num_epochs" in given else None,
    )
    what = "weights of the cross-attention" if stage == "stage1" else "word embeddings of the VLM"
    source = "" if stage == "stage1" else f" ({scales.source})"
    steps_per_epoch = -(-num_images // sizes.global_batch_size)
    found = [
        Choice(
            "global_batch_size",
            sizes.global_batch_size,
            f"Images per step: {num_images:,} training images make {steps_per_epoch} steps per epoch.",
        ),
        Choice(
            "num_epochs",
            sizes.num_epochs,
            f"{sizes.num_steps:,} steps in all: the fewer the images, the more often each is seen.",
        ),
        Choice(
            "learning_rate",
            sizes.learning_rate,
            f"All steps together can move a value by {REACH:g} times {rms:.2g}, the RMS of the {what}{source}.",
        ),
        Choice("warmup_ratio", sizes.warmup_ratio, "Part of the steps in which the learning rate rises."),
        Choice(
            "validate_every",
            sizes.validate_every,
            "Steps between two looks at the validation images. The best state is kept.",
        ),
        Choice("patience", sizes.patience, "Training ends after so many looks without a better state."),
        Choice("checkpoint_every", sizes.validate_every, "A stopped run loses no more than so many steps."),
        Choice(
            "micro_batch_size",
            min(LARGEST_MICRO_BATCH, sizes.global_batch_size),
            "Images at once; lower it if memory runs out, the result stays the same.",
        ),
    ]
    if stage == "stage2":
        why = "The soft prompt begins as the words of the question, which the VLM understands."
        found.append(Choice("soft_prompt_init", "question", why))
    return [Choice(f"{stage}.{choice.key}", choice.value, choice.why) for choice in found]


def _machine(machine: Machine, scales: Scales) -> list[Choice]:
    precision = machine.precision(scales.num_bytes)
    why = {
        "bf16": "The number format that this GPU is fast in."
        if machine.gpu
        else f"In fp32 the VLM would not fit into {machine.memory_gb} GB of memory.",
        "fp16": "This GPU does not compute in bf16.",
        "fp32": "The exact format, and the one that a CPU is fast in.",
    }[precision]
    workers = (
        f"Processes that read, on {machine.num_cores} core{'s' if machine.num_cores > 1 else ''}; 0: the main one."
    )
    return [
        Choice("engine.precision", precision, why),
        Choice("engine.zero_stage", 0 if machine.gpu is None else 2, "One process has nothing to divide."
               if machine.gpu is None else "Divides the optimizer where there are several GPUs."),
        Choice("engine.num_workers", machine.num_workers, workers),
        Choice("extract.num_workers", machine.num_workers, workers),
        Choice("extract.num_threads", machine.num_threads, "CPU threads of the encoder; recorded in the cache."),
        Choice("evaluate.num_workers", machine.num_workers, workers),
    ]  # fmt: skip


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")


def default_name(path: Path) -> str:
    """The name of a run whose configuration is written to a file."""
    return path.stem or "run"
