"""The report's parts about other evaluations beside the one it shows, and about where the aspects look.

As in `report_parts`, what cannot be read is left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from masp.report.charts import calibration_chart
from masp.report.checks import sound
from masp.report.tables import confusion_table

MAX_ANSWERS_SHOWN = 12
"""A closed aspect with more answers has no table of them on the page."""


def aspect_rows(evaluate_dir: Path, metrics: dict[str, Any], problems: list[str]) -> list[dict[str, Any]]:
    """Stage 1 per aspect: from this evaluation if it is one of stage 1, else from the one beside it.

    Args:
        evaluate_dir: of the evaluation that the report is about.
        metrics: its metrics.
        problems: what is damaged is left out, and a line appended that says so.
    """
    path = evaluate_dir / "metrics.json"
    if "per_aspect" not in metrics:
        path = evaluate_dir.parent / "evaluate-stage1" / "metrics.json"
        metrics = sound(_read(path, problems), str(path), problems)
    rows = []
    for index, (aspect, values) in enumerate((metrics.get("per_aspect") or {}).items()):
        if not isinstance(values, dict):
            problems.append(f"{path}: per_aspect: {aspect} is no JSON object")
            continue
        values = sound(values, f"{path}: {aspect}", problems)
        closed = values.get("kind") == "closed"
        chosen, bins = values.get("categories") or [], values.get("calibration")
        rows.append(
            {
                "aspect": aspect.replace("_", " "),
                "accuracy": values.get("accuracy"),
                "ci": values.get("accuracy_ci95"),
                "num_samples": values.get("num_samples"),
                "how": f"likeliest of {len(chosen)} answers" if closed else "written, exactly the same",
                "other_name": "macro F1" if closed else "token F1",
                "other": values.get("macro_f1" if closed else "token_f1"),
                "confusion": confusion_table(values) if len(chosen) <= MAX_ANSWERS_SHOWN else None,
                "calibration": calibration_chart(f"calibration-{index}", bins) if bins else None,
            }
        )
    return [row for row in rows if isinstance(row["accuracy"], float | int)]


def dataset_rows(evaluate_dir: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The datasets that were evaluated in one call; what is damaged is left out, and a line of `problems` says so."""
    path = evaluate_dir / "datasets.json"
    rows = {
        name: sound(row, f"{path}: {name}", problems)
        for name, row in _read(path, problems).items()
        if isinstance(row, dict)
    }
    return [
        {
            **dict.fromkeys(("accuracy_ci95", "macro_f1", "num_samples")),
            "name": name,
            **row,
            "mapped": ", ".join(f"{a} → {b}" for a, b in (row.get("category_map") or {}).items() if a != b),
        }
        for name, row in rows.items()
        if isinstance(row.get("accuracy"), float | int)
    ]


def _read(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        problems.append(f"{path}: is no JSON object")
        return {}
    return value
