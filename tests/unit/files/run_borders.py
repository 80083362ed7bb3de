"""The files that runs write and read again, for the test that damages them: valid content and reader of each."""

from __future__ import annotations

import functools
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from masp.artifacts.store import Lineage, load_aspects, load_soft_prompt, save_aspects, save_soft_prompt
from masp.config import load_config
from masp.data.findings import DatasetRecord, Finding, Holdings, load_findings, save_findings
from masp.evaluation.transfer import dataset_configs
from masp.experiments.parity import Golden
from masp.experiments.seed_groups import read_settings
from masp.files.jsonl import cut_lines
from masp.files.remembered import read_rows
from masp.files.sealed import sealed
from masp.files.typed import decode, read
from masp.models.trainable import AspectModules, SoftPrompt
from masp.plan.headers.memory import COLUMNS, HeaderMemory, made_by
from masp.plan.rates import read_speeds
from masp.report.run_config import RunConfig, find_config
from masp.results.aspect_records import read_aspect_records, write_aspect_records
from masp.results.attention_maps import AttentionFile, read_attention
from masp.results.explanations.explanations_file import read_explanations
from masp.results.ledger import read_records
from masp.results.ledger_file import Ledger
from masp.results.ledger_format import MapPlace, Record
from masp.results.ledgers.index import LedgerIndex
from masp.results.ledgers.slices import Slice, SliceLog
from masp.results.metrics_file import (
    ProbeFile,
    PromptRow,
    PromptTable,
    read_datasets,
    read_metrics,
    read_probe,
    read_prompts,
    read_summary,
    write_object,
)
from masp.results.records import DataDigests, read_records_file, write_target_records
from masp.runtime.run_directory import RunState, _Holder, read_status, write_status
from masp.training.checkpoint import (
    Checkpoint,
    EngineCounters,
    ValidationState,
    latest_name,
    load_latest,
    save_checkpoint,
)
from masp.training.logs import read_key_logs
from tests.unit.results.explanations.test_explanations_file import make_file

CATEGORIES = ("awe", "fear")
IDENTITY = {"seed": 1, "stage1.learning_rate": 1e-3, "num_steps": 60}
HIDDEN_SIZE = 4
METRICS = {
    "num_samples": 4,
    "num_correct": 3,
    "accuracy": 0.75,
    "accuracy_ci95": [0.3, 0.95],
    "macro_f1": 0.7,
    "categories": list(CATEGORIES),
    "confusion": [[2, 0], [1, 1]],
    "coverage": 1.0,
    "notes": ["a note"],
    "time": 1763990000.25,
    "lineage": {"cache": "0" * 64, "settings": {"seed": 1}},
}
ROW = {
    "num_samples": 4,
    "num_correct": 3,
    "accuracy": 0.75,
    "accuracy_ci95": [0.3, 0.95],
    "category_map": {"joy": "awe"},
}
FIRST = PromptRow(1, 1, "Which of awe, fear?", 0.75, (0.3, 0.95), 0.7, 0.5, 1.0)
WORDINGS = PromptTable(
    num_samples=4,
    rows={"first": FIRST, "order-2": PromptRow(1, 2, "Which of fear, awe?", 0.5, (0.15, 0.85), None, None, 0.75)},
    mean=0.625,
    spread=0.18,
    lowest=0.5,
    highest=0.75,
    agreement_of_pairs=0.75,
    agreement_of_all=0.75,
)
PROBE = ProbeFile(4, 3, 0.75, (0.3, 0.95), 20, 30, "0" * 64)
SHOWN = b"""dataset: {name: emoset, root: data}
evaluate: {split: val, scoring: generate}
stage2: {layout: released}
vlm: {path: vlm, max_side: 100, transparency: drop}
checkpoint: {aspect: a.pth}
"""
SPEED = {
    "step": 2,
    "epoch": 0.5,
    "loss": 1.5,
    "samples_per_second": 3.5,
    "tokens_per_second": 390.5,
    "time": 1763990000.25,
}
CONFIG = b"""seed: 7
output_dir: out
vlm:
  path: vlm
dataset: {name: emoset, root: data}
cache: {dir: cache}
stage1:
  num_epochs: 2
"""


@dataclass(frozen=True)
class RunBorder:
    """A file of a run; the fields are those of `Border` in test_fuzz_borders.py."""

    name: str
    form: str
    make: Callable[[Path], bytes]
    read: Callable[[Path], object]
    file: str
    checked: bool = False
    lenient: bool = False


