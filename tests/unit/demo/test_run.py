"""The demo's run: what it refuses, its baselines, its table and its summary. `make demo` runs all of it."""

import json

import pytest

from masp.config import load_config
from masp.demo import run
from masp.demo.run import VARIANTS, VariantResult, run_demo
from masp.errors import DataError, InputError
from masp.files.typed import read


@pytest.fixture
def config(repository, tmp_path):
    return load_config(repository / "configs" / "demo.yaml", [f"output_dir={tmp_path / 'demo'}"])


@pytest.mark.parametrize("counts", [(0, 5), (5, 0), (-1, 5)])
def test_no_images_are_refused(config, counts):
    with pytest.raises(InputError, match=f"--num-train {counts[0]} --num-test {counts[1]}: .* at least one image"):
        run_demo(config, *counts)


def test_another_layout_of_data_is_refused(config):
    config.dataset.name = "folder"
    with pytest.raises(InputError, match="dataset.name = 'folder': .*'emoset'"):
        run_demo(config)


def test_baselines_have_directories_of_their_own(config):
    found = run._baselines(config)
    assert list(found) == ["zero_shot", "soft_prompt_only", "aspects_only"]
    assert {one.output_dir for one in found.values()} == {f"{config.output_dir}/baselines/{name}" for name in found}
    parts = {name: (one.aspects, one.checkpoint.aspect, one.checkpoint.soft_prompt) for name, one in found.items()}
    aspects = config.aspects
    assert parts["zero_shot"] == (aspects, "none", "none")
    assert parts["soft_prompt_only"] == ([], None, None)
    assert parts["aspects_only"] == (aspects, f"{config.output_dir}/stage1/aspect.safetensors", "none")
    assert config.checkpoint.soft_prompt is None
    assert (config.evaluate.explain, config.evaluate.attention) == ("sample", True)
    assert not any(one.evaluate.explain != "none" or one.evaluate.attention for one in found.values())


def test_the_summary_and_its_table():
    summary = {name: VariantResult(place / 8, (0.1, 0.9), 8) for place, name in enumerate(VARIANTS)}
    summary["best_possible"] = VariantResult(0.9, None, 8)
    assert list(summary["masp"].to_dict()) == ["accuracy", "accuracy_ci95", "num_samples"]
    assert summary["best_possible"].to_dict() == {"accuracy": 0.9, "num_samples": 8}
    lines = run._table(summary).strip("\n").splitlines()
    assert len(lines) == 1 + len(VARIANTS) and lines[0].split() == ["accuracy", "95", "%", "interval"]
    assert lines[1].split()[:6] == ["zero", "shot", "0.000", "0.100", "to", "0.900"]
    assert lines[-1].split()[:4] == ["best", "possible", "0.900", "known"]


def test_of_metrics_the_summary_takes_three_keys(tmp_path):
    path = tmp_path / "metrics.json"
    metrics = {"accuracy": 0.5, "accuracy_ci95": [0.4, 0.6], "num_samples": 8, "num_correct": 4}
    path.write_text(json.dumps(metrics))
    assert read(VariantResult, path) == VariantResult(0.5, (0.4, 0.6), 8)
    for change in ({"accuracy": float("nan")}, {"accuracy": 1.5}, {"num_samples": "8"}, {"accuracy_ci95": [0.4]}):
        path.write_text(json.dumps(metrics | change))
        with pytest.raises(DataError, match=f"^{path}: {next(iter(change))}"):
            read(VariantResult, path)
