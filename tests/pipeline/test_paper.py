"""What `masp report --latex` says of a real run is what the run's files say."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from masp.config.yaml_text import parse_yaml
from tests.unit.report.paper.runs import check_latex

OURS = {"95", "256", "1", "2"}
"""Numbers of our own words: 95 % intervals, SHA-256, stage 1 and 2."""


def leaves(value) -> Iterator:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)
    else:
        yield value


def spellings(value) -> set[str]:
    """How the paragraph may write a value of a file."""
    if isinstance(value, str):
        return set(re.findall(r"[0-9][0-9.]*", value))
    if isinstance(value, bool) or value is None:
        return set()
    shown = {repr(value).removesuffix(".0"), f"{value:,}".removesuffix(".0"), f"{value:.3f}", f"{100 * value:.1f}"}
    return shown | {part for text in shown for part in re.findall(r"[0-9][0-9.]*", text)}


def test_every_number_of_the_methods_is_in_the_files_of_the_run(commands, world, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")  # other tests evaluate the same run
    directory = run / "evaluate"
    for more in (("evaluate.attention=true",), ("evaluate.stage=stage1",)):
        commands.ok("evaluate", *world.settings(run, *more))
    done = commands.ok("report", run, "--output", tmp_path / "page.html", "--latex", tmp_path / "paper")
    assert f"report: for a paper: {tmp_path / 'paper'}" in done.stdout
    known = set(OURS)
    tree, _ = parse_yaml((directory / "config.yaml").read_text(), "config.yaml")
    metrics = json.loads((directory / "metrics.json").read_text())
    answers = json.loads((run / "evaluate-stage1" / "metrics.json").read_text())
    for value in (*leaves(metrics), *leaves(answers), *leaves(tree)):
        known |= spellings(value)
    counts = [len(metrics["categories"])]
    text = (tmp_path / "paper" / "methods.md").read_text()
    digests = set(re.findall(r"`([0-9a-f]{12})`", text))
    assert digests <= {str(value)[:12] for value in leaves(metrics["lineage"])} and len(digests) == 8
    plain = re.sub(r"`[0-9a-f]{12}`", "", text).replace(",", "")
    numbers = {number.rstrip(".") for number in re.findall(r"[0-9][0-9.]*", plain)}
    assert numbers - known - {str(count) for count in counts} == set(), text
    steps = metrics["lineage"]["aspect"]["settings"]["num_steps"]
    for expected in (
        f"right on {metrics['num_correct']} of 13 images: an accuracy of {100 * metrics['accuracy']:.1f} %",
        "18 training images, 13 test images",
        f"for 2 epochs ({steps} steps) in batches of 4 images at a learning rate of 0.01",
        "as 4 vectors",
        "seed 3407",
        "The software was MASP",
    ):
        assert expected in text, (expected, text)
    check_latex((tmp_path / "paper" / "methods.tex").read_text())
    check_latex((tmp_path / "paper" / "main.tex").read_text())
    names = {path.name for path in (Path(tmp_path) / "paper" / "figures").iterdir()}
    assert {
        "attention.pdf",
        "confusion-brightness.svg",
        "calibration.pdf",
        "stage1-loss.svg",
        "stage2-loss.pdf",
    } <= names
    assert not (tmp_path / "paper" / "tables" / "records.csv").exists()  # a line per image is for --tables
