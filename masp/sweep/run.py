"""`masp sweep`: trains many soft prompts, those with the same prefix together, and chooses on the validation split."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

from masp.distributed.task_share import require_one_process
from masp.errors import InputError
from masp.evaluation.feed import open_feed
from masp.evaluation.run import evaluate_together
from masp.extraction.job import extract
from masp.files.jsonl import read_lines
from masp.results.metrics_file import read_metrics
from masp.runtime.log import show
from masp.runtime.stop import StopFlag
from masp.sweep.curves import check_probe, curve_points, varies_size, write_curve
from masp.sweep.halving import check_comparable, check_held_out, train_halving, train_members
from masp.sweep.members import Member, Sweep
from masp.sweep.table import Row, order, write_sweep
from masp.training.logs import LossLine
from masp.training.loop import train
from masp.training.validation import FILE as VALIDATION


def run_sweep(sweep: Sweep, halving: int | None = None) -> Path:
    """Train all members, or what is left of them, score them on the validation split, and the best on the test split.

    Args:
        sweep: The sweep.
        halving: One of so many members is kept at each rung; None trains all to their ends.

    Returns:
        `sweep.json`.

    Raises:
        InputError, DataError, StoppedEarly: See `masp.errors`.
    """
    require_one_process("sweep: trains and scores its members as one process", "call it alone, outside of launchers")
    if halving is not None:
        check_comparable(sweep.members)
    check_probe(sweep.base, [member.settings.values for member in sweep.members])
    with StopFlag() as stop:
        if sweep.base.cache.dir is not None:
            extract(sweep.base, stop=stop)
        if halving is not None:
            check_held_out(sweep)
        for training in sweep.aspects:
            show("", f"sweep: stage 1, for all members that share its settings: {training.config.output_dir}")
            train(training.config, "stage1", stop)
        if halving is not None:
            train_halving(sweep, halving, stop)
        else:
            for group in sweep.groups:
                train_members(group, stop)
        return choose(sweep, stop)


def choose(sweep: Sweep, stop: StopFlag) -> Path:
    """Score the members that are trained, choose the best and write the table.

    Args:
        sweep: The sweep, whose members are trained.
        stop: What asks to stop.

    Returns:
        `sweep.json`.

    Raises:
        InputError, DataError, StoppedEarly: See `masp.errors`.
    """
    for member in sweep.members:
        member.note_failure()
    trained = [member for member in sweep.members if not member.failure and not member.dropped]
    if not trained:
        first = sweep.members[0]
        raise InputError(f"sweep: no member was trained to its end; {first.name}: {first.failure}")
    if open_feed(sweep.base).category_counts("val"):
        _score(trained, "val", stop)
    rows = {member.name: _row(member) for member in sweep.members}
    scored = [rows[member.name] for member in trained if order(rows[member.name]) != (math.inf, math.inf)]
    best = min(scored, key=order, default=None)
    if sweep.test == "best" and best is None:
        show(
            "sweep: nothing is chosen: the dataset has no validation split, and training held out no images "
            "(stage2.validate_every); --test all scores every member"
        )
    wanted = {row.name for point in curve_points(list(rows.values())) for row in point.rows}
    wanted |= {best.name} if best else set()
    if sweep.test != "none":
        _score([each for each in trained if sweep.test == "all" or each.name in wanted], "test", stop)
    table = [_row(member) for member in sweep.members]
    path = write_sweep(sweep.directory, table, None if best is None else best.name, sweep.log_keys)
    write_curve(sweep.directory, {member.name: member.config for member in sweep.members}, table)
    return path


def _score(members: Sequence[Member], split: str, stop: StopFlag) -> None:
    configs = [copy.deepcopy(member.config) for member in members]
    for member, config in zip(members, configs, strict=True):
        if varies_size(member.settings.values):
            config.evaluate.linear_probe = False  # `write_curve` fits one for all members of a subset
        config.evaluate.split = split  # type: ignore[assignment]  # one of the two
        if split == "val":
            config.evaluate.output_dir = str(Path(config.output_dir) / "evaluate" / "val")
    evaluate_together(configs, stop)


def _row(member: Member) -> Row:
    directory = Path(member.config.output_dir) / "evaluate"
    val, test = (_accuracy(path / "metrics.json") for path in (directory / "val", directory))
    lines = read_lines(LossLine, member.directory / VALIDATION, skip_damaged=True)
    loss = min((line.loss for line in lines or ()), default=None)
    return Row(member.name, dict(member.settings.values), val, loss, test, member.failure, member.dropped)


def _accuracy(path: Path) -> float | None:
    if not path.is_file():
        return None
    return read_metrics(path, []).accuracy
