"""Extraction: the same bytes however it runs, resumption, refusals by name, nothing finished lost."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image

from masp.cache import writer
from masp.cache.codec import TORCH_NAMES
from masp.cache.layout import LAYOUT
from masp.cache.reader import open_cache
from masp.cache.verify import verify_cache
from masp.cache.writer import ShardWriter
from masp.config import save_config
from masp.data.datasets import dataset_of
from masp.errors import DataError, InputError, StoppedEarly
from masp.extraction.encoder import Encoder
from masp.extraction.job import extract
from masp.runtime.stop import StopFlag
from masp.vlm.features import Features
from masp.vlm.vision import VisionHalf
from tests.images import make_config, make_dataset
from tests.tiny import make_vlm


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return make_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"), broken=True)


@pytest.fixture(scope="module")
def plain(data, vlm, tmp_path_factory):
    """A cache made by one process without workers, never interrupted; read-only."""
    return extract(make_config(data, vlm, tmp_path_factory.mktemp("plain")))


def digests(folder, pattern="*.tar"):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "shards").glob(pattern)}


def merged(folder):
    """Index, quarantine list and manifest must not depend on how a cache came about either."""
    return [(folder / name).read_bytes() for name in ("index.h5", "quarantine.jsonl", "manifest.json")]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_any_number_of_workers_gives_the_same_bytes(data, vlm, plain, tmp_path, num_workers):
    folder = extract(make_config(data, vlm, tmp_path / "c", f"extract.num_workers={num_workers}"))
    assert digests(folder) == digests(plain)
    assert merged(folder) == merged(plain)


@pytest.mark.parametrize("num_tasks", [2, 3, 9])
def test_any_number_of_tasks_gives_the_same_bytes(data, vlm, plain, tmp_path, num_tasks, capsys):
    config = make_config(data, vlm, tmp_path / "c")
    for task in reversed(range(num_tasks)):
        with pytest.raises(InputError, match="of 4 shards are missing|is not a feature cache|does not exist"):
            open_cache(tmp_path / "c")
        extract(config, num_tasks=num_tasks, task_index=task)
    assert "shards of" in capsys.readouterr().out
    assert digests(tmp_path / "c") == digests(plain)
    assert merged(tmp_path / "c") == merged(plain)


def test_neither_batches_nor_blanks_leak_into_neighbors(data, vlm, plain, tmp_path):
    """Features agree with those of a run that encodes each image alone."""
    alone = open_cache(extract(make_config(data, vlm, tmp_path / "c", "extract.batch_tokens=1")))
    together = open_cache(plain)
    for row in range(len(together)):
        torch.testing.assert_close(
            alone.read(row).features.tokens, together.read(row).features.tokens, rtol=0, atol=1e-5
        )


def test_broken_images_are_listed_with_their_reason(plain):
    lines = [json.loads(line) for line in (plain / "quarantine.jsonl").read_text().splitlines()]
    assert {line["path"]: line["reason"].split(":")[0] for line in lines} == {
        "test/joy/empty.jpg": "empty file",
        "train/anger/train.000.jpg": "damaged",
        "train/awe/words.png": "no image, or of a format that is not supported",
    }
    assert all(line["key"].startswith(line["path"].split("/")[0]) for line in lines)


def test_a_complete_cache_is_left_alone(data, vlm, plain, capsys, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in plain.rglob("*") if p.is_file() and p.name != ".lock"}
    monkeypatch.setattr("masp.extraction.job._encode", lambda *_: pytest.fail("nothing is to do"))
    assert extract(make_config(data, vlm, plain)) == plain
    assert "is complete: 23 images in 4 shards" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_cache_of_an_earlier_version_gets_its_answers_and_nothing_else_changes(data, vlm, plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "c")
    before = digests(folder, "*"), merged(folder), (folder / "answers.safetensors").read_bytes()
    (folder / "answers.safetensors").unlink()
    extract(make_config(data, vlm, folder), num_tasks=2, task_index=1)
    assert not (folder / "answers.safetensors").exists()  # one task is enough
    extract(make_config(data, vlm, folder), num_tasks=2, task_index=0)
    assert (digests(folder, "*"), merged(folder), (folder / "answers.safetensors").read_bytes()) == before


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("cache.dtype=bf16", 'dtype = "fp32", but here it is "bf16"'),
        ("cache.num_shards=3", "cache.num_shards = 4, but here it is 3"),
        ("vlm.max_side=99", "max_side = 1024, but here it is 99"),
        ("vlm.max_pixels=50000", "max_pixels = 100352, but here it is 50000"),
        ("vlm.min_pixels=784", "min_pixels = 3136, but here it is 784"),
        ("vlm.transparency=drop", 'transparency = "white", but here it is "drop"'),
        ("vlm.attention=eager", 'attention = "sdpa", but here it is "eager"'),
        ("dataset.categories=[joy, awe, anger]", "dataset.categories"),
    ],
)
def test_another_configuration_is_refused_by_field(data, vlm, plain, override, named):
    before = digests(plain, "*")
    with pytest.raises(InputError) as error:
        extract(make_config(data, vlm, plain, override))
    assert named in str(error.value) and "new cache.dir" in str(error.value)
    assert digests(plain, "*") == before


@pytest.mark.parametrize("override", ["questions=other.yaml", "seed=1", "extract.num_workers=2", "stage1.num_epochs=9"])
def test_what_no_feature_depends_on_does_not_matter(data, vlm, plain, override, capsys):
    extract(make_config(data, vlm, plain, override))
    assert "is complete" in capsys.readouterr().out


def test_other_weights_are_refused(data, plain, tmp_path):
    with pytest.raises(InputError, match="made with weights = "):
        extract(make_config(data, make_vlm(tmp_path / "vlm", seed=1), plain))


@pytest.mark.parametrize("override", ["extract.num_threads=2", "extract.batch_tokens=65"])
def test_another_machine_may_read_but_not_add(data, vlm, plain, tmp_path, override, capsys):
    folder = shutil.copytree(plain, tmp_path / "c")
    extract(make_config(data, vlm, folder, override))
    assert "is complete" in capsys.readouterr().out
    (folder / "shards" / "train-00000.tar").unlink()
    field = override.removeprefix("extract.").split("=")[0]
    with pytest.raises(InputError, match=f"made with {field} = "):
        extract(make_config(data, vlm, folder, override))
    extract(make_config(data, vlm, folder))
    assert digests(folder) == digests(plain)


MODEL = (
    "format_version weights config.model_type config.vision_config.depth processor.image_mean processor.resample "
    "min_pixels max_pixels max_side dtype quantisation attention"
).split()
MACHINE = (
    "pillow jpeg_library webp_library processor_backend transformers torch "
    "device encoder_dtype batch_tokens num_threads"
).split()


def changed(fields, name):
    """The same fields but for one."""
    assert name in fields
    return {**fields, name: "other"}


def test_no_ingredient_is_forgotten(plain):
    fingerprint = open_cache(plain).manifest.fingerprint
    assert sorted(fingerprint.machine.fields) == sorted(MACHINE)
    assert set(fingerprint.model) >= set(MODEL)
    others = set(fingerprint.model) - set(MODEL)
    assert all(name.startswith(("config.", "processor.")) for name in others)


@pytest.mark.parametrize("field", MODEL)
def test_each_ingredient_of_the_model_is_refused_by_readers_and_writers(data, vlm, plain, field, monkeypatch):
    config, cache = make_config(data, vlm, plain), open_cache(plain)
    other = changed(cache.manifest.fingerprint.model, field)
    with pytest.raises(InputError, match=f"made with {field} = .*, but here it is"):
        cache.check_model(other)
    monkeypatch.setattr("masp.extraction.job.model_fields", lambda *_: other)
    before = digests(plain, "*")
    with pytest.raises(InputError, match=f"made with {field} = .*, but here it is"):
        extract(config)
    assert digests(plain, "*") == before


@pytest.mark.parametrize("field", MACHINE)
def test_each_ingredient_of_the_machine_is_refused_only_where_new_meets_old(
    data, vlm, plain, tmp_path, field, monkeypatch, capsys
):
    folder = shutil.copytree(plain, tmp_path / "c")
    config, cache = make_config(data, vlm, folder), open_cache(folder)
    other = replace(cache.manifest.fingerprint.machine, **{field: "other"})
    monkeypatch.setattr("masp.extraction.job.machine_part", lambda *_: other)
    extract(config)
    assert "is complete" in capsys.readouterr().out
    (folder / "shards" / "train-00001.json").unlink()  # resuming, repairing and extending all come this way
    before = digests(folder, "*")
    with pytest.raises(InputError, match=f"made with {field} = .*, but here it is"):
        extract(config)
    assert digests(folder, "*") == before
    cache.read(0)


def test_a_layout_under_which_nothing_was_finished_binds_nobody(data, vlm, plain, tmp_path):
    (tmp_path / "c").mkdir()
    shutil.copy(plain / LAYOUT, tmp_path / "c" / LAYOUT)
    folder = extract(make_config(data, vlm, tmp_path / "c", "vlm.max_side=80"))
    assert open_cache(folder).manifest.fingerprint.model["max_side"] == 80


class Interrupted(Exception):
    """Stands for a crash."""


def test_resuming_redoes_only_what_was_not_finished(data, vlm, plain, tmp_path, monkeypatch):
    config = make_config(data, vlm, tmp_path / "c")
    finish, finished = writer.ShardWriter.finish, []

    def crash_at_third(self):
        if len(finished) == 2:
            raise Interrupted
        finished.append(self._shard.name)
        return finish(self)

    with monkeypatch.context() as patch:
        patch.setattr(writer.ShardWriter, "finish", crash_at_third)
        with pytest.raises(Interrupted):
            extract(config)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "c" / "shards").iterdir()}
    assert sorted(p.name for p in kept) == sorted(f"{n}.{e}" for n in finished for e in ("tar", "json"))
    with pytest.raises(InputError, match="2 of 4 shards are missing"):
        open_cache(tmp_path / "c")
    (tmp_path / "c" / "shards" / f".{finished[0]}.tar.tmp").write_bytes(b"left by a kill")
    extract(config)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert digests(tmp_path / "c") == digests(plain)


def change(root, what):
    picture = root / "train" / "joy" / "train.002.jpg"
    note = root / "annotation" / "joy" / "train.002.json"
    if what == "removed":
        picture.unlink()
    elif what == "added":
        shutil.copy(picture, root / "train" / "joy" / "a.jpg")
    elif what == "relabelled":
        note.write_text('{"scene": "forest"}')
    elif what == "repainted":
        shutil.copy(root / "train" / "joy" / "train.008.jpg", picture)
    elif what == "touched":
        os.utime(picture)


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("removed", r"sample train/joy/train%2E002%2Ejpg is no longer in the dataset"),
        ("added", r"sample train/joy/a%2Ejpg is new in the dataset"),
        ("relabelled", r"sample train/joy/train%2E002%2Ejpg was cached with answers .*sea side.*forest"),
        ("repainted", r"sample train/joy/train%2E002%2Ejpg: .*train.002.jpg has changed"),
    ],
)
def test_a_changed_dataset_is_refused_by_sample(data, vlm, plain, tmp_path, what, named):
    root, folder = shutil.copytree(data, tmp_path / "data"), shutil.copytree(plain, tmp_path / "c")
    change(root, what)
    with pytest.raises(InputError, match=named):
        extract(make_config(root, vlm, folder))
    (folder / "shards" / "test-00000.json").unlink()  # no less so while the cache is unfinished
    with pytest.raises(InputError, match="the dataset has changed|is no longer|images, 26 when"):
        extract(make_config(root, vlm, folder))


def test_touched_images_are_no_change_and_mended_ones_are_taken_in(data, vlm, plain, tmp_path, capsys):
    root, folder = shutil.copytree(data, tmp_path / "data"), shutil.copytree(plain, tmp_path / "c")
    change(root, "touched")
    extract(make_config(root, vlm, folder))
    assert "is complete" in capsys.readouterr().out
    shutil.copy(root / "train" / "awe" / "train.001.png", root / "train" / "awe" / "words.png")
    extract(make_config(root, vlm, folder))
    assert "24 images in 4 shards" in capsys.readouterr().out
    assert verify_cache(folder) == []
    fresh = extract(make_config(root, vlm, tmp_path / "fresh"))
    assert digests(folder) == digests(fresh)


def test_too_many_broken_images_fail_the_job_and_keep_what_is_done(data, vlm, plain, tmp_path):
    strict = make_config(data, vlm, tmp_path / "c", "extract.max_bad_fraction=0.1")
    with pytest.raises(DataError, match=r"3 of 26 images cannot be read.*max_bad_fraction = 0.1.*quarantine.jsonl"):
        extract(strict)
    assert len((tmp_path / "c" / "quarantine.jsonl").read_text().splitlines()) == 3
    assert digests(tmp_path / "c")
    with pytest.raises(DataError, match="3 of 26"):
        extract(strict)
    extract(make_config(data, vlm, tmp_path / "c"))
    assert digests(tmp_path / "c") == digests(plain)


def test_not_one_readable_image(vlm, tmp_path):
    for category in ("joy", "awe"):
        (tmp_path / "data" / "train" / category).mkdir(parents=True)
        (tmp_path / "data" / "train" / category / "a.jpg").write_text("no")
    with pytest.raises(DataError, match="not one image could be read"):
        extract(make_config(tmp_path / "data", vlm, tmp_path / "c", "extract.max_bad_fraction=1"))


def test_an_image_beyond_the_processors_shapes_goes_to_quarantine(vlm, tmp_path):
    from PIL import Image

    root = make_dataset(tmp_path / "data", 3, 3)
    Image.new("RGB", (900, 2)).save(root / "train" / "joy" / "wide.png")
    extract(make_config(root, vlm, tmp_path / "c"))
    assert "wide.png" in (tmp_path / "c" / "quarantine.jsonl").read_text()


def test_a_disk_that_does_not_answer_stops_the_job_instead_of_filling_the_quarantine(data, vlm, tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("masp.extraction.image_stream.read_image_file", fail)
    with pytest.raises(DataError, match="Input/output error; finished shards are kept"):
        extract(make_config(data, vlm, tmp_path / "c"))
    assert (tmp_path / "c" / "quarantine.jsonl").read_text() == ""


def test_features_that_are_not_finite_name_their_sample(data, vlm, tmp_path, monkeypatch):
    encode = VisionHalf.encode

    def broken(self, *arguments):
        *others, last = encode(self, *arguments)
        return [*others, last.moved(lambda tensor: torch.full_like(tensor, float("nan")))]

    monkeypatch.setattr(VisionHalf, "encode", broken)
    with pytest.raises(DataError, match=r"features of sample test/.* are not finite in fp32"):
        extract(make_config(data, vlm, tmp_path / "c"))


@pytest.fixture
def deep_encoder(monkeypatch):
    """The encoder gives two deep maps beside the features."""
    encode = VisionHalf.encode

    def with_maps(self, *arguments):
        return [Features(f.tokens, torch.stack([f.tokens * 2, 1 - f.tokens])) for f in encode(self, *arguments)]

    monkeypatch.setattr(VisionHalf, "encode", with_maps)


@pytest.mark.parametrize("dtype", TORCH_NAMES)
def test_deep_maps_are_extracted_and_resumed_to_the_same_bytes(
    data, vlm, plain, tmp_path, deep_encoder, monkeypatch, dtype
):
    whole = extract(make_config(data, vlm, tmp_path / "whole", f"cache.dtype={dtype}"))
    config, finish, count = make_config(data, vlm, tmp_path / "c", f"cache.dtype={dtype}"), ShardWriter.finish, []

    def crash_at_third(self):
        count.append(self)
        if len(count) == 3:
            raise Interrupted
        return finish(self)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(ShardWriter, "finish", crash_at_third)
        extract(config)
    assert len(digests(extract(config))) == 4
    assert digests(tmp_path / "c", "*") == digests(whole, "*") and merged(tmp_path / "c") == merged(whole)
    assert verify_cache(whole) == []
    cache, without = open_cache(whole), open_cache(plain)
    assert cache.manifest.num_deep_maps == 2 and list(cache.index.keys) == list(without.index.keys)
    for row in range(len(cache)):
        features = cache.read(row).features
        tokens, deep = features.tokens.float(), features.deep.float()
        torch.testing.assert_close(deep[0], 2 * tokens, rtol=0.1, atol=0.02)
        torch.testing.assert_close(deep[1], 1 - tokens, rtol=0.1, atol=0.1)
    exact = torch.stack([2 * tokens, 1 - tokens])
    assert dtype != "fp32" or torch.equal(deep, exact)


def test_deep_maps_that_are_not_finite_name_their_sample(data, vlm, tmp_path, deep_encoder, monkeypatch):
    encode = VisionHalf.encode

    def broken(self, *arguments):
        *others, last = encode(self, *arguments)
        last.deep[1, -1, -1] = float("inf")
        return [*others, last]

    monkeypatch.setattr(VisionHalf, "encode", broken)
    with pytest.raises(DataError, match=r"features of sample test/.* are not finite in fp32"):
        extract(make_config(data, vlm, tmp_path / "c"))


def test_live_features_have_the_deep_maps_that_a_cache_would_return(data, vlm, tmp_path, deep_encoder):
    config = make_config(data, vlm, tmp_path / "c", "cache.dtype=fp8")
    cache, encoder = open_cache(extract(config)), Encoder(config)
    samples = [s for s in dataset_of(config).samples if s.key in set(cache.index.keys)][:3]
    with encoder.stream(samples, 0) as stream:
        images = list(stream)
    for sample, image in zip(samples, images, strict=True):
        (live,), cached = encoder.encode([image]), cache.read(cache.row_of(sample.key))
        assert image.layout == cached.layout
        for own, kept in zip(live.tensors, cached.features.tensors, strict=True):
            torch.testing.assert_close(own, kept, rtol=0.13, atol=0.02)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_one_line_and_loses_nothing_finished(data, vlm, plain, tmp_path, monkeypatch, number):
    config = make_config(data, vlm, tmp_path / "c")
    write, written = writer._Digesting.write, []

    def full(self, block):
        written.append(len(block))
        if sum(written) > 60_000:
            raise OSError(number, os.strerror(number))
        return write(self, block)

    with monkeypatch.context() as patch:
        patch.setattr(writer._Digesting, "write", full)
        with pytest.raises(InputError, match="no space is left|writing failed") as error:
            extract(config)
    assert "\n" not in str(error.value) and "finished shards are kept" in str(error.value)
    kept = digests(tmp_path / "c")
    assert kept and all(not p.name.startswith(".") for p in (tmp_path / "c" / "shards").iterdir())
    extract(config)
    assert digests(tmp_path / "c") == digests(plain)


def test_a_directory_that_cannot_be_made_is_refused(data, vlm, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        extract(make_config(data, vlm, tmp_path / "file" / "c"))


def test_stopping_on_request_keeps_finished_shards(data, vlm, plain, tmp_path, monkeypatch):
    config, stop = make_config(data, vlm, tmp_path / "c"), StopFlag()
    finish = writer.ShardWriter.finish
    monkeypatch.setattr(writer.ShardWriter, "finish", lambda self: (stop.set(), finish(self))[1])
    with pytest.raises(StoppedEarly, match="keeps its finished shards"):
        extract(config, stop=stop)
    assert 1 <= len(digests(tmp_path / "c")) < 4
    extract(config)
    assert digests(tmp_path / "c") == digests(plain)


RUN = """
import sys
from masp.config import load_config
from masp.errors import MaspError
from masp.extraction.job import extract
from masp.runtime import log
log.setup()
try:
    extract(load_config(sys.argv[1]))
