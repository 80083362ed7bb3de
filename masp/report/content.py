"""What a report shows of a run, gathered from its files; the page, the tables and the figures are made from it.

It comes from a run directory: `evaluate/metrics.json` (required), and where they exist `summary.json`, `evaluate/`
(`ledger/`, `records.h5`, `datasets.json`), `evaluate-stage1/metrics.json`, `stage{1,2}/metrics.jsonl` and
`config.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from masp import __version__
from masp.errors import DataError, InputError, MaspError
from masp.files.regular import is_directory, is_file
from masp.report.attention import Attended, attended_images
from masp.report.charts import calibration_chart
from masp.report.images import Images
from masp.report.mistakes import Mistakes, mistakes
from masp.report.run_config import RunConfig, find_config
from masp.report.tables import (
    AspectRow,
    ConfusionTable,
    LineageRow,
    ShownDataset,
    ShownHoldings,
    ShownVariant,
    aspect_rows,
    confusion_table,
    dataset_rows,
    lineage_rows,
    shown_holdings,
    variant_rows,
    yardstick_rows,
)
from masp.report.training_curves import TrainingStage, training_stages
from masp.results.aspect_records import DIRECTORY as STAGE1
from masp.results.metrics_file import (
    METRICS,
    PROBE,
    PROMPTS,
    SUMMARY,
    MetricsFile,
    ProbeFile,
    PromptTable,
    read_metrics,
    read_probe,
    read_prompts,
    read_summary,
)

T = TypeVar("T")

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


_DISTRIBUTION_TILES = {
    "expected_accuracy": ("Expected accuracy", "of a rater, at most {:.1%}", True),
    "kl_divergence": ("KL divergence", "from the data's distribution, nats", False),
    "js_divergence": ("Jensen–Shannon divergence", "from the data's distribution, nats", False),
    "cosine_similarity": ("Cosine similarity", "to the data's distribution", False),
}
"""Name -> title, explanation, and whether it is a share."""


@dataclass(frozen=True)
class Tile:
    """One figure beside the accuracy."""

    title: str
    hint: str
    value: float
    is_share: bool
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Content:
    """Everything that is shown."""

    version: str
    name: str
    evaluate_dir: Path
    """Directory of the evaluation that it is about."""
    config: RunConfig
    metrics: MetricsFile
    interval: tuple[float, float] | None
    setting: dict[str, str | float]
    """What was evaluated and how, in a few words."""
    notes: list[str]
    tiles: list[Tile]
    variants: list[ShownVariant]
    confusion: ConfusionTable | None
    calibration: str | None
    """An SVG element."""
    stages: list[TrainingStage]
    mistakes: Mistakes | None
    aspects: list[AspectRow]
    datasets: list[ShownDataset]
    holdings: ShownHoldings | None
    """What the dataset holds."""
    yardsticks: list[ShownVariant]
    prompts: PromptTable | None
    probe: ProbeFile | None
    calibration_text: str | None
    """What a temperature would change, or why there is none."""
    attended: list[Attended]
    lineage: list[LineageRow]
    config_text: str | None


def _find_evaluation(run_dir: Path) -> Path:
    if not is_directory(run_dir):
        if is_file(run_dir):
            raise InputError(f"{run_dir} is a file; name the directory of the run")
        raise InputError(f"{run_dir}: no such run directory; run `masp evaluate --config …` first, in its output_dir")
    for directory in (run_dir / "evaluate", run_dir, run_dir / STAGE1):
        if is_file(directory / METRICS):
            return directory
    raise InputError(f"{run_dir}: no evaluate/metrics.json; run `masp evaluate --config … output_dir={run_dir}` first")


def gather(run_dir: Path) -> Content:
    """What a report shows of a run.

    Args:
        run_dir: Run directory, or the directory of one evaluation (the one with `metrics.json`).

    Raises:
        InputError: The directory does not exist, or nothing was evaluated there; the message says what to run.
        DataError: `metrics.json` or `summary.json` is damaged.
    """
    evaluate_dir = _find_evaluation(run_dir)
    path = evaluate_dir / METRICS
    problems: list[str] = []
    metrics = read_metrics(path, problems)
    for name in ("accuracy", "num_samples", "num_correct"):
        if getattr(metrics, name) is None:
            problem = next((p for p in problems if p.startswith(f"{path}: {name}")), f"{path}: {name} is missing")
            raise DataError(f"{problem}; run `masp evaluate` again")
    config = find_config(evaluate_dir, run_dir)
    problems += config.problems
    lineage = lineage_rows(metrics.lineage)
    summary = read_summary(run_dir / SUMMARY, problems) if is_file(run_dir / SUMMARY) else {}
    prompts = _optional(read_prompts, evaluate_dir / PROMPTS, problems)
    probe = _optional(read_probe, evaluate_dir / PROBE, problems)
    aspects, datasets = aspect_rows(evaluate_dir, metrics, problems), dataset_rows(evaluate_dir, problems)
    holdings = shown_holdings(evaluate_dir, problems)
    return Content(
        version=__version__,
        name=run_dir.resolve().name,
        evaluate_dir=evaluate_dir,
        config=config,
        metrics=metrics,
        interval=metrics.accuracy_ci95,
        setting=_setting(metrics, config),
        notes=_notes(metrics, lineage) + [f"Damaged, so not on this page: {problem}" for problem in problems],
        tiles=[
            Tile(title, hint, value, is_share, getattr(metrics, f"{name}_ci95", None))
            for name, title, hint, is_share in _TILES
            if (value := getattr(metrics, name)) is not None
        ]
        + _distribution_tiles(metrics),
        variants=variant_rows(summary),
        confusion=confusion_table(metrics),
        calibration=calibration_chart("calibration", metrics.calibration) if metrics.calibration else None,
        stages=training_stages(run_dir, evaluate_dir, config),
        mistakes=mistakes(evaluate_dir, metrics, Images(config)) if metrics.per_aspect is None else None,
        aspects=aspects,
        datasets=datasets,
        holdings=holdings,
        yardsticks=yardstick_rows(metrics, probe),
        prompts=prompts,
        probe=probe,
        calibration_text=_calibration_text(metrics),
        attended=attended_images(evaluate_dir, config),
        lineage=lineage,
        config_text=config.text,
    )


def _distribution_tiles(metrics: MetricsFile) -> list[Tile]:
    """How near the model's probabilities are to the distributions of the data, where these have any."""
    found = metrics.distributions
    tiles = []
    for name, value, interval in found.rows() if found else ():
        title, hint, is_share = _DISTRIBUTION_TILES[name]
        assert found is not None
        on = "" if found.num_samples == metrics.num_samples else f"; on {found.num_samples:,} images that have one"
        tiles.append(Tile(title, hint.format(found.expected_accuracy_limit) + on, value, is_share, interval))
    return tiles


