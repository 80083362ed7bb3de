"""The pass over all images: it leaves out what a cache leaves out, remembers the rest, and refuses too many."""

import json
import os
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masp.cache.fingerprint import model_part
from masp.cache.reader import open_cache
from masp.data.datasets import dataset_of
from masp.errors import DataError, StoppedEarly
from masp.extraction import image_stream
from masp.extraction.image_stream import ImageDataset
from masp.extraction.job import extract
from masp.extraction.live.checking import check_images
from masp.files import remembered
from masp.runtime.stop import StopFlag
from masp.vlm.preprocessor import load_preprocessor
from tests.images import make_config, make_dataset
from tests.tiny import make_vlm


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return make_vlm(tmp_path_factory.mktemp("checking") / "vlm")


@pytest.fixture
def config(vlm, tmp_path, monkeypatch):
    """A dataset with three broken images, whose files count as old enough to be remembered."""
    monkeypatch.setattr(remembered, "SETTLED_NS", -1_000_000_000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return make_config(make_dataset(tmp_path / "data", broken=True), vlm, tmp_path / "cache")


@pytest.fixture
def opened(monkeypatch):
    """Names of the image files that are read."""
    names = []
    real = image_stream.read_image_file
    monkeypatch.setattr(
        image_stream, "read_image_file", lambda path: names.append(os.path.basename(path)) or real(path)
    )
    return names


def check(config, stop=None):
    samples = dataset_of(config).samples
    preprocessor = load_preprocessor(config.vlm.path, config.vlm.min_pixels, config.vlm.max_pixels)
    images = ImageDataset(samples, preprocessor, config.vlm)
    return samples, check_images(config, images, samples.images, model_part(config), stop)


def same(one, other):
    arrays = ("num_tokens", "sizes", "digests")
    return one.reasons == other.reasons and all((getattr(one, n) == getattr(other, n)).all() for n in arrays)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_is_left_out_and_how_long_the_rest_is_as_in_a_cache(config, num_workers):
    config.extract.num_workers = num_workers
    extract(config)
    samples, found = check(config)
    lines = [json.loads(line) for line in (Path(config.cache.dir) / "quarantine.jsonl").read_text().splitlines()]
    assert {samples[place].key: why for place, why in found.reasons.items()} == {
        line["key"]: line["reason"] for line in lines
    }
    assert len(lines) == 3 and found.is_good.sum() == len(samples) - 3
    with closing(open_cache(Path(config.cache.dir))) as cache:
        rows = [cache.row_of(samples[place].key) for place in np.flatnonzero(found.is_good)]
        assert len(rows) == len(cache)
        assert (cache.index.num_tokens[rows] == found.num_tokens[found.is_good]).all()
        assert (cache.index.image_size[rows] == found.sizes[found.is_good]).all()


def test_what_can_be_read_is_remembered_until_it_changes(config, opened, tmp_path):
    samples, first = check(config)
    assert sorted(opened) == sorted(os.path.basename(path) for path in samples.images)
    opened.clear()
    broken = sorted(os.path.basename(samples.images[place]) for place in first.reasons)
    assert same(check(config)[1], first) and sorted(opened) == broken
    changed = next(place for place in range(len(samples)) if place not in first.reasons)
    Image.new("RGB", (150, 90)).save(samples.images[changed])
    opened.clear()
    _, second = check(config)
    assert sorted(opened) == sorted([*broken, os.path.basename(samples.images[changed])])
    assert second.digest(changed) != first.digest(changed) and tuple(second.sizes[changed]) == (150, 90)
    opened.clear()
    config.vlm.max_side = 100  # images are prepared in another way
    assert (check(config)[1].sizes <= 100).all() and len(opened) == len(samples)


def test_of_several_processes_one_makes_the_pass(config, opened, monkeypatch, tmp_path):
    begun, real = tmp_path / "begun", image_stream.read_image_file

    def slow(path):
        begun.touch()  # the lock is held by now
        time.sleep(0.01)
        return real(path)

    child = os.fork()
    if not child:
        monkeypatch.setattr(image_stream, "read_image_file", slow)
        check(config)
        os._exit(0)
    while not begun.exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.005)
    samples, found = check(config)
    assert os.waitpid(child, 0)[1] == 0
    assert sorted(opened) == sorted(os.path.basename(samples.images[place]) for place in found.reasons)


def test_a_stopped_pass_goes_on_where_it_was(config, opened):
    stop = StopFlag()
    reading = image_stream.read_image_file

    def stopping(path):
        if len(opened) == 4:
            stop.set()
        return reading(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_stream, "read_image_file", stopping)
        with pytest.raises(StoppedEarly, match="while the images were examined; the same command goes on where it was"):
            check(config, stop)
    first = opened.copy()
    opened.clear()
    samples, found = check(config)
    broken = {os.path.basename(samples.images[place]) for place in found.reasons}
    assert len(first) == 5 and not (set(first) - broken) & set(opened)
    assert set(first) | set(opened) == {os.path.basename(path) for path in samples.images}


def test_an_image_that_was_mended_is_no_longer_left_out(config):
    samples, first = check(config)
    place = min(first.reasons)
    Image.new("RGB", (150, 90)).save(samples.images[place])
    assert first.reasons.keys() - check(config)[1].reasons.keys() == {place}


def test_too_many_end_the_run_and_the_first_are_named(config):
    config.extract.max_bad_fraction = 0.05
    with pytest.raises(DataError) as error:
        check(config)
    text = str(error.value)
    assert text.startswith("3 of 26 images cannot be read, more than extract.max_bad_fraction = 0.05 allows: ")
    assert "empty.jpg (empty file), " in text and "words.png (no image" in text and "\n" not in text
    assert text.endswith("; repair the images, or allow more, and run the same command again")


def test_a_dataset_without_a_single_image_is_refused(config, tmp_path):
    config.extract.max_bad_fraction = 1.0
    for path in (tmp_path / "data").rglob("*.*"):
        if path.suffix != ".json":
            path.write_bytes(b"")
    with pytest.raises(DataError, match="26 of 26 images cannot be read"):
        check(config)


def test_a_disk_that_does_not_answer_says_nothing_about_an_image(config, monkeypatch):
    check(config)

    def fails(path):
        raise OSError(5, "Input/output error")

    for file in remembered.user_cache().glob("images-*.bin"):
        file.unlink()
    monkeypatch.setattr(image_stream, "read_image_file", fails)
    with pytest.raises(DataError, match="Input/output error; run the same command again when it can be read"):
        check(config)


def test_where_nothing_can_be_written_every_process_makes_the_pass(config, opened, monkeypatch, tmp_path):
    _, first = check(config)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        opened.clear()
        assert same(check(config)[1], first) and len(opened) == len(first.num_tokens)
