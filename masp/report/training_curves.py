"""Training logs as the curves of the report."""

import json
import math
from pathlib import Path
from typing import Any

from masp.report.charts import training_curve
from masp.report.checks import is_finite

_STAGES = (("stage1", "Stage 1: aspect modules", "aspect"), ("stage2", "Stage 2: soft prompt", "soft_prompt"))


_CURVES = (("loss", "loss", True), ("learning_rate", "learning rate", False))


_MAX_POINTS = 2000


def training_stages(run_dir: Path, evaluate_dir: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Per stage with a readable `metrics.jsonl`: title, charts and a few figures of its end.

    The file is looked for in the run directory, then beside the evaluation, then beside the checkpoint.
    """
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
