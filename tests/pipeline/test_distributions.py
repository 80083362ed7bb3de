"""Votes behind the cache, as a user runs the commands: training, stopping, ranks, evaluation, tables."""

import csv
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from masp.cache.reader import open_cache
from masp.results.records import read_records_file
from tests.commands import Ranks
from tests.votes import cache_with_votes

LOSSES = ("weighted", "drawn")


@pytest.fixture(scope="module")
def voted(world, tmp_path_factory) -> Path:
    """The cache of `world`, most of whose samples have votes."""
    return cache_with_votes(world.folder / "cache", tmp_path_factory.mktemp("voted") / "cache")


@pytest.fixture(scope="module")
def settings(world, voted):
    def make(output: Path, loss: str, *overrides: str) -> tuple[str, ...]:
        target = ("stage2.supervision=label",) if loss == "label" else (
            "stage2.supervision=distribution", f"stage2.distribution_loss={loss}"
        )  # fmt: skip
        every = ("stage2.num_epochs=3", "stage2.global_batch_size=3", "stage2.log_every=1", "stage2.checkpoint_every=5")
        return world.settings(output, f"cache.dir={voted}", "aspects=[]", *every, *target, *overrides)

    return make


@pytest.fixture(scope="module")
def trained(commands, settings, tmp_path_factory) -> dict[str, Path]:
    """Undisturbed runs, evaluated; the tests compare others with them."""
    outputs = {}
    for loss in (*LOSSES, "label"):
        outputs[loss] = tmp_path_factory.mktemp(loss)
        found = commands.ok("train", "--stage", "stage2", *settings(outputs[loss], loss))
        says = "training images have no distribution over the categories; they are trained on their label"
        assert (says in found.stderr) == (loss != "label")
    return outputs


def soft_prompt(output: Path) -> torch.Tensor:
    (tensor,) = load_file(output / "stage2" / "soft_prompt_folder.safetensors").values()
    return tensor


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "stage2" / "metrics.jsonl").read_text().splitlines()]


def test_what_is_learned_differs(trained):
    found = [soft_prompt(trained[name]) for name in (*LOSSES, "label")]
    assert not any(torch.allclose(found[a], found[b], atol=1e-4) for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(
    ("loss", "engine"),
    [
        ("weighted", ()),
        ("drawn", ()),
        pytest.param("weighted", ("engine.zero_stage=3",), marks=pytest.mark.full),
        pytest.param("weighted", ("engine.zero_stage=3", "engine.gradient_checkpointing=true"), marks=pytest.mark.full),
    ],
)
def test_two_ranks_learn_what_one_learns(commands, settings, trained, tmp_path, loss, engine):
    Ranks(commands, 2, "train", "--stage", "stage2", *settings(tmp_path, loss, *engine)).ok()
    assert torch.allclose(soft_prompt(tmp_path), soft_prompt(trained[loss]), atol=1e-5, rtol=0)
    assert losses(tmp_path) == pytest.approx(losses(trained[loss]), abs=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_signal_then_the_same_command(commands, settings, trained, tmp_path, loss):
    command = ("train", "--stage", "stage2", *settings(tmp_path, loss))
    running = commands.start(*command)
    log = tmp_path / "stage2" / "metrics.jsonl"
    running.when(lambda: log.exists() and log.read_text().count("\n") >= 4)
    running.kill(signal.SIGTERM)
    assert running.wait().code == 75
    assert "stage2: resuming after step " in commands.ok(*command).stderr
    assert torch.equal(soft_prompt(tmp_path), soft_prompt(trained[loss]))
    other = "drawn" if loss == "weighted" else "weighted"
    refused = commands("train", "--stage", "stage2", *settings(tmp_path, other))
    assert refused.code == 2 and "stage2.distribution_loss" in refused.stderr


def test_a_cache_of_labels_alone_has_no_distributions_to_learn(commands, world, tmp_path):
    more = ("aspects=[]", "stage2.supervision=distribution")
    found = commands("train", "--stage", "stage2", *world.settings(tmp_path, *more))
    assert found.code == 2 and not (tmp_path / "stage2" / "checkpoints").exists()
    assert found.stderr.strip().splitlines()[-1] == (
        "error: stage2.supervision = 'distribution': no training image in cache.dir: "
        f"{world.folder / 'cache'} has a distribution over the categories, only a label; give "
        "stage2.supervision=label, or a cache of a dataset with votes"
    )
    wrong = commands("train", "--stage", "stage2", *world.settings(tmp_path, "aspects=[]", "stage2.supervision=votes"))
    assert wrong.code == 2 and "stage2.supervision" in wrong.stderr and "distribution" in wrong.stderr


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.full
def test_evaluation_report_and_comparison(commands, settings, trained, voted, tmp_path):
    for loss in ("weighted", "label"):
        said = commands.ok("evaluate", *settings(trained[loss], loss))
        *_, about, last = said.stdout.strip().splitlines()
        assert about.startswith("evaluate: against the distributions of the data: expected accuracy ")
        assert last.startswith("evaluate: accuracy ")
    run = trained["weighted"]
    found = json.loads((run / "evaluate" / "metrics.json").read_text())
    cache, records = open_cache(voted), read_records_file(run / "evaluate" / "records.h5")
    votes = [cache.read(cache.row_of(key)).distribution for key in records.keys]
    there = [place for place, own in enumerate(votes) if own is not None]
    assert 0 < len(there) < len(votes) and found["distributions"]["num_samples"] == len(there)
    for place, own in enumerate(votes):
        assert records.distribution[place].tolist() == list(own or (0.0,) * len(cache.categories))
        if own is not None:
            assert records.labels[place] == cache.categories[int(np.argmax(own))]
    p, scores = records.distribution[there], records.scores[there].astype(float)
    log_q = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    kl = np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - log_q), 0).sum(axis=1)
    assert found["distributions"]["kl_divergence"] == pytest.approx(kl.mean())
    agreed = [p[row][cache.categories.index(records.predictions[place])] for row, place in enumerate(there)]
    assert found["distributions"]["expected_accuracy"] == pytest.approx(np.mean(agreed))

    left, *kept = cache.categories
    mapped = tmp_path / "mapped"
    more = (f"evaluate.category_map=[{left}=]", f"evaluate.output_dir={mapped}")
    commands.ok("evaluate", *settings(run, "weighted", *more))
    fewer = read_records_file(mapped / "records.h5")
    assert set(fewer.labels) == set(kept) and len(fewer) == sum(label != left for label in records.labels)
    for key, own in zip(fewer.keys, fewer.distribution, strict=True):
        whole = cache.read(cache.row_of(key)).distribution
        rest = np.array(whole[1:]) if whole else np.zeros(len(kept))
        assert own == pytest.approx(rest / (rest.sum() or 1))

    tables = tmp_path / "tables"
    commands.ok("report", run, "--tables", tables)
    assert "Jensen–Shannon divergence" in (run / "report.html").read_text(encoding="utf-8")
    assert "kl_divergence" in (tables / "metrics.csv").read_text()
    first = table(tables / "records.csv")[there[0]]
    assert [float(first[f"distribution {c}"]) for c in cache.categories] == list(votes[there[0]])

    commands.ok("compare", run, trained["label"], "--output", tmp_path / "compared")
    rows = table(tmp_path / "compared" / "distributions.csv")
    assert float(rows[0]["KL divergence"]) == pytest.approx(kl.mean()) and len(rows) == 2
    assert (tmp_path / "compared" / "distribution-pairs.tex").is_file()