def records() -> list[Record]:
    scores = ((-0.5, -1.5), (-2.25, -0.125))
    return [
        Record(f"test/{label}/{i}", label, scores=scores[i], mean_scores=scores[i], prediction=label)
        for i, label in enumerate(CATEGORIES)
    ]


def ledger(directory: Path) -> bytes:
    with Ledger(directory, "rank-0", {"cache": "ab12", "categories": list(CATEGORIES)}) as file:
        for record in records():
            file.append(record)
    return file.path.read_bytes()


def records_file(directory: Path) -> bytes:
    path = directory / "records.h5"
    write_target_records(path, records(), CATEGORIES, (), (), DataDigests("a" * 64, "b" * 64))
    return path.read_bytes()


def aspect_records_file(directory: Path) -> bytes:
    answered = [
        Record("test/a#scene", "sea", "sea", scores=(-0.5, -1.5), mean_scores=(-0.5, -1.5)),
        Record("test/a#object", "dog", "cat", text="cat"),
    ]
    write_aspect_records(directory / "records.h5", answered, {"scene": ("sea", "wood")})
    return (directory / "records.h5").read_bytes()


def read_aspect_content(path: Path) -> list:
    found = read_aspect_records(path)
    compared = {
        aspect: (answers.rows.tolist(), answers.answers, answers.scores.tolist(), answers.mean_scores.tolist())
        for aspect, answers in found.compared.items()
    }
    return [found.keys, found.aspects, found.labels, found.predictions, found.texts, compared]


def written(value: PromptTable | ProbeFile) -> Callable[[Path], bytes]:
    def make(directory: Path) -> bytes:
        write_object(directory / "written.json", value)
        return (directory / "written.json").read_bytes()

    return make


def records_with_distributions(directory: Path) -> bytes:
    path, votes = directory / "records.h5", np.array([[0.5, 0.5], [0.0, 0.0]])
    write_target_records(path, records(), CATEGORIES, (), (), None, votes)
    return path.read_bytes()


def read_records_content(path: Path) -> list:
    found = read_records_file(path)
    votes = None if found.distribution is None else found.distribution.tolist()
    return [found.keys, found.labels, found.predictions, found.categories, found.scores.tolist(), found.data, votes]


def checkpoint(file: str) -> Callable[[Path], bytes]:
    def make(directory: Path) -> bytes:
        validation = ValidationState() if file == "latest" else None
        tensors = {"weight": torch.arange(6.0).reshape(2, 3), "weight#exp_avg": torch.ones(2, 3)}
        save_checkpoint(directory, Checkpoint(5, IDENTITY, tensors, EngineCounters(), validation), keep=1)
        return (directory / file).read_bytes()

    return make


def read_checkpoint(directory: Path) -> list:
    found = load_latest(directory, IDENTITY)
    assert found is not None
    return [found.step, found.identity, {name: tensor.tolist() for name, tensor in found.tensors.items()}]


@functools.cache
def aspects() -> AspectModules:
    torch.manual_seed(0)
    return AspectModules(["scene"], HIDDEN_SIZE, 2)


def aspect_file(name: str) -> Callable[[Path], bytes]:
    def make(directory: Path) -> bytes:
        save_aspects(aspects(), directory, Lineage("aspect", "trained", aspects=("scene",), cache="0" * 64))
        return (directory / name).read_bytes()

    return make


def soft_prompt_file(suffix: str) -> Callable[[Path], bytes]:
    def make(directory: Path) -> bytes:
        lineage = Lineage("soft_prompt", "trained", dataset="mine", layout="after_image", categories=CATEGORIES)
        return (
            save_soft_prompt(SoftPrompt(torch.ones(3, HIDDEN_SIZE)), directory, lineage)
            .with_suffix(suffix)
            .read_bytes()
        )

    return make


def key_log(_: Path) -> bytes:
    lines = ({"step": n, "epoch": 0, "num_ranks": 1, "keys": ["train/awe/1"]} for n in (1, 2))
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def status(directory: Path) -> bytes:
    write_status(directory, RunState.STOPPED, 75, "stopped after step 3", step=3, num_steps=9)
    return (directory / "status.json").read_bytes()


def validation_log(_: Path) -> bytes:
    lines = ({"step": n, "loss": 2.0 - n / 8, "best_step": n, "num_worse": 0} for n in (2, 4, 6))
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def cut_log(path: Path) -> bytes:
    """What is left of a log that a run goes on with."""
    cut_lines(path, 4)
    return path.read_bytes()


