"""The parts of the report that are read from files which may be missing: config, curves, mistakes, lineage.

Whatever cannot be read leaves its part of the page out, with a reason where there is something to say: a report is for
looking, and half of it is better than none.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from masp.config.yaml_text import parse_yaml
from masp.errors import InputError, MaspError

_STAGES = (("stage1", "Stage 1: aspect modules", "aspect"), ("stage2", "Stage 2: soft prompt", "soft_prompt"))
_CURVES = (("loss", "loss", True), ("learning_rate", "learning rate", False))
_MAX_POINTS = 2000
_NUM_MISTAKES = 12


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


def training_stages(run_dir: Path, evaluate_dir: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Per stage with a readable `metrics.jsonl`: title, charts and a few figures of its end.

    The file is looked for in the run directory, then beside the evaluation, then beside the checkpoint.
    """
    from masp.charts import training_curve

    stages = []
    for name, title, checkpoint in _STAGES:
        folders = [run_dir / name, evaluate_dir.parent / name]
        checkpoint_path = (config.get("checkpoint") or {}).get(checkpoint)
        if isinstance(checkpoint_path, str):
            folders.append(Path(checkpoint_path).parent)
        path = next((folder / "metrics.jsonl" for folder in folders if (folder / "metrics.jsonl").is_file()), None)
        lines, num_skipped = _read_training_log(path) if path else ([], 0)
        if not lines:
            continue
        charts = []
        for key, label, smooth in _CURVES:
            points = [(line["step"], line[key]) for line in lines if is_finite(line.get(key))]
            points = points[:: math.ceil(len(points) / _MAX_POINTS)] if points else []
            if points:
                steps, values = zip(*points, strict=True)
                charts.append(training_curve(f"{name}-{key}", steps, values, label, smooth=smooth))
        last = lines[-1]
        rates = sorted(line["samples_per_second"] for line in lines if is_finite(line.get("samples_per_second")))
        stages.append(
            {
                "title": title,
                "charts": charts,
                "num_steps": last["step"],
                "epoch": last.get("epoch") if is_finite(last.get("epoch")) else None,
                "loss": last.get("loss") if is_finite(last.get("loss")) else None,
                "samples_per_second": rates[len(rates) // 2] if rates else None,
                "num_skipped": num_skipped,
            }
        )
    return stages


def _read_training_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The last line of every step in order (a resumed run logs some steps again), and how many could not be read."""
    steps: dict[int, dict[str, Any]] = {}
    num_skipped = 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict) and type(line.get("step")) is int:
            steps[line["step"]] = line
        else:
            num_skipped += 1
    return [steps[step] for step in sorted(steps)], num_skipped


def mistakes(evaluate_dir: Path, metrics: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The wrong predictions that the model was surest of, with thumbnails; under `generate` the first ones.

    Returns:
        `entries` (name, label, prediction, text, probability, label_probability, picture), `num_mistakes`,
        `by_confidence`, `has_pictures`, and `problem`: why there are no records or no pictures, or None.
    """
    from masp.ledger import FOLDER, read_records
    from masp.metrics import softmax

    try:
        records, problem = read_records(evaluate_dir / FOLDER), None
    except MaspError as error:
        records, problem = [], f"The ledgers cannot be read: {error}"
    categories = metrics.get("categories") or list(metrics.get("per_category") or {})
    entries = []
    for record in records:
        if record["prediction"] == record["label"]:
            continue
        scores = record.get("scores")
        if scores and len(scores) == len(categories) and {record["label"], record["prediction"]} <= set(categories):
            probabilities = dict(zip(categories, softmax(scores).tolist(), strict=True))
        else:
            probabilities = {}
        entries.append(
            {
                "key": record["sample_key"],
                "label": record["label"],
                "prediction": record["prediction"],
                "text": record.get("text"),
                "probability": probabilities.get(record["prediction"]),
                "label_probability": probabilities.get(record["label"]),
            }
        )
    by_confidence = any(entry["probability"] is not None for entry in entries)
    shown = sorted(entries, key=lambda entry: -(entry["probability"] or 0))[:_NUM_MISTAKES]
    root = (config.get("dataset") or {}).get("root")
    for entry in shown:
        entry["name"], path = image_of(entry["key"], Path(root) if isinstance(root, str) else None)
        entry["picture"] = _thumbnail(path) if path else None
    has_pictures = any(entry["picture"] for entry in shown)
    if shown and not has_pictures:
        problem = f"The pictures are not here: no readable image under {root or 'the dataset root of the config'}."
    return {
        "entries": shown,
        "num_mistakes": len(entries),
        "by_confidence": by_confidence,
        "has_pictures": has_pictures,
        "problem": problem,
    }


def image_of(key: str, root: Path | None) -> tuple[str, Path | None]:
    """A sample's name to show, and its image if there is one below `root`."""
    from masp.data.keys import split_key

    try:
        split, relative = split_key(key)
    except ValueError:
        return key, None
    name = f"{split}/{relative}"
    # Records are read from a file that anybody may have written: what they name must not lead out of the dataset.
    if root is None or ".." in PurePosixPath(relative).parts or ".." in split or "/" in split:
        return name, None
    # Datasets listed by index files name images from the root, folders of pictures from the split's folder.
    candidates = (root / split / relative, root / relative)
    return name, next((path for path in candidates if path.is_file()), None)


def _thumbnail(path: Path) -> str | None:
    """The image, small, as a data address; None if it cannot be read."""
    from masp.data.images import UnreadableImage, load_image
    from masp.looking import SIDE, data_address

    try:
        return data_address(load_image(path, SIDE))
    except (UnreadableImage, OSError):
        return None
