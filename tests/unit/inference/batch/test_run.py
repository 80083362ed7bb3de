"""Batch prediction at its size: a million images, of which only the VLM is a stub."""

import csv
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from masp.errors import DataError, StoppedEarly
from masp.extraction.image_stream import ImageDataset
from masp.inference.batch.inputs import list_images
from masp.inference.batch.parts import parts_of
from masp.inference.batch.run import outcomes, predict_to_file
from masp.runtime.stop import StopFlag
from tests.runs import REPOSITORY
from tests.unit.inference.batch.stub_of_a_vlm import CATEGORIES, scores_of, stub_model

STUB = Path(__file__).with_name("stub_of_a_vlm.py")


def write_rows(path: Path, count: int) -> Path:
    """A parquet file of so many images."""
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for start in range(0, count, 10_000):
            rows = min(10_000, count - start)
            writer.write_table(pa.table({"image": [file.getvalue()] * rows}, schema))
    return path


def start(source: Path | str, output: Path, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, STUB, source, output]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def finish(process: subprocess.Popen) -> int:
    """Wait for the end; returns the peak memory, bytes."""
    out, err = process.communicate()
    assert process.returncode == 0, err.decode()
    return int(out.split()[-1])


def kill_after(process: subprocess.Popen, output: Path, num_units: int) -> None:
    while len(list(parts_of(output).glob("*.rows"))) < num_units:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()


def check(output: Path, source: Path, count: int) -> None:
    with open(output, newline="") as file:
        rows = csv.DictReader(file)
        number = -1
        for number, row in enumerate(rows):
            assert row["image"] == f"{source}: row {number}" and row["status"] == "ok"
            if number % 997 == 0:
                found = tuple(float(row[f"log_likelihood_{category}"]) for category in CATEGORIES)
                assert found == scores_of(row["image"])
    assert number == count - 1


@pytest.mark.parametrize(
    "count", [pytest.param(3_000, marks=pytest.mark.full), pytest.param(1_000_000, marks=pytest.mark.full)]
)
def test_memory_stays_flat_and_kills_lose_nothing(tmp_path, count):
    small, large = write_rows(tmp_path / "small.parquet", count // 10), write_rows(tmp_path / "large.parquet", count)
    base = finish(start(small, tmp_path / "small.csv"))
    output = tmp_path / "large.csv"
    for share in (4, 2):
        process = start(large, output)
        kill_after(process, output, min(64, count // 256) // share)
        assert not output.exists()
    two = [start(large, output), start(large, output)]
    peaks = [finish(process) for process in two]
    assert output.exists() and not parts_of(output).exists()
    # 12 bytes per image, and the row groups that a process keeps
    assert max(peaks) - base < 60 * count + (64 << 20), (base, peaks)
    check(output, large, count)


@pytest.mark.full
@pytest.mark.parametrize("times", [1, 2])
def test_a_million_paths_take_little_memory(tmp_path, times):
    """Also where each is named twice."""
    code = (
        "import sys; from masp.inference.batch.inputs import list_images; from tests.memory import peak_memory_bytes;"
        "found = list_images(['-'], None, sys.stdin.buffer); found.digest;"
        "print(len(found), found[len(found) - 1].name, peak_memory_bytes())"
    )
    peaks = []
    for count in (100_000 // times, 1_000_000 // times):
        lines = b"".join(b"/nowhere/photos/of/a/holiday/%08d.jpg\n" % n for n in range(count)) * times + b"/tmp\n/tmp\n"
        (tmp_path / "paths").write_bytes(b"/tmp\n" + lines)
        with open(tmp_path / "paths", "rb") as file:
            environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
            done = subprocess.run([sys.executable, "-c", code], stdin=file, env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr
        length, last, peak = done.stdout.split()
        assert int(length) == count + 1 and last == b"/nowhere/photos/of/a/holiday/%08d.jpg" % (count - 1)
        peaks.append(int(peak))
    # 40 bytes of a path, 8 where it ends, 8 of its hash, and twice 8 while these are sorted; the last may grow in place
    assert peaks[1] - peaks[0] < 100 * 900_000, peaks


def test_a_file_system_that_does_not_answer_stops_the_job(tmp_path, monkeypatch):
    source, output = write_rows(tmp_path / "s.parquet", 20), tmp_path / "o.jsonl"
    images = list_images([str(source)])
    model = stub_model("evaluate.batch_size=4")
    prepare = ImageDataset.prepare

    def fails(self, position, change=None):
        found = prepare(self, position, change)
        found.failure = "row 9: Input/output error" if position == 9 else None
        return found

    with monkeypatch.context() as broken:
        broken.setattr(ImageDataset, "prepare", fails)
        with pytest.raises(DataError, match="^row 9: Input/output error: the file system does not answer; what is pre"):
            predict_to_file(model, images, output)
        printed = [each for batch in outcomes(model, images) for each in batch]
        assert [each.reason for each in printed if each.reason] == ["row 9: Input/output error"]
    assert len(list(parts_of(output).glob("*.rows"))) == 8
    predict_to_file(model, images, output)
    assert len(output.read_text().splitlines()) == 20


@pytest.mark.full
def test_a_container_that_has_changed_meanwhile(tmp_path):
    source, output = write_rows(tmp_path / "s.parquet", 8), tmp_path / "o.jsonl"
    images = list_images([str(source)])
    os.utime(source, (1, 1))
    with pytest.raises(DataError, match="has changed since it was listed"):
        predict_to_file(stub_model("evaluate.batch_size=4"), images, output)


def test_a_stop_comes_between_batches(tmp_path):
    source, output = write_rows(tmp_path / "s.parquet", 20), tmp_path / "o.jsonl"
    images, stop = list_images([str(source)]), StopFlag()
    stop.set()
    for done in (4, 8):
        with pytest.raises(StoppedEarly):
            predict_to_file(stub_model("evaluate.batch_size=4"), images, output, stop=stop)
        assert len(list(parts_of(output).glob("*.rows"))) == done
    assert predict_to_file(stub_model("evaluate.batch_size=3"), images, output) == output
    assert len(output.read_text().splitlines()) == 20
