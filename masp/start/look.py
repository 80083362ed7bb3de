"""What a dataset is, found by looking, and what it allows: the lines of `masp init` and `masp doctor` about it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from masp.cache.annotations.manifest import read_stored
from masp.config.aspects import Aspects
from masp.config.schema import Config, DatasetConfig
from masp.data.datasets import list_dataset
from masp.data.named.catalog import NAMED
from masp.data.sample import Dataset, Samples
from masp.data.sources.find import find_dataset
from masp.data.splits.division import UndividedError
from masp.errors import InputError
from masp.files.regular import is_directory
from masp.files.text import shown
from masp.start.held_out import fractions, precision
from masp.taxonomy import CATEGORY_SETS, DatasetName

FEW = 10
"""Training images of a category below which little can be learned of it."""


@dataclass(frozen=True)
class Look:
    """A dataset as it was found."""

    settings: DatasetConfig
    """Section `dataset` with which it can be read."""
    dataset: Dataset
    kind: str
    """In words: `image folders`."""

    @property
    def num_train(self) -> int:
        """Training images."""
        return self.dataset.holdings.num_images("train")

    @property
    def annotated(self) -> dict[str, int]:
        """Aspect -> number of training images that are annotated with it."""
        return {aspect: count for aspect, count in self.dataset.holdings.aspects.get("train", {}).items() if count}


def look_at(settings: DatasetConfig, aspects: Aspects, given: Collection[str]) -> Look:
    """Find out what a dataset is and how it can be read.

    Args:
        settings: Section `dataset` with the root, and whatever else the user gave.
        aspects: The aspects that are defined.
        given: Names of the fields of `settings` that the user gave; these stay.

    Raises:
        InputError: There is no dataset, or nothing that could be learned and measured.
        DataError: An annotation is damaged.
    """
    if "name" not in given:
        settings = dataclasses.replace(settings, name=_recognized(settings, aspects))
    try:
        listed = list_dataset(settings, aspects)
        splits = Counter(key.partition("/")[0] for key in listed.samples.keys)
        lacking = [split for split in ("val", "test") if not splits[split]]
        if lacking and splits["train"] and "split" not in given:
            settings = dataclasses.replace(settings, split=fractions(splits["train"], lacking))
            listed = list_dataset(settings, aspects)
    except UndividedError:
        # in whatever parts, to count the images
        listed = list_dataset(dataclasses.replace(settings, split={"train": 1.0}), aspects)
        settings = dataclasses.replace(settings, split=fractions(len(listed.samples), ("val", "test")))
        listed = list_dataset(settings, aspects)
    look = Look(settings, listed.whole(), listed.kind)
    _check(look)
    return look


def _recognized(settings: DatasetConfig, aspects: Aspects) -> DatasetName:
    """The published dataset that a directory is laid out as; `folder` if it is none."""
    root = Path(settings.root)
    if root.is_dir():
        own = []
        for name, each in NAMED.items():
            try:
                if each.read is not None and each.read(root, dataclasses.replace(settings, name=name)) is not None:
                    own.append(name)
            except InputError:  # it has a file of that name and is something else
                continue
        if len(own) == 1:
            return own[0]
    if find_dataset(settings, aspects).format == "emoset":
        categories = set(list_dataset(dataclasses.replace(settings, name="folder"), aspects).categories)
        if categories <= set(CATEGORY_SETS["emoset"]):
            return "emoset"
    return "folder"


def _check(look: Look) -> None:
    """Refuse what no accuracy could come of."""
    dataset, root = look.dataset, look.settings.root
    counts = dataset.holdings.categories
    trained = counts.get("train", {})
    if not look.num_train:
        raise InputError(f"{root}: has no training images; name a directory train/, or give dataset.split")
    if len(set().union(*counts.values())) < 2:
        raise InputError(
            f"{root}: all {len(dataset.samples):,} images have the category {shown(next(iter(trained)))}; at least two "
            "categories are needed, each a directory of its own"
        )
    if max(trained.values()) < 2:
        most = max(sum(part.get(category, 0) for part in counts.values()) for category in trained)
        raise InputError(
            f"{root}: no category has more than {most} image{'s' if most > 1 else ''}, too few to train on some and "
            f"test on others; {FEW} per category are little already"
        )
    if not dataset.holdings.num_images("test"):
        raise InputError(
            f"{root}: none of the {len(dataset.samples):,} images is a test image, so that nothing could be measured; "
            "collect more, or give another dataset.split"
        )


def outlook(config: Config, dataset: Dataset) -> list[str]:
    """What a dataset allows, part by part, and what to do where it lacks something.

    Args:
        config: Configuration of the run.
        dataset: Its dataset, with annotations.
    """
    holdings = dataset.holdings
    trained, num_train = holdings.categories.get("train", {}), holdings.num_images("train")
    lines = [f"labels: {len(trained)} categories in {num_train:,} training images: {', '.join(sorted(trained))}"]
    if few := sorted(category for category, count in trained.items() if count < FEW):
        least = ", ".join(f"{category} ({trained[category]})" for category in few)
        lines.append(f"labels: fewer than {FEW} training images of {least}: collect more, or expect mistakes there")
    for split in ("val", "test"):
        count = holdings.num_images(split)
        said = f"{count:,} images, which {_use(split, count)}" if count else f"none: {_remedy(config, dataset, split)}"
        lines.append(f"{split}: {said}")
    lines += _aspect_lines(config, dataset)
    kinds = Samples.of(dataset.samples).kinds()
    if any(label.distribution is not None for _, label in kinds):
        lines.append(
            "votes: images have a distribution over the categories (stage2.supervision=distribution learns it)"
        )
    return lines


def _use(split: str, count: int) -> str:
    if split == "val":
        return "the best state of training is chosen on"
    half = f"±{precision(count):.2g}"
    return f"the accuracy is measured on: to about {half} (95 % interval); four times as many images would halve that"


def _remedy(config: Config, dataset: Dataset, split: str) -> str:
    parts = fractions(dataset.holdings.num_images("train") or 1, (split,))
    setting = f"dataset.split={{{', '.join(f'{name}: {part}' for name, part in parts.items())}}}"
    if split == "test":
        return f"nothing can be measured; {setting} takes it out of train"
    size = min(config.stage1.validation_size, config.stage2.validation_size)
    return f"up to {size} images are held out of train where validate_every is set; {setting} makes a split of its own"


def _aspect_lines(config: Config, dataset: Dataset) -> list[str]:
    if not config.aspects:
        return ["aspects: none in use (aspects = []): the soft prompt is trained alone"]
    if config.checkpoint.aspect is not None:
        return [f"aspects: not trained here (checkpoint.aspect = {config.checkpoint.aspect})"]
    counts, num_train = dataset.holdings.aspects.get("train", {}), dataset.holdings.num_images("train")
    has = {aspect: counts[aspect] for aspect in config.aspects if counts.get(aspect)}
    lines = []
    if has:
        each = ", ".join(f"{aspect} {count:,}" for aspect, count in has.items())
        lines.append(f"aspects: annotated by people, of {num_train:,} training images: {each}")
    lacking = [aspect for aspect in config.aspects if aspect not in has]
    if stored := _stored(config, lacking):
        each = ", ".join(f"{aspect} {count:,}" for aspect, count in stored.items())
        lines.append(f"aspects: answered by masp annotate, of all images: {each}")
        lacking = [aspect for aspect in lacking if aspect not in stored]
    if lacking:
        rest = ",".join(has)
        lines.append(
            f"aspects: nobody annotated {', '.join(lacking)}: let the VLM do it (masp annotate), or leave them out "
            f"(aspects=[{rest}])"
        )
    return lines


def _stored(config: Config, aspects: Sequence[str]) -> dict[str, int]:
    """Those of some aspects that `masp annotate` has answered in the cache, with the number of answers."""
    try:
        if config.cache.dir is None or not is_directory(Path(config.cache.dir), key="cache.dir"):
            return {}
    except InputError:  # it cannot be looked at, which whoever opens the cache says
        return {}
    stored = read_stored(Path(config.cache.dir))
    return {aspect: sum(stored[aspect].num_answers.values()) for aspect in aspects if aspect in stored}
