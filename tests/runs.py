"""A complete small run: images, a tiny VLM of the real architecture, and a configuration file for every command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.images import make_dataset
from tests.tiny import make_vlm

REPOSITORY = Path(__file__).resolve().parents[1]


def make_run(directory: Path, num_train: int = 12, num_test: int = 6) -> Path:
    """Write images, VLM and configuration; returns the configuration, whose outputs go to `<directory>/run`."""
    images = make_dataset(directory / "pictures", num_train, num_test)
    return make_config_file(directory, make_vlm(directory / "vlm"), images, max_pixels=12544)


def make_config_file(directory: Path, vlm: Path, images: Path, max_pixels: int | None = None) -> Path:
    """Write the configuration of a run on given images; returns its path. Outputs go to `<directory>/run`."""
    stage = {
        "num_epochs": 2,
        "learning_rate": 0.01,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "checkpoint_every": 2,
    }
    settings = {
        "output_dir": str(directory / "run"),
        "questions": str(REPOSITORY / "configs" / "questions.yaml"),
        "aspects": ["scene", "object", "brightness"],
        "vlm": {"path": str(vlm)} | ({"max_pixels": max_pixels} if max_pixels else {}),
        "dataset": {"name": "folder", "root": str(images)},
        "cache": {"dir": str(directory / "cache"), "dtype": "fp32", "num_shards": 4},
        "extract": {"num_workers": 0, "num_threads": 1, "batch_tokens": 64, "device": "cpu"},
        "stage1": stage,
        "stage2": stage | {"num_soft_prompt_tokens": 4},
        "engine": {"zero_stage": 2, "precision": "fp32", "device": "cpu", "num_workers": 0, "num_threads": 1},
        "evaluate": {"batch_size": 4, "num_workers": 0},
    }
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def numbers(metrics: Path) -> dict[str, Any]:
    """The entries of `metrics.json` that describe the predictions, without time, lineage, protocol (a digest of
    all that was compared, lineage included) and notes."""
    found = json.loads(metrics.read_text())
    return {key: value for key, value in found.items() if key not in ("time", "lineage", "notes", "protocol")}


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    """Assert that two values are equal up to fp32 rounding: floats may differ by 1e-5 relative."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_same(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, value in enumerate(expected):
            assert_same(found[i], value, f"{where}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6), where
    else:
        assert found == expected, where