OTHER = b"""dataset: {name: artphoto, root: data}
cache: {dir: other}
evaluate:
  split: train
  category_map: [content=contentment, sad=sadness, fear=]
"""


def read_other(path: Path) -> object:
    own = path.with_name("own.yaml")
    own.write_bytes(CONFIG)
    return dataset_configs(load_config(own), [str(path)])


def read_shown(path: Path) -> RunConfig:
    """What a report takes from a configuration: whatever is damaged, each setting is valid or named."""
    found = find_config(path.parent)
    assert found.split in (None, "train", "val", "test") and found.scoring in (None, "likelihood", "generate")
    assert found.layout in (None, "after_image", "released") and found.transparency in ("white", "drop")
    for line in found.problems:
        assert str(path) in line and "\n" not in line and len(line) < 2000, line
    return found


def strict(read: Callable[[Path, list[str]], object]) -> Callable[[Path], object]:
    """A reader that leaves out what is damaged and says so; what it leaves out is part of the value."""

    def values(path: Path) -> object:
        problems: list[str] = []
        return read(path, problems), problems

    return values


def content(value: object) -> Callable[[Path], bytes]:
    return lambda _: json.dumps(value).encode()


MAP = np.full((1, 2, 3), 1 / 6, dtype=np.float32)
PLACE = MapPlace("rank-0", 0, (1, 2, 3), zlib.crc32(MAP.tobytes()))


def maps(directory: Path) -> bytes:
    file = AttentionFile(directory, "rank-0")
    file.append(MAP)
    file.close()
    return (directory / "rank-0.attention").read_bytes()


def slices(directory: Path) -> bytes:
    log = SliceLog(directory, {"cache": "ab12"})
    log.create()
    for event in ("begun", "done"):
        log.append(event, Slice(1, 2))
    return log.path.read_bytes()


def read_slices(path: Path) -> list:
    log = SliceLog(path.parent, {"cache": "ab12"})
    return [log.is_there, log.begun, log.not_done(9).tolist()]


def indexed(path: Path) -> LedgerIndex:
    keys = [record.sample_key for record in records()]
    identity = {"cache": "ab12", "categories": list(CATEGORIES)}
    return LedgerIndex(path.with_name("rank-0.jsonl"), identity, bytes(32), lambda *a: keys.index(a[2].sample_key))


def ledger_index(directory: Path) -> bytes:
    ledger(directory)
    index = indexed(directory / ".rank-0.index")
    index._save((directory / "rank-0.jsonl").stat().st_size, index.positions())
    return (directory / ".rank-0.index").read_bytes()


def findings(directory: Path) -> bytes:
    holdings = Holdings({"train": {"awe": 2}}, {"train": {"scene": 1}})
    save_findings(
        directory,
        DatasetRecord(1, "0" * 64, holdings, (Finding("names", "a text", 2, examples=("a", "b"), serious=True),)),
    )
    return (directory / "findings.json").read_bytes()


def header_memory(directory: Path) -> bytes:
    image = directory / "image"
    image.write_bytes(b"1")
    os.utime(image, (1, 1))
    memory = HeaderMemory(directory / "headers.bin", None, [image])
    memory._memory._settled[:] = True  # an hour later
    memory.sizes[0] = (40, 30)
    memory.save()
    return (directory / "headers.bin").read_bytes()


GOLDEN = {
    "stage1": [{"image": "a.jpg", "aspect": "scene", "question": "Where?", "answer": "sea", "loss": 1.5}],
    "stage2": [
        {
            "image": "a.jpg",
            "question": "Which?",
            "answer": "awe",
            "loss": 0.5,
            "soft_prompt_grad_norm": 1.0,
            "soft_prompt_grad_row_norms": [0.5],
        }
    ],
    "evaluate": [{"image": "a.jpg", "question": "Which?", "generated_ids": [3], "first_logits_top10": [[3, 1.5]]}],
    "note": {"aspects": ["scene"]},
}