def _optional(read: Callable[[Path], T | None], path: Path, problems: list[str]) -> T | None:
    """A file that not every evaluation has; if it is damaged, a line of `problems` says so."""
    try:
        return read(path)
    except MaspError as error:
        problems.append(str(error))
        return None


def _calibration_text(metrics: MetricsFile) -> str | None:
    scaling = metrics.temperature_scaling
    if scaling is None:
        return None
    if scaling.scaled is None or scaling.temperature is None:
        return f"No temperature was fitted: {scaling.reason}."
    after = scaling.scaled
    limit = " (the end of the range that is searched)" if scaling.at_limit else ""
    return (
        f"With the scores divided by the temperature {scaling.temperature:.3f}{limit}, fitted on "
        f"{scaling.num_fitted:,} images of {scaling.fitted_on}: calibration error {_four(metrics.ece)} → "
        f"{after.ece:.4f}, negative log-likelihood {_four(metrics.nll)} → {after.nll:.4f}, Brier score "
        f"{_four(metrics.brier)} → {after.brier:.4f}. No prediction changes."
    )


def _four(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _setting(metrics: MetricsFile, config: RunConfig) -> dict[str, str | float]:
    """What was evaluated and how: from metrics.json, else from the configuration."""
    setting: dict[str, str | float | None] = {
        "dataset": metrics.dataset or config.dataset_name,
        "split": metrics.split or config.split,
        "scoring": metrics.scoring or config.scoring,
        "layout": metrics.layout or config.layout,
        "quantization": metrics.quantization,
        "VLM": config.vlm,
        "mean_accuracy": metrics.mean_accuracy,
        "stage": metrics.stage,
        "target": metrics.target,
        "source": metrics.source,
    }
    if metrics.time is not None:
        setting["finished"] = f"{datetime.fromtimestamp(metrics.time, UTC):%Y-%m-%d %H:%M} UTC"
    return {key: value for key, value in setting.items() if value is not None}


def _notes(metrics: MetricsFile, lineage: list[LineageRow]) -> list[str]:
    notes = [
        f"Imported: {row.of or 'a checkpoint'}. Files in the released format carry no digests, so only their shapes "
        "were checked; that they belong to this VLM and to each other is the user's word."
        for row in lineage
        if row.name == "origin" and row.value == "imported"
    ]
    if metrics.num_quarantined or metrics.num_left_out:
        parts = [f"{metrics.num_quarantined:,} in quarantine"] if metrics.num_quarantined else []
        parts += [f"{metrics.num_left_out:,} left out by the category map"] if metrics.num_left_out else []
        notes.append(
            f"Not every image of the split was scored: {metrics.num_in_split or 0:,} in all, {', '.join(parts)}. With "
            f"those counted as wrong, the accuracy is {metrics.accuracy_of_split or 0:.1%}."
        )
    elif metrics.coverage is not None and metrics.coverage != 1:
        notes.append(f"Only {metrics.coverage:.1%} of the samples were scored: this is not the final number.")
    if metrics.remark:
        notes.append(f"About the predictions: {metrics.remark}.")
    if metrics.num_unparsable:
        is_one = metrics.num_unparsable == 1
        lines = "line names no category; it counts" if is_one else "lines name no category; they count"
        notes.append(f"{metrics.num_unparsable} generated {lines} as wrong.")
    return notes + list(metrics.notes or ())
