"""The tables of a sweep: what each member varied and how it did, and the same of each setting over its seeds."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.files.atomic import write_bytes
from masp.report.export import Table, markdown_table, write_tables
from masp.runtime.log import show
from masp.sweep.figures import write_figures
from masp.sweep.settings import SettingScores, column_names, lines_about, setting_scores, setting_table

FILE = "sweep.json"


@dataclass(frozen=True)
class Row:
    """A member in the table."""

    name: str
    values: dict[str, Any]
    """Setting -> value, of those that are varied."""
    val_accuracy: float | None
    """On the validation split; None where it was not scored."""
    held_out_loss: float | None
    """Lowest loss on the images that training held out; None where it held out none."""
    test_accuracy: float | None
    """On the test split; None where it was not scored."""
    failure: str
    """Why its training was stopped; empty where it was not."""
    dropped: str = ""
    """Where and why halving dropped it; empty where it did not."""


def order(row: Row) -> tuple[float, float]:
    """The better, the smaller: by accuracy on the validation split, then by the held-out loss."""
    return (
        math.inf if row.val_accuracy is None else -row.val_accuracy,
        math.inf if row.held_out_loss is None else row.held_out_loss,
    )


def write_sweep(directory: Path, rows: Sequence[Row], best: str | None, log_keys: Collection[str] = ()) -> Path:
    """Write `sweep.json`, the tables and the figures, and print the tables, the best first.

    Args:
        directory: Directory of the sweep.
        rows: All members.
        best: Name of the one that was chosen; None where nothing was.
        log_keys: Settings that were drawn from a logarithmic range.

    Returns:
        `sweep.json`.

    Raises:
        InputError: A file cannot be written. DataError: Records of a member are damaged.
    """
    scores = _scores(directory, rows)
    members, settings = _member_table(rows, best), [setting_table(each) for each in scores]
    write_tables(directory, [members, *settings], "output_dir")
    shown = scores[0] if scores[0].num_samples else scores[1]
    write_figures(directory, shown, log_keys)
    path = directory / FILE
    content = {
        "best": best,
        "members": [dataclasses.asdict(row) for row in rows],
        "settings": {each.split: each.to_json() for each in scores},
    }
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())
    show(*markdown_table(members))
    for each, table in zip(scores, settings, strict=True):
        if any(len(setting.members) > 1 for setting in each.settings):
            show("", *lines_about(each)[:1], "", *markdown_table(table), "", *lines_about(each)[1:])
    show(f"sweep: {len(rows)} member{'s' * (len(rows) != 1)}: {path}")
    return path


def _scores(directory: Path, rows: Sequence[Row]) -> tuple[SettingScores, SettingScores]:
    """The settings on the validation split and on the test split."""
    members = {row.name: dict(row.values) for row in rows}
    whole = [row for row in rows if not (row.failure or row.dropped)]
    is_culled = any(row.dropped for row in rows)
    scored = {row.name for row in whole if row.val_accuracy is not None}
    val = setting_scores(directory, members, scored, "val", is_culled=is_culled)
    chosen = None if val.best is None else val.settings[val.best].values
    tested = {row.name for row in whole if row.test_accuracy is not None}
    return val, setting_scores(directory, members, tested, "test", chosen, is_culled)


def _member_table(rows: Sequence[Row], best: str | None) -> Table:
    ranked = sorted(rows, key=order)
    keys = list(dict.fromkeys(key for row in rows for key in row.values))
    columns = (*column_names(keys), "validation", "held-out loss", "test", "remark")
    cells = [
        [
            *(str(row.values.get(key, "")) for key in keys),
            row.val_accuracy,
            row.held_out_loss,
            row.test_accuracy,
            "chosen" if row.name == best else row.failure or row.dropped,
        ]
        for row in ranked
    ]
    return Table("sweep", "Members of the sweep", columns, cells)