RUN_BORDERS = (
    RunBorder(
        "attention maps",
        "binary",
        maps,
        lambda p: read_attention(p.parent, PLACE).tolist(),
        "rank-0.attention",
        checked=True,
    ),
    RunBorder("slices", "lines", slices, read_slices, "slices.log", lenient=True),
    RunBorder(
        "index of a ledger",
        "binary",
        ledger_index,
        lambda p: indexed(p).positions().tolist(),
        ".rank-0.index",
        checked=True,
        lenient=True,
    ),
    RunBorder("findings.json", "sealed", findings, lambda p: load_findings(p.parent), "findings.json"),
    RunBorder(
        "sizes of images",
        "binary",
        header_memory,
        lambda p: read_rows(p, made_by(None), COLUMNS).tolist(),
        "headers.bin",
        lenient=True,
    ),
    RunBorder("golden.json", "json", content(GOLDEN), lambda p: read(Golden, p), "golden.json"),
    RunBorder("ledger", "lines", ledger, lambda p: read_records(p.parent), "rank-0.jsonl"),
    RunBorder("records.h5", "binary", records_file, read_records_content, "records.h5", checked=True),
    RunBorder("records.h5 of stage 1", "binary", aspect_records_file, read_aspect_content, "records.h5", checked=True),
    RunBorder("prompts.json", "sealed", written(WORDINGS), read_prompts, "prompts.json"),
    RunBorder("linear_probe.json", "sealed", written(PROBE), read_probe, "linear_probe.json"),
    RunBorder("explanations.json", "sealed", lambda _: sealed(make_file(3)), read_explanations, "explanations.json"),
    RunBorder("settings that a report shows", "yaml", lambda _: SHOWN, read_shown, "config.yaml", lenient=True),
    RunBorder(
        "records.h5 with distributions",
        "binary",
        records_with_distributions,
        read_records_content,
        "records.h5",
        checked=True,
    ),
    RunBorder("metrics.json", "json", content(METRICS), strict(read_metrics), "metrics.json"),
    RunBorder("datasets.json", "json", content({"mine": ROW}), strict(read_datasets), "datasets.json"),
    RunBorder("summary.json", "json", content({"masp": ROW}), strict(read_summary), "summary.json"),
    RunBorder(
        "state of a checkpoint",
        "sealed",
        checkpoint("step-00000005/state.json"),
        lambda p: read_checkpoint(p.parents[1]),
        "step-00000005/state.json",
    ),
    RunBorder(
        "tensors of a checkpoint",
        "binary",
        checkpoint("step-00000005/state.safetensors"),
        lambda p: read_checkpoint(p.parents[1]),
        "step-00000005/state.safetensors",
        checked=True,
    ),
    RunBorder("latest", "binary", checkpoint("latest"), lambda p: latest_name(p.parent), "latest"),
    RunBorder(
        "aspect modules",
        "binary",
        aspect_file("aspect.safetensors"),
        lambda p: load_aspects(str(p), ["scene"], HIDDEN_SIZE)[1],
        "aspect.safetensors",
    ),
    RunBorder(
        "released aspect modules",
        "binary",
        aspect_file("aspect.pth"),
        lambda p: load_aspects(str(p), ["scene"], HIDDEN_SIZE)[1],
        "aspect.pth",
        checked=True,
    ),
    RunBorder(
        "soft prompt",
        "binary",
        soft_prompt_file(".safetensors"),
        lambda p: load_soft_prompt(str(p), HIDDEN_SIZE)[1],
        "soft_prompt_mine.safetensors",
    ),
    RunBorder(
        "released soft prompt",
        "binary",
        soft_prompt_file(".pt"),
        lambda p: load_soft_prompt(str(p), HIDDEN_SIZE)[1],
        "soft_prompt_mine.pt",
        checked=True,
    ),
    RunBorder("key log", "lines", key_log, lambda p: read_key_logs(p.parents[1]), "keys/rank-0.jsonl"),
    RunBorder(
        "training log",
        "lines",
        lambda _: 3 * (json.dumps(SPEED).encode() + b"\n"),
        lambda p: read_speeds(p.parent),
        "metrics.jsonl",
    ),
    RunBorder("status", "json", status, lambda p: read_status(p.parent), "status.json", lenient=True),
    RunBorder(
        "run lock", "json", content({"host": "a", "pid": 1}), lambda p: decode(_Holder, p.read_bytes(), "lock"), ".lock"
    ),
    RunBorder("validation log", "lines", validation_log, cut_log, "validation.jsonl", lenient=True),
    RunBorder(
        "settings of a compared run",
        "yaml",
        lambda _: CONFIG,
        lambda p: read_settings(p.with_name("records.h5")),
        "run/evaluate/config.yaml",
    ),
    RunBorder("another dataset and its categories", "yaml", lambda _: OTHER, read_other, "other.yaml"),
    RunBorder("configuration", "yaml", lambda _: CONFIG, load_config, "run.yaml"),
)
