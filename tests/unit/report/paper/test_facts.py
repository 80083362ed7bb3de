"""Facts of training are those of the artifact that was evaluated, whatever lies in its place."""

import json
import struct

import pytest

from masp.report.content import gather
from masp.report.paper.facts import gather_facts
from tests.unit.report.paper.runs import LINEAGE, make_cited_run


def write_artifact(path, header: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def header(digest: str) -> bytes:
    return json.dumps({"__metadata__": {"masp": json.dumps({"digest": digest})}}).encode()


def test_steps_are_those_of_the_log_beside_the_artifact(tmp_path):
    run = make_cited_run(tmp_path)
    for line in ({"step": 390, "loss": 1.5, "best_step": 200, "num_worse": 1}, {"step": "x"}):
        with open(run / "stage1" / "validation.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
    write_artifact(run / "stage1" / "aspect.safetensors", header(LINEAGE["aspect"]["digest"]))
    facts = gather_facts(gather(run))
    assert (facts["aspect.steps_taken"], facts["aspect.best_step"]) == (390, 200)
    assert "soft_prompt.steps_taken" not in facts  # no artifact is beside that log


@pytest.mark.parametrize(
    "found",
    [
        header("0" * 64),
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"__metadata__": {"masp": 3}}',
        b'{"__metadata__": {"masp": "["}}',
    ],
)
def test_a_log_beside_another_artifact_says_nothing(tmp_path, found):
    run = make_cited_run(tmp_path)
    write_artifact(run / "stage1" / "aspect.safetensors", found)
    assert "aspect.steps_taken" not in gather_facts(gather(run))


def test_what_is_no_artifact_at_all_says_nothing(tmp_path):
    run = make_cited_run(tmp_path)
    (run / "stage1" / "aspect.safetensors").write_bytes(b"\xff" * 9)
    (run / "stage2" / "soft_prompt_x.safetensors").mkdir()
    assert "aspect.steps_taken" not in gather_facts(gather(run))


def test_a_local_vlm_goes_by_the_name_of_its_directory(tmp_path):
    lineage = LINEAGE | {"vlm": {"path": "/home/someone/models/Qwen2-VL-7B"}}
    assert gather_facts(gather(make_cited_run(tmp_path, lineage)))["vlm.name"] == "Qwen2-VL-7B"
