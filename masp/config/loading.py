"""Reading the configuration of a run, and the rules about more than one of its values."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from masp.config.aspects import RESERVED, SHIPPED, load_aspects
from masp.config.packaged import find_packaged
from masp.config.reading import load_settings
from masp.config.schema import Config
from masp.errors import InputError
from masp.files.text import shown
from masp.taxonomy import normalize_category


def load_config(path: str | Path | None, overrides: Sequence[str] = (), unused: Sequence[str] = ()) -> Config:
    """Load and check the configuration of a run; see `load_settings`. `vlm.path` and `questions` may name MASP's own
    files, see `find_packaged`."""
    config = load_settings(Config, path, overrides, check_together, unused, default_aspects)
    config.vlm.path, config.questions = find_packaged(config.vlm.path), find_packaged(config.questions)
    is_noted = config.aspect_definitions != SHIPPED  # which needs no telling
    config.aspect_definitions = find_packaged(config.aspect_definitions, is_noted=is_noted)
    return config


def default_aspects(tree: dict[str, Any]) -> None:
    """Without `aspects`, a configuration uses all that its file defines, in the order of the file."""
    path = tree.get("aspect_definitions")
    if "aspects" not in tree and path is not None:
        tree["aspects"] = list(load_aspects(path))


def check_together(config: Config, where: str) -> None:
    """Check the rules about more than one value."""
    low, high = config.vlm.min_pixels, config.vlm.max_pixels
    if low is not None and high is not None and low > high:
        raise InputError(f"{where}: vlm.min_pixels = {low}: must be at most vlm.max_pixels, which is {high}")
    if config.cache.dir is None and config.cache.aspect_tokens:
        raise InputError(f"{where}: cache.aspect_tokens = true: needs a cache, but cache.dir = null")
    if config.cache.dir is not None and config.dataset.augment != "none":
        raise InputError(
            f"{where}: dataset.augment = {config.dataset.augment!r}: features in a cache are the same in every epoch; "
            "give cache.dir=null to compute them in training, or dataset.augment=none"
        )
    if not config.stage2.vision_features and (not config.aspects or config.checkpoint.aspect == "none"):
        key = "checkpoint.aspect = none" if config.aspects else "aspects = []"
        raise InputError(
            f"{where}: stage2.vision_features = false: with {key} nothing of the image would be in the prompt"
        )
    if config.dataset.fraction is not None and config.dataset.shots is not None:
        raise InputError(
            f"{where}: dataset.fraction = {config.dataset.fraction:g} and dataset.shots = {config.dataset.shots}: give "
            "one of them, the other must be null"
        )
    _check_splits(config, where)
    _check_aspects(config, where)
    lists = (("dataset", config.dataset.categories, 1, "one"), ("target", config.target.categories, 2, "two"))
    for section, categories, least, number in lists:
        words = [normalize_category(category) for category in categories or ()]
        if categories is not None and (len(words) < least or "" in words or len(set(words)) < len(words)):
            raise InputError(
                f"{where}: {section}.categories = {shown(categories)}: must name {number} or more different categories "
                f"(case and underscores make no difference), or be null"
            )


def _check_splits(config: Config, where: str) -> None:
    """Check that the splits are given all by fractions or all by files, and that fractions are those of a whole."""
    splits = config.dataset.split
    if splits is None:
        return
    fractions = [value for value in splits.values() if isinstance(value, float)]
    if not splits or (fractions and len(fractions) < len(splits)):
        problem = "must give every split a fraction, or every split the file that lists its images"
    elif fractions and abs(sum(fractions) - 1) > 1e-6:
        problem = f"the fractions must add up to 1, not {sum(fractions):g}"
    else:
        return
    raise InputError(f"{where}: dataset.split = {shown(splits)}: {problem}")


def _check_aspects(config: Config, where: str) -> None:
    """Check that every aspect that is named anywhere is defined."""
    path = config.aspect_definitions
    defined = list(load_aspects(path))

    def meant(name: str, known: Sequence[str]) -> str:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        return f"; did you mean {close[0]}?" if close else ""

    for key, names in (("aspects", config.aspects), ("annotate.aspects", config.annotate.aspects or ())):
        for name in names:
            if name not in defined:
                raise InputError(
                    f"{where}: {key} = {shown(list(names))}: {shown(name)} is not defined in {path}, which has "
                    f"{', '.join(defined)}{meant(name, defined)}"
                )
    for name in config.dataset.columns or ():
        if name not in (*RESERVED, *defined):
            raise InputError(
                f"{where}: dataset.columns = {shown(config.dataset.columns)}: {shown(name)} is not something that a "
                f"column may hold; valid are {', '.join((*RESERVED, *defined))}{meant(name, [*RESERVED, *defined])}"
            )
