"""The table of a sweep: what each member varied, and how it did."""

from __future__ import annotations

import dataclasses
import json
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
    test_accuracy: float | None
    """On the test split; None where it was not scored."""
    failure: str
    """Why its training was stopped; empty where it was not."""


def write_sweep(directory: Path, rows: Sequence[Row], best: str | None) -> Path:
    """Write `sweep.json`, `sweep.csv` and `sweep.tex`, and print the table, the best first.

    Args:
        directory: Directory of the sweep.
        rows: All members.
        best: Name of the one with the highest accuracy on the validation split; None where nothing was chosen.

    Returns:
        `sweep.json`.
    """
    ranked = sorted(rows, key=lambda row: (row.val_accuracy is None, -(row.val_accuracy or 0.0)))
    keys = list(dict.fromkeys(key for row in rows for key in row.values))
    columns = (*(key.rpartition(".")[2] for key in keys), "validation", "test", "remark")
    cells = [
        [
            *(str(row.values.get(key, "")) for key in keys),
            row.val_accuracy,
            row.test_accuracy,
            "chosen" if row.name == best else row.failure,
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
