"""The report: one HTML file that shows an evaluation and opens anywhere, without a network.

What it shows comes from a run directory: `evaluate/metrics.json` (required), and where they exist `summary.json`,
`evaluate/` (`ledger/`, `records.h5`, `datasets.json`), `evaluate-stage1/metrics.json`, `stage{1,2}/metrics.jsonl` and
`config.yaml`. Names, labels and texts are data: the template escapes
them, and the page's content security policy forbids scripts and addresses altogether.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from masp import __version__
from masp.errors import DataError, InputError
from masp.files.atomic import write_bytes
from masp.files.text import reason
from masp.report.attention import looks
from masp.report.charts import calibration_chart
from masp.report.checks import is_finite, sound
from masp.report.evaluations import aspect_rows, dataset_rows
from masp.report.html import environment
from masp.report.mistakes import mistakes
from masp.report.tables import confusion_table, find_config, lineage_rows
from masp.report.training_curves import training_stages

_VARIANT_TITLES = {
    "zero_shot": "Zero-shot",
    "linear_probe": "Linear probe on mean features",
    "soft_prompt_only": "Soft prompt without aspects",
    "aspects_only": "Aspects without soft prompt",
    "masp": "MASP",
    "best_possible": "Best possible",
}


_TILES = (
    # key, title, explanation, is a share
    ("balanced_accuracy", "Balanced accuracy", "mean recall over categories", True),
    ("macro_f1", "Macro F1", "mean F1 over categories", True),
    ("weighted_f1", "Weighted F1", "by samples per category", True),
    ("top2_accuracy", "Top-2 accuracy", "right among the two likeliest", True),
    ("nll", "Negative log-likelihood", "of the right category, nats", False),
    ("brier", "Brier score", "0 is best, 2 worst", False),
    ("ece", "Calibration error", "expected, 15 bins", False),
)


# metrics.json keys with a place of their own on the page; other plain values are listed as the evaluation's setting.
_PLACED = {key for key, *_ in _TILES} | {
    "num_samples", "num_expected", "num_correct", "num_unparsable", "coverage", "accuracy", "accuracy_ci95",
    "accuracy_ci95_bootstrap", "macro_f1_ci95", "per_category", "categories", "confusion", "confusion_columns",
    "calibration", "accuracy_by_mean_score", "per_aspect", "category_map", "vision_features", "lineage", "notes",
    "time",
}  # fmt: skip


def write_report(run_dir: str | Path, output: str | Path | None = None) -> Path:
    """Write the report of a run.

    Args:
        run_dir: the run directory, or the directory of one evaluation (the one with `metrics.json`).
        output: the HTML file; None: `report.html` in `run_dir`.

    Returns:
        The file that was written.

    Raises:
        InputError: there is no such directory, or nothing was evaluated there; the line says what to run.
        DataError: `metrics.json` or `summary.json` is damaged.
    """
    run_dir = Path(run_dir)
    evaluate_dir = _find_evaluation(run_dir)
    html = _render(_gather(run_dir, evaluate_dir))
    output = run_dir / "report.html" if output is None else Path(output)
    if output.is_dir():
        raise InputError(f"{output}: is a folder; name the HTML file to write")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # A file name that is no UTF-8 reaches us as lone surrogates, which no HTML file can hold.
        write_bytes(output, html.encode("utf-8", errors="backslashreplace"))
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {reason(error)}; give --output another file") from None
    return output


def _find_evaluation(run_dir: Path) -> Path:
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such run directory; run `masp evaluate --config …` first, in its output_dir")
    for folder in (run_dir / "evaluate", run_dir):
        if (folder / "metrics.json").is_file():
            return folder
    raise InputError(f"{run_dir}: no evaluate/metrics.json; run `masp evaluate --config … output_dir={run_dir}` first")


def _gather(run_dir: Path, evaluate_dir: Path) -> dict[str, Any]:
    """Everything that the template needs, as plain values."""
    metrics = _read_json(evaluate_dir / "metrics.json")
    for key in ("accuracy", "num_samples", "num_correct"):
        if not is_finite(metrics.get(key)):
            raise DataError(
                f"{evaluate_dir / 'metrics.json'}: {key} is {metrics.get(key)!r}, not a number; "
                "run `masp evaluate` again"
            )
    problems: list[str] = []
    metrics = sound(metrics, str(evaluate_dir / "metrics.json"), problems)
    if "accuracy" not in metrics:
        raise DataError(
            f"{evaluate_dir / 'metrics.json'} is damaged: {problems[0].partition(': ')[2]}; run `masp evaluate` again"
        )
    config, config_text = find_config(evaluate_dir, run_dir)
    lineage = lineage_rows(metrics.get("lineage"))
    variants = _variants(run_dir / "summary.json", problems)
    aspects, datasets = aspect_rows(evaluate_dir, metrics, problems), dataset_rows(evaluate_dir, problems)
    return {
        "version": __version__,
        "name": run_dir.resolve().name,
        "metrics": metrics,
        "interval": metrics.get("accuracy_ci95"),
        "setting": _setting(metrics, config),
        "notes": _notes(metrics, lineage) + [f"Damaged, so not on this page: {problem}" for problem in problems],
        "tiles": [
            {"title": title, "hint": hint, "value": metrics[key], "is_share": is_share}
            for key, title, hint, is_share in _TILES
            if metrics.get(key) is not None
        ],
        "variants": variants,
        "confusion": confusion_table(metrics),
        "per_category": metrics.get("per_category") or {},
        "calibration": _calibration(metrics),
        "stages": training_stages(run_dir, evaluate_dir, config),
        "mistakes": mistakes(evaluate_dir, metrics, config) if "per_aspect" not in metrics else None,
        "aspects": aspects,
        "datasets": datasets,
        "looks": looks(evaluate_dir, config),
        "lineage": lineage,
        "config_text": config_text,
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise DataError(f"{path}: is no JSON object; delete it and run the command that writes it again")
    return value


def _setting(metrics: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """What was evaluated and how, in a few words: from metrics.json, else from the configuration."""
    evaluate, stage2 = config.get("evaluate") or {}, config.get("stage2") or {}
    setting = {
        "dataset": (config.get("dataset") or {}).get("name"),
        "split": evaluate.get("split"),
        "scoring": evaluate.get("scoring"),
        "layout": stage2.get("layout"),
        "VLM": (config.get("vlm") or {}).get("path"),
    }
    for key, value in metrics.items():
        is_text_list = isinstance(value, list) and value and all(isinstance(entry, str) for entry in value)
        if key not in _PLACED and (isinstance(value, str | int | float) or is_text_list):
            setting[key] = ", ".join(value) if is_text_list else value
    if isinstance(metrics.get("time"), int | float):
        setting["finished"] = f"{datetime.fromtimestamp(metrics['time'], UTC):%Y-%m-%d %H:%M} UTC"
    return {key: value for key, value in setting.items() if value is not None}


def _notes(metrics: dict[str, Any], lineage: list[dict[str, str]]) -> list[str]:
    notes = [
        f"Imported: {row['of'] or 'a checkpoint'}. Files in the released format carry no digests, so only their shapes "
        "were checked; that they belong to this VLM and to each other is the user's word."
        for row in lineage
        if row["name"] == "origin" and row["value"] == "imported"
    ]
    if isinstance(metrics.get("coverage"), int | float) and metrics["coverage"] != 1:
        notes.append(f"Only {metrics['coverage']:.1%} of the samples were scored: this is not the final number.")
    if metrics.get("num_unparsable"):
        is_one = metrics["num_unparsable"] == 1
        lines = "line names no category; it counts" if is_one else "lines name no category; they count"
        notes.append(f"{metrics['num_unparsable']} generated {lines} as wrong.")
    return notes + [str(note) for note in metrics.get("notes") or []]


def _variants(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    summary = _read_json(path)
    rows = []
    for key in [*(k for k in _VARIANT_TITLES if k in summary), *(k for k in summary if k not in _VARIANT_TITLES)]:
        entry = summary[key]
        if isinstance(entry, dict) and "accuracy" in (entry := sound(entry, f"{path}: {key}", problems)):
            title = _VARIANT_TITLES.get(key, key.replace("_", " "))
            rows.append({"key": key, "title": title, "accuracy": entry["accuracy"], "ci": entry.get("accuracy_ci95")})
    return rows


def _calibration(metrics: dict[str, Any]) -> str | None:
    return calibration_chart("calibration", metrics["calibration"]) if metrics.get("calibration") else None


def _render(page: dict[str, Any]) -> str:
    return environment().get_template("report.html.j2").render(page)
