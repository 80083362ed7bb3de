"""The parts of the report that are read from files which may be missing: config, curves, mistakes, lineage.

Whatever cannot be read leaves its part of the page out, with a reason where there is something to say: a report is for
looking, and half of it is better than none.
"""

import json
import math
from collections.abc import Callable
from typing import Any


def is_finite(value: Any) -> bool:
    """Whether it is a number, and a plain one."""
    return type(value) in (int, float) and math.isfinite(value)


def _is_share(value: Any) -> bool:
    return is_finite(value) and 0 <= value <= 1


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_share, value))


def _is_counts(value: Any) -> bool:
    rows = isinstance(value, list) and all(isinstance(row, list) and all(map(_is_count, row)) for row in value)
    return rows and len({len(row) for row in value}) <= 1


def _are_categories(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(row, dict) and all(_is_share(row.get(key)) for key in ("f1", "precision", "recall"))
        and _is_count(row.get("support"))
        for row in value.values()
    )  # fmt: skip


def _are_bins(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(b, dict) and _is_share(b.get("from")) and _is_share(b.get("to")) and _is_count(b.get("num_samples"))
        and (not b["num_samples"] or _is_share(b.get("accuracy")))
        for b in value
    )  # fmt: skip


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str | None) for name in value)


_SOUND: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "top2_accuracy", "ece"), _is_share),
    **dict.fromkeys(("token_f1", "coverage"), _is_share),
    **dict.fromkeys(("nll", "brier"), is_finite),
    **dict.fromkeys(("num_samples", "num_correct", "num_unparsable"), _is_count),
    "accuracy_ci95": _is_interval,
    "confusion": _is_counts,
    "per_category": _are_categories,
    "calibration": _are_bins,
    "categories": _are_names,
    "confusion_columns": _are_names,
    "notes": lambda value: isinstance(value, list),
    "per_aspect": lambda value: isinstance(value, dict),
    "category_map": lambda value: isinstance(value, dict),
    "time": lambda value: is_finite(value) and 0 <= value < 253_402_300_800,  # the end of the year 9999
}


def sound(values: dict[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    """An evaluation without what is damaged in it.

    Args:
        values: as in `metrics.json`; anybody may have written it.
        where: the file, for the line that says what is left out.
        problems: such lines are appended.
    """
    kept = {}
    for key, value in values.items():
        if value is None or key not in _SOUND or _SOUND[key](value):
            kept[key] = value
        else:
            shown = json.dumps(value)
            problems.append(f"{where}: {key} is {shown if len(shown) <= 80 else shown[:79] + '…'}")
    return kept
