"""Images of two splits that look alike are found whatever was done to their files; others are not."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from masp.cache.findings import read_findings, record_findings
from masp.cache.layout import read_layout
from masp.cache.manifest import read_manifest
from masp.config import load_config
from masp.data.datasets import dataset_of
from masp.data.sample import Sample
from masp.errors import InputError
from masp.extraction.near_duplicates import near_pairs, record_near_duplicates
from tests.small_cache import make_small_cache


def drawn(seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (160, 120), tuple(random.integers(0, 255, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, width, height = (int(v) for v in random.integers(0, 90, 4))
        draw.ellipse((x, y, x + width, y + height), fill=tuple(random.integers(0, 255, 3).tolist()))
    return image


@pytest.fixture
def config(tmp_path):
    pytest.importorskip("imagehash")
    root = tmp_path / "data"
    for split, first in (("train", 0), ("test", 100)):
        (root / split / "awe").mkdir(parents=True)
        for i in range(6):
            drawn(first + i).save(root / split / "awe" / f"{i}.png")
    drawn(2).resize((80, 60)).save(root / "test/awe/small.jpg", quality=60)
    for split in ("train", "test"):  # plain areas look alike and mean nothing
        Image.new("RGB", (50, 50), "white").save(root / split / "awe/white.png")
    make_small_cache(tmp_path / "cache")
    settings = [f"dataset.root={root}", "vlm.path=x", f"cache.dir={tmp_path / 'cache'}", "extract.num_workers=0"]
    return load_config(None, settings)


def record(config):
    directory = Path(config.cache.dir)
    record_findings(directory, read_layout(directory), dataset_of(config))
    return directory


def test_a_smaller_copy_in_another_split_is_found(config):
    directory = record(config)
    found = record_near_duplicates(config)
    near = [finding for finding in found.findings if finding.kind == "near duplicates"]
    assert [(f.count, f.serious, f.examples) for f in near] == [
        (1, True, ("test/awe/small%2Ejpg ~ train/awe/2%2Epng",))
    ]
    assert read_findings(directory, read_manifest(directory)) == found and found.near_duplicates
    assert record_near_duplicates(config) == found  # replaced, not added again


def test_it_needs_the_library_and_a_cache_that_records_findings(config, monkeypatch):
    with pytest.raises(InputError, match="findings were not recorded; run `masp extract` again"):
        record_near_duplicates(config)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        InputError, match=r"imagehash is not installed; install it with `pip install masp\[duplicates\]`"
    ):
        record_near_duplicates(config)


def test_all_pairs_within_the_distance_are_found_and_no_others():
    random = np.random.default_rng(0)
    bits = random.integers(0, 2, (40, 64)).astype(bool)
    for i in range(1, 40, 2):  # of each pair, the second differs from the first in 0 to 8 bits
        bits[i] = bits[i - 1]
        bits[i, random.choice(64, i // 2 % 9, replace=False)] ^= True
    samples = [Sample(f"{i:02d}", ("train", "test")[i % 2], Path("a"), "awe", {}) for i in range(40)]
    found = {(a.key, b.key) for a, b in near_pairs(samples, bits)}
    assert found == {(f"{i - 1:02d}", f"{i:02d}") for i in range(1, 40, 2) if i // 2 % 9 <= 4}
