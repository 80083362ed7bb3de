"""Tables of the report: the confusion matrix, the configuration and the lineage."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from masp.config.yaml_text import parse_yaml
from masp.errors import InputError


def confusion_table(metrics: dict[str, Any]) -> dict[str, Any] | None:
    """The confusion matrix of an evaluation as rows of cells; None without one."""
    counts = metrics.get("confusion")
    categories = metrics.get("categories") or list(metrics.get("per_category") or {})
    if not counts or len(counts) != len(categories):
        return None
    columns = metrics.get("confusion_columns") or categories
    rows = []
    for category, row in zip(categories, counts, strict=True):
        total = sum(row)
        cells = [
            {
                "count": count,
                "share": count / total if total else 0.0,
                "is_correct": column == category,
                "column": "no category" if column is None else column,
            }
            for column, count in zip(columns, row, strict=False)
        ]
        rows.append({"category": category, "cells": cells, "total": total})
    return {"columns": columns, "rows": rows}


def find_config(*folders: Path) -> tuple[dict[str, Any], str | None]:
    """The resolved configuration in the first folder that has one: parsed (empty if it cannot be), and as text."""
    for folder in folders:
        path = folder / "config.yaml"
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            try:
                config, _ = parse_yaml(text, str(path))
            except InputError:
                config = None
            return (config if isinstance(config, dict) else {}), text
    return {}, None


def lineage_rows(lineage: Any) -> list[dict[str, str]]:
    """A nested `lineage` as rows: what it is `of` (`soft_prompt / aspect`), the field's `name` and its `value`."""
    return [
        {"of": " / ".join(path[:-1]), "name": path[-1], "value": value if isinstance(value, str) else json.dumps(value)}
        for path, value in _leaves(lineage, ())
    ]


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _leaves(entry, (*path, str(name)))
    elif path:
        yield path, value