except MaspError as error:
    print("error:", error, file=sys.stderr)
    raise SystemExit(error.exit_code)
"""


def start(config, tmp_path):
    save_config(config, tmp_path / "config.yaml")
    return subprocess.Popen(
        [sys.executable, "-c", RUN, tmp_path / "config.yaml"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.full
def test_a_second_extraction_is_refused_and_sigterm_to_the_whole_group_stops_cleanly(vlm, tmp_path):
    root = make_dataset(tmp_path / "data", 400, 3)
    config = make_config(root, vlm, tmp_path / "c", "cache.num_shards=40", "extract.num_workers=2")
    process = start(config, tmp_path)
    try:
        wait_for(lambda: len(list((tmp_path / "c" / "shards").glob("*.json"))) >= 3, process)
        with pytest.raises(InputError, match="another extraction is writing there"):
            extract(config)
        with pytest.raises(InputError, match=r"the shards of this task \(task 1 of 2\).*an index of its own"):
            extract(config, num_tasks=2, task_index=1)
        os.killpg(process.pid, signal.SIGTERM)
        _, text = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 75, text
    assert "SIGTERM: stopping" in text and "the same command resumes" in text and "Traceback" not in text
    kept = digests(tmp_path / "c")
    assert 3 <= len(kept) < 40
    extract(config)
    assert digests(tmp_path / "c").items() >= kept.items()


def test_task_numbers_are_checked(data, vlm, tmp_path):
    with pytest.raises(InputError, match="--task-index 2"):
        extract(make_config(data, vlm, tmp_path / "c"), num_tasks=2, task_index=2)


def is_read_by_pillow(path):
    """Some files without an end marker are."""
    try:
        with Image.open(path) as image:
            image.load()
    except OSError:
        return False
    return True


def test_repaired_images_are_counted_and_named(data, vlm, plain, tmp_path, caplog):
    """They give the features of the intact file, and nothing is said of a dataset without any."""
    damaged = tmp_path / "data"
    shutil.copytree(data, damaged)
    jpegs = sorted(damaged.glob("train/*/train.*.jpg"))[1:6]
    for jpeg in jpegs:
        jpeg.write_bytes(jpeg.read_bytes().removesuffix(b"\xff\xd9"))
    refused = [jpeg for jpeg in jpegs if not is_read_by_pillow(jpeg)]
    assert len(refused) > 3
    caplog.set_level("INFO")
    repaired = open_cache(extract(make_config(damaged, vlm, tmp_path / "c", "extract.num_workers=2")))
    said = [record.getMessage() for record in caplog.records if "repaired on reading" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith(
        f"repaired on reading: {len(refused)} images, each a JPEG without its end marker: 'train/anger/"
    )
    intact = open_cache(plain)
    assert len(repaired) == len(intact)
    for row in range(len(intact)):
        torch.testing.assert_close(repaired.read(row).features.tokens, intact.read(row).features.tokens, rtol=0, atol=0)
    caplog.clear()
    extract(make_config(data, vlm, tmp_path / "whole"))
    assert "repaired" not in caplog.text
