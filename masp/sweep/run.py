"""`masp sweep`: trains many soft prompts, those with the same prefix together, and chooses on the validation split."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from masp.artifacts.trained import default_aspect_path
from masp.config import Config, load_config
from masp.distributed.task_share import require_one_process
from masp.errors import InputError
from masp.evaluation.feed import open_feed
from masp.evaluation.run import evaluate_together
from masp.extraction.job import extract
from masp.files.jsonl import read_lines
from masp.files.sealed import digest_of
from masp.results.metrics_file import read_metrics
from masp.runtime.log import show
from masp.sweep.axes import Asked, MemberSettings, member_config
from masp.sweep.table import Row, order, write_sweep
from masp.training.group.members import why_alone
from masp.training.group.together import groups_of, train_together
from masp.training.logs import LossLine
from masp.training.loop import train
from masp.training.validation import FILE as VALIDATION

DIRECTORY = "sweep"


@dataclass
class Member:
    """A member with its configuration."""

    settings: MemberSettings
    config: Config
    failure: str = ""


def run_sweep(config_file: str | None, asked: Asked, members: Sequence[MemberSettings], test: str = "best") -> Path:
    """Train all members, or what is left of them, score them on the validation split, and the best on the test split.

    Args:
        config_file: Configuration that the members start from.
        asked: What they have in common.
        members: What each varies.
        test: Whose test score is computed: `best`, `all` or `none`.

    Returns:
        `sweep.json`.

    Raises:
        InputError, DataError, StoppedEarly: See `masp.errors`.
    """
    require_one_process("sweep: trains and scores its members as one process", "call it alone, outside of launchers")
    base = load_config(config_file, asked.fixed)
    order_seed = base.seed if base.order_seed is None else base.order_seed
    directory = Path(base.output_dir) / DIRECTORY
    opened = [
        Member(each, member_config(config_file, asked, each, directory / each.name, order_seed)) for each in members
    ]
    if base.cache.dir is not None:
        extract(base)
    _train_aspects(opened, directory)
    groups = [[opened[number] for number in group] for group in groups_of([member.config for member in opened])]
    show(*_announced(groups, len(opened)))
    for group in groups:
        for member, failure in zip(group, train_together([member.config for member in group]), strict=True):
            member.failure = failure
    can_choose = bool(open_feed(base).category_counts("val"))
    if can_choose:
        _score([member for member in opened if not member.failure], "val")
    rows = [_row(member) for member in opened]
    scored = [row for row in rows if order(row) != (math.inf, math.inf) and not row.failure]
    best = min(scored, key=order, default=None)
    if test == "best" and best is None:
        show(
            "sweep: nothing is chosen: the dataset has no validation split, and training held out no images "
            "(stage2.validate_every); --test all scores every member"
        )
    tested = [row is best if test == "best" else test == "all" for row in rows]
    _score([m for m, wanted in zip(opened, tested, strict=True) if wanted and not m.failure], "test")
    rows = [_row(member) for member in opened]
    if all(member.failure for member in opened):
        raise InputError(f"sweep: no member was trained to its end; {opened[0].settings.name}: {opened[0].failure}")
    return write_sweep(directory, rows, None if best is None else best.name)


def _announced(groups: Sequence[Sequence[Member]], count: int) -> list[str]:
    sizes = " + ".join(str(len(group)) for group in groups)
    lines = [f"sweep: {count} members in groups of {sizes}, each group behind one pass of its prefix"]
    for group in groups:
        why = why_alone(group[0].config)
        if why is not None:
            lines.append(f"  {group[0].settings.name}: alone, since {why}")
    return lines


def _train_aspects(members: Sequence[Member], directory: Path) -> None:
    """Train the aspect modules that members need, once for all that would have the same but for the seed."""
    made: dict[str, str] = {}
    for member in members:
        config = member.config
        if not config.aspects or config.checkpoint.aspect is not None:
            continue
        alone = copy.deepcopy(config)
        alone.seed = int(config.order_seed or 0)
        parts = (alone.aspects, alone.stage1, alone.aspect_module, alone.vlm, alone.aspect_definitions, alone.questions)
        key = digest_of(repr(parts))[:12]
        if key not in made:
            alone.output_dir = str(directory / f"aspects-{key}")
            show("", f"sweep: stage 1, for all members that share its settings: {alone.output_dir}")
            train(alone, "stage1")
            made[key] = str(default_aspect_path(alone))
        config.checkpoint.aspect = made[key]


def _score(members: Sequence[Member], split: str) -> None:
    configs = [copy.deepcopy(member.config) for member in members]
    for config in configs:
        config.evaluate.split = split  # type: ignore[assignment]  # one of the two
        if split == "val":
            config.evaluate.output_dir = str(Path(config.output_dir) / "evaluate" / "val")
    evaluate_together(configs)


def _row(member: Member) -> Row:
    directory = Path(member.config.output_dir) / "evaluate"
    val, test = (_accuracy(path / "metrics.json") for path in (directory / "val", directory))
    lines = read_lines(LossLine, Path(member.config.output_dir) / "stage2" / VALIDATION, skip_damaged=True)
    loss = min((line.loss for line in lines or ()), default=None)
    return Row(member.settings.name, dict(member.settings.values), val, loss, test, member.failure)


def _accuracy(path: Path) -> float | None:
    if not path.is_file():
        return None
    return read_metrics(path, []).accuracy
