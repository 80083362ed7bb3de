"""The table of a sweep: what each member varied, and how it did."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.files.atomic import write_bytes
from masp.report.export import Table, markdown_table, write_tables
from masp.runtime.log import show

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


def write_sweep(directory: Path, rows: Sequence[Row], best: str | None) -> Path:
    """Write `sweep.json`, `sweep.csv` and `sweep.tex`, and print the table, the best first.

    Args:
        directory: Directory of the sweep.
        rows: All members.
        best: Name of the one that was chosen; None where nothing was.

    Returns:
        `sweep.json`.
    """
    ranked = sorted(rows, key=order)
    keys = list(dict.fromkeys(key for row in rows for key in row.values))
    columns = (*(key.rpartition(".")[2] for key in keys), "validation", "held-out loss", "test", "remark")
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
    table = Table("sweep", "Members of the sweep", columns, cells)
    write_tables(directory, [table], "output_dir")
    path = directory / FILE
    content = {"best": best, "members": [dataclasses.asdict(row) for row in rows]}
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())
    show(*markdown_table(table), f"sweep: {len(rows)} members: {path}")
    return path
