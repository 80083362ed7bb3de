"""`masp predict` for many images: the numbers of `masp evaluate`, in every format, whatever happens meanwhile."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from masp.inference.batch.parts import parts_of, state_of
from masp.report.export import spreadsheet_text
from masp.results.records import FILE, read_records_file
from tests.commands import Ranks
from tests.runs import REPOSITORY
from tests.unit.extraction.test_faults import as_nobody, disk

__all__ = ["disk"]


@pytest.fixture(scope="module")
def records(commands, world, trained, tmp_path_factory):
    """What an evaluation of the same run says of the test images, from live features."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(trained, run)
    commands.ok("evaluate", *world.settings(run, "evaluate.source=live"))
    return read_records_file(run / "evaluate" / FILE)


@pytest.fixture
def images(world):
    """The directory of the test images."""
    return world.folder / "pictures" / "test"


def read(output: Path) -> list[dict]:
    """The rows of an output of any format, in the form of JSON lines."""
    if output.suffix == ".jsonl":
        return [json.loads(line) for line in output.read_text().splitlines()]
    if output.suffix == ".parquet":
        rows = pq.read_table(output).to_pylist()
    else:
        with open(output, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    found = []
    for row in rows:
        nested = {"probabilities": {}, "log_likelihoods": {}, "aspects": row.get("aspects") or {}}
        for name, value in row.items():
            for start, group in (("probability_", "probabilities"), ("log_likelihood_", "log_likelihoods")):
                if name.startswith(start) and value not in (None, ""):
                    nested[group][name.removeprefix(start)] = float(value)
            if name.startswith("aspect_"):
                aspect, _, field = name.removeprefix("aspect_").partition("_")
                nested["aspects"].setdefault(aspect, {})[field] = value if field == "answer" else float(value)
        found.append({name: None if value == "" else value for name, value in row.items()} | nested)
    return found


def check(rows: list[dict], world, records) -> None:
    """Each test image is there once, with the numbers of the evaluation."""
    names = [f"{world.folder}/pictures/{key.replace('%2E', '.')}" for key in records.keys]
    assert sorted(row["image"] for row in rows) == sorted(names) and len(rows) == len(set(names)) == 13
    by_name = {row["image"]: row for row in rows}
    for place, name in enumerate(names):
        row = by_name[name]
        assert row["status"] == "ok" and row["prediction"] == records.predictions[place] and row["reason"] is None
        assert list(row["log_likelihoods"]) == list(records.categories)
        scores = list(row["log_likelihoods"].values())
        np.testing.assert_allclose(scores, records.scores[place], atol=1e-5, rtol=0)
        shares = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(list(row["probabilities"].values()), shares, atol=1e-6)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_an_output_has_the_numbers_of_the_evaluation(commands, world, trained, records, images, tmp_path, suffix):
    output = tmp_path / f"new/o{suffix}"
    done = commands.ok("predict", "--model", trained, images, "--output", output, "evaluate.num_workers=2")
    assert done.last_line == f"predictions: {output} (13 images, 0 of them cannot be read)"
    rows = read(output)
    check(rows, world, records)
    assert [row["image"] for row in rows] == sorted(row["image"] for row in rows)
    assert os.listdir(output.parent) == [output.name]
    before = state_of(output)
    again = commands.ok("predict", "--model", trained, images, "--output", output, "vlm.path=/nothing/is/loaded")
    assert again.last_line == f"predictions: {output} is there already; --overwrite predicts again"
    assert state_of(output) == before
    one = next(images.rglob("*.png"))
    commands.ok("predict", *world.settings(trained), one, "--output", output, "--overwrite")
    assert [row["image"] for row in read(output)] == [str(one)]


@pytest.mark.full
def test_explanations_are_those_that_are_printed(commands, trained, images, tmp_path):
    one = sorted(images.rglob("*.png"))[:2]
    printed = commands.ok("predict", "--model", trained, *one, "--json", "--explain").stdout
    expected = [json.loads(line) for line in printed.splitlines()]
    for suffix in (".csv", ".jsonl", ".parquet"):
        output = tmp_path / f"o{suffix}"
        commands.ok("predict", "--model", trained, *one, "--explain", "--output", output)
        for row, wanted in zip(read(output), expected, strict=True):
            shown = spreadsheet_text if suffix == ".csv" else str  # such a VLM writes control characters
            assert row["explanation"] == shown(wanted["explanation"])
            assert list(row["aspects"]) == list(wanted["aspects"])
            for aspect, said in wanted["aspects"].items():
                found = row["aspects"][aspect]
                assert found["answer"] == shown(said["answer"])
                numbers = {name: value for name, value in said.items() if name != "answer"}
                assert {name: found[name] for name in numbers} == pytest.approx(numbers, abs=1e-5)
            for name in ("all_aspects", "vision_features", "interaction"):
                assert float(row[name]) == pytest.approx(wanted[name], abs=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_the_images(commands, world, trained, records, images, tmp_path, size):
    output = tmp_path / "o.jsonl"
    ranks = Ranks(commands, size, "predict", "--model", trained, images, "--output", output).ok()
    ends = [result.last_line for result in ranks]
    assert sum(line.startswith(f"predictions: {output}") for line in ends) >= 1
    assert all(line.startswith("predictions: ") or "other ranks still have images" in line for line in ends)
    check(read(output), world, records)
    assert not parts_of(output).exists()


def test_images_in_larger_files_are_predicted_alike(commands, trained, images, tmp_path):
    files = sorted(path for path in images.rglob("*") if path.is_file())
    tar, parquet, output = tmp_path / "s.tar", tmp_path / "d.parquet", tmp_path / "o.jsonl"
    with tarfile.open(tar, "w") as archive:
        for number, path in enumerate(files):
            archive.add(path, f"{number:02d}{path.suffix}")
    pq.write_table(pa.table({"image": [path.read_bytes() for path in files]}), parquet, row_group_size=5)
    inputs = [tar, f"{images}/*/*", parquet]
    commands.ok("predict", "--model", trained, *inputs, "--output", output, "evaluate.num_workers=2")
    rows = read(output)
    of_tar, of_files, of_parquet = rows[:13], {row["image"]: row for row in rows[13:26]}, rows[26:]
    for number, path in enumerate(files):
        assert of_tar[number]["image"] == f"{tar}: {number:02d}{path.suffix}"
        assert of_parquet[number]["image"] == f"{parquet}: row {number}"
        expected = pytest.approx(of_files[str(path)]["log_likelihoods"], abs=1e-5)
        assert of_tar[number]["log_likelihoods"] == expected and of_parquet[number]["log_likelihoods"] == expected


def num_rows(output: Path) -> int:
    """Whole lines in the parts of an output."""
    files = [path for path in parts_of(output).glob("*") if path.suffix in (".rows", ".open")]
    return sum(path.read_bytes().count(b"\n") for path in files if path.exists())


def test_a_killed_job_goes_on_without_losing_a_row(commands, world, trained, records, images, tmp_path):
    output = tmp_path / "o.csv"
    argv = ["predict", "--model", trained, images, "--output", output, "evaluate.batch_size=1"]
    for wanted in (2, 5):
        running = commands.start(*argv, "evaluate.num_workers=1")
        running.when(lambda wanted=wanted: num_rows(output) >= wanted)
        running.kill(signal.SIGKILL, group=True)
        assert running.wait().code == -signal.SIGKILL and not output.exists()
    kept = {path.name: path.read_bytes() for path in parts_of(output).glob("*.rows")}
    assert 5 <= num_rows(output) < 13 and kept
    torn = parts_of(output) / f"{len(kept):06d}.open"  # as a kill within a write leaves it
    torn.write_bytes((torn.read_bytes() if torn.exists() else b"") + b'{"number": 7, "pred')
    # a process of two ranks dies in the second half, the other one does the rest
    ranks = Ranks(commands, 2, *argv)
    ranks.running[1].kill(signal.SIGKILL, group=True)
    found = ranks.running[0].wait()
    assert ranks.running[1].wait().code in (-signal.SIGKILL, 0) and found.code == 0, found
    (done,) = re.findall(r"predict: (\d+) of 13 images are predicted already", found.stdout)
    assert len(kept) <= int(done) < 13
    if not output.exists():  # the killed one still held a unit when the other looked
        commands.ok(*argv)
    check(read(output), world, records)
    assert os.listdir(tmp_path) == ["o.csv"]


def test_a_signal_stops_at_a_batch(commands, world, trained, records, images, tmp_path):
    output = tmp_path / "o.parquet"
    argv = ["predict", "--model", trained, images, "--output", output, "evaluate.batch_size=1"]
    for number in (signal.SIGTERM, signal.SIGUSR2):
        before = num_rows(output)
        running = commands.start(*argv)
        running.when(lambda before=before: num_rows(output) > before)
        running.kill(number)
        stopped = running.wait()
        assert stopped.code == 75, stopped
        assert f"{parts_of(output)} keeps what is predicted, the same command goes on" in stopped.stderr
    done = commands.ok(*argv)
    assert "images are predicted already" in done.stdout
    check(read(output), world, records)


@pytest.mark.full
def test_rows_of_something_else_are_not_mixed(commands, world, trained, images, tmp_path):
    output = tmp_path / "o.csv"
    argv = ["predict", "--model", trained, images, "--output", output, "evaluate.batch_size=1"]
    running = commands.start(*argv)
    running.when(lambda: num_rows(output) > 0)
    running.kill(signal.SIGTERM)
    assert running.wait().code == 75
    before = {path.name: path.read_bytes() for path in parts_of(output).iterdir()}
    start = f"error: --output {output}: {parts_of(output)} was begun with "
    for more, what in (
        (["--explain"], "--explain = False, and here it is True; "),
        ([world.config.parent / "pictures" / "train"], "number of images = 13, and here it is 31; "),
        (["vlm.max_pixels=6272"], "vlm: max_pixels = "),
        (["engine.precision=bf16"], "engine.precision = 'fp32', and here it is 'bf16'; run the command that began"),
    ):
        refused = commands(*argv, *more)
        if "vlm.max_pixels=6272" in more:  # the soft prompt does not fit it either, which is said first
            assert refused.code == 2 and "max_pixels" in refused.stderr
            continue
        assert refused.code == 2 and refused.stderr.splitlines()[-1].startswith(start + what), refused
    (parts_of(output) / "diary.txt").write_text("dear diary")
    refused = commands(*argv)
    assert refused.code == 2 and "holds diary.txt, which no batch prediction left" in refused.stderr
    (parts_of(output) / "diary.txt").unlink()
    assert {path.name: path.read_bytes() for path in parts_of(output).iterdir()} == before
    damaged = parts_of(output) / "000000.rows"
    damaged.write_bytes(damaged.read_bytes().replace(b'"number": 0', b'"number": 4'))
    refused = commands(*argv)
    assert refused.code == 3 and f"{damaged} is damaged" in refused.stderr, refused
    damaged.unlink()
    commands.ok(*argv)


def test_images_that_cannot_be_read_and_names_that_are_hostile(commands, trained, images, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    good = next(images.rglob("*.png")).read_bytes()
    hostile = ["=cmd|' C calc'!A0.png", "new\nline, and comma.png", 'quote".png', "caf\udce9.png", "\u202egnp.png"]
    for name in hostile:
        Path(mine / name).write_bytes(good)
    (mine / "0-broken.png").write_bytes(b"not an image")
    (mine / "1-empty.png").write_bytes(b"")
    for suffix in (".csv", ".jsonl", ".parquet"):
        output = tmp_path / f"o{suffix}"
        done = commands.ok("predict", "--model", trained, mine, "--output", output)
        assert done.last_line == f"predictions: {output} (7 images, 2 of them cannot be read)"
        rows = read(output)
        bad, fine = rows[:2], rows[2:]
        assert [row["status"] for row in rows] == ["unreadable"] * 2 + ["ok"] * 5
        assert all(row["reason"] and row["prediction"] is None for row in bad) and bad[1]["reason"] == "empty file"
        assert len({row["prediction"] for row in fine}) == 1
        found = [row["image"].removeprefix(f"{mine}/") for row in fine]
        if suffix == ".jsonl":
            assert found == sorted(hostile)
        elif suffix == ".parquet":
            assert found == [name.replace("\udce9", "\\udce9") for name in sorted(hostile)]
        else:
            escaped = {"\n": "\\n", "\udce9": "\\udce9", "\u202e": "\\u202e"}
            assert found == ["".join(escaped.get(c, c) for c in name) for name in sorted(hostile)]
    alone = tmp_path / "alone.csv"
    refused = commands("predict", "--model", trained, mine / "0-broken.png", "--output", alone)
    assert refused.code == 2 and f"none of 1 image can be read; {alone} says why" in refused.stderr
    assert read(alone)[0]["status"] == "unreadable"
    printed = commands("predict", "--model", trained, mine / "0-broken.png", next(images.rglob("*.png")))
    assert printed.code == 2 and printed.stdout and "1 of 2 images cannot be read: " in printed.stderr


@pytest.mark.full
def test_a_path_that_is_a_formula_and_standard_input(trained, images, tmp_path):
    """Relative names, as a process of its own has them."""
    shutil.copy(next(images.rglob("*.png")), tmp_path / "=1+1.png")
    command = [sys.executable, "-m", "masp", "predict", "--model", trained, "-0", "-", "--output", "o.csv"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    for stdin, code in ((b"=1+1.png\0gone.png\0", 0), (None, 2)):
        (tmp_path / "o.csv").unlink(missing_ok=True)
        options = {"input": stdin} if stdin else {"preexec_fn": lambda: os.close(0)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=300, **options)
        assert done.returncode == code, done
        if stdin:
            assert [row["image"] for row in read(tmp_path / "o.csv")] == ["'=1+1.png", "gone.png"]
            assert read(tmp_path / "o.csv")[1]["reason"] == "file not found"
    assert b"1 of 1 inputs cannot be read: - (standard input" in done.stderr


def test_options_that_do_not_go_together(commands, trained, images, tmp_path):
    one, output = next(images.rglob("*.png")), tmp_path / "o.csv"
    bare = ["checkpoint.aspect=none", "checkpoint.soft_prompt=none", "dataset.categories=[joy,awe]"]
    for more, problem in (
        (["--overwrite"], "--overwrite: only with --output"),
        (["--output", "o.xlsx"], "--output o.xlsx: must end in .csv, .jsonl, .parquet"),
        (["--output", output, "--json"], "--json: not with --output; FILE.jsonl has the same"),
        (["--output", output, "--attention", "a.html"], "--attention: not with --output; leave it out"),
        (["--output", output, tmp_path / "gone.png"], "1 of 2 inputs cannot be read: "),
        (["--output", output, "--explain", *bare], "--explain: this run has no aspect modules to show"),
    ):
        refused = commands("predict", "--model", trained, one, *more)
        assert refused.code == 2 and refused.stderr.splitlines()[-1].startswith(f"error: {problem}"), refused
        assert refused.stdout == "" and not output.exists() and not parts_of(output).exists()
    two = Ranks(commands, 2, "predict", "--model", trained, one, "--output", output, "--overwrite").wait()
    assert all(each.code == 2 and "--overwrite: not on several ranks" in each.stderr for each in two)


def test_a_disk_that_is_full(commands, world, trained, records, images, disk, tmp_path):
    small = disk("size=40k")
    output = small / "o.jsonl"
    argv = ["predict", "--model", trained, images, "--output", output, "--explain", "evaluate.batch_size=1"]
    for _ in range(2):
        full = commands(*argv)
        assert full.code == 2 and "Traceback" not in full.stderr, full
        assert "cannot be written: No space left on device; what is predicted is kept" in full.stderr
    assert num_rows(output) and not output.exists()
    subprocess.run(["mount", "-o", "remount,size=4m", small], check=True)
    commands.ok(*argv)
    check(read(output), world, records)
    assert os.listdir(small) == [output.name]


def test_a_directory_that_may_not_be_written(trained):
    from masp.errors import InputError
    from masp.inference.batch.parts import Parts

    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        output = Path(name) / "o.csv"
        with as_nobody(), pytest.raises(InputError) as error:
            Parts(output, {}, {}, 3)
        assert str(error.value).startswith(
            f"--output {output}: {name}/o.csv.parts cannot be written: Permission denied"
        )
