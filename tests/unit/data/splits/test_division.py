"""Dividing images into splits: by fractions of a hash, by files, never again in another way."""

import json
import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from masp.config import load_aspects
from masp.config.schema import DatasetConfig
from masp.data.datasets import list_dataset
from masp.data.sample import NO_SPLIT, SPLITS
from masp.data.splits.division import Undivided, divide, read_division, record_division
from masp.errors import InputError

FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}


def config(split, seed=0, root="data"):
    return DatasetConfig(root=str(root), split=split, split_seed=seed)


def some(tmp_path, count, categories=4, copies=()):
    """Images with different bytes but for those of `copies`, pairs of numbers."""
    names = [f"{n % categories}/{n:04d}.bin" for n in range(count)]
    content = {n: f"image {n}".encode() * (1 + n % 3) for n in range(count)}
    content |= {one: content[other] for one, other in copies}
    for n, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content[n])
    return Undivided(
        names,
        np.full(count, NO_SPLIT, dtype=np.uint8),
        np.arange(count) % categories,
        lambda n: str(tmp_path / names[n]),
    )


def test_fractions_hold_in_every_category_and_in_all(tmp_path):
    images = some(tmp_path, 403)
    split, division = divide(images, config(FRACTIONS), None)
    assert Counter(SPLITS[s] for s in split.tolist()) == {"train": 323, "val": 40, "test": 40}
    for category in range(4):
        counts = np.bincount(split[images.category == category], minlength=3)
        assert np.abs(counts - np.array([0.8, 0.1, 0.1]) * counts.sum()).max() <= 1
    assert sum(map(len, division.names.values())) == 403


def test_it_depends_on_names_and_seed_alone(tmp_path):
    images = some(tmp_path, 100)
    split, _ = divide(images, config(FRACTIONS), None)
    order = np.random.default_rng(0).permutation(100)
    mixed = Undivided(
        [images.names[n] for n in order], images.split, images.category[order], lambda n: images.image(int(order[n]))
    )
    assert (divide(mixed, config(FRACTIONS), None)[0] == split[order]).all()
    assert (divide(images, config(FRACTIONS, seed=1), None)[0] != split).any()


def test_copies_stay_together(tmp_path):
    copies = [(n, n - 1) for n in range(1, 100, 2)]
    split, _ = divide(some(tmp_path, 100, copies=copies), config(FRACTIONS), None)
    assert all(split[one] == split[other] for one, other in copies)
    # without copies, half of the pairs of one category would be apart
    apart, _ = divide(some(tmp_path, 100), config({"train": 0.5, "test": 0.5}), None)
    assert any(apart[one] != apart[other] for one, other in copies)


def test_what_a_cache_recorded_stays(tmp_path):
    images = some(tmp_path, 60)
    half = Undivided(images.names[:40], images.split[:40], images.category[:40], images.image)
    before, division = divide(half, config(FRACTIONS), None)
    record_division(tmp_path, division)
    assert read_division(tmp_path) == division
    after, grown = divide(images, config(FRACTIONS), read_division(tmp_path))
    assert (after[:40] == before).all()
    record_division(tmp_path, grown)  # of many tasks, the first one records
    assert read_division(tmp_path) == division
    record_division(tmp_path, grown, grown=True)
    assert read_division(tmp_path) == grown and set(division.names["train"]) < set(grown.names["train"])
    # an image that went is still recorded: should it come back, it goes where it was
    fewer = Undivided(images.names[5:], images.split[5:], images.category[5:], lambda n: images.image(n + 5))
    split, still = divide(fewer, config(FRACTIONS), grown)
    assert (split == after[5:]).all() and still == grown


@pytest.mark.parametrize(
    ("again", "message"),
    [
        (config({"train": 0.5, "test": 0.5}), "dataset.split = .*were divided with"),
        (config(FRACTIONS, seed=1), "dataset.split_seed = 1: .*were divided with 0"),
        (config(None), "dataset.split = null: .*were divided with"),
    ],
)
def test_a_cache_is_never_divided_in_another_way(tmp_path, again, message):
    images = some(tmp_path, 20)
    _, division = divide(images, config(FRACTIONS), None)
    with pytest.raises(InputError, match=message):
        divide(images, again, division)


def test_only_train_is_divided_where_there_are_splits(tmp_path):
    images = some(tmp_path, 40)
    images.split[:] = SPLITS.index("train")
    images.split[30:] = SPLITS.index("test")
    split, _ = divide(images, config({"train": 0.9, "val": 0.1}), None)
    assert Counter(SPLITS[s] for s in split.tolist()) == {"train": 27, "val": 3, "test": 10}
    with pytest.raises(InputError, match="a split test of its own with 10 images; leave test out"):
        divide(images, config(FRACTIONS), None)


def test_an_undivided_dataset_says_what_to_write(tmp_path):
    with pytest.raises(InputError, match=r"dataset.split must be given: .*dataset.split={train: 0.8"):
        divide(some(tmp_path, 5), config(None), None)


def test_files_list_the_images_of_a_split(tmp_path):
    images = some(tmp_path, 8, categories=2)
    (tmp_path / "train.txt").write_text("0/0000.bin\n./0002.bin\n\n1\\0001.bin\n")
    (tmp_path / "test.txt").write_text("\ufeff0004.bin\r\n0003.bin\r\n", encoding="utf-8")
    lists = {"train": str(tmp_path / "train.txt"), "test": str(tmp_path / "test.txt")}
    split, division = divide(images, config(lists), None)
    assert division is None and split.tolist() == [0, 0, 0, 2, 2, *[NO_SPLIT] * 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9999.bin", "train.txt line 1: '9999.bin': data has no such image"),
        ("a.bin", "train.txt line 1: 'a.bin': data has several images of this name"),
        ("x/1.bin", "train.txt line 1: 'x/1.bin' is listed for test too"),
    ],
)
def test_files_that_are_refused(tmp_path, text, message):
    names = ["x/a.bin", "y/a.bin", "x/1.bin"]
    images = Undivided(names, np.full(3, NO_SPLIT, dtype=np.uint8), np.zeros(3, dtype=int), lambda n: names[n])
    (tmp_path / "test.txt").write_text("1.bin")
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(InputError) as error:
        divide(images, config({"test": str(tmp_path / "test.txt"), "train": str(tmp_path / "train.txt")}), None)
    assert message in str(error.value)


def test_lists_that_cannot_be_read(tmp_path):
    images = some(tmp_path, 2)
    with pytest.raises(InputError, match="gone.txt: cannot be read"):
        divide(images, config({"train": str(tmp_path / "gone.txt")}), None)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="not a regular file"):
        divide(images, config({"train": str(tmp_path / "fifo")}), None)
    (tmp_path / "latin").write_bytes(b"\xe9.bin")
    with pytest.raises(InputError, match="not text in UTF-8"):
        divide(images, config({"train": str(tmp_path / "latin")}), None)


def test_folders_and_index_files_are_divided(tmp_path):
    for n in range(20):
        for place in ("flat", "split/train", "emoset/image"):
            path = tmp_path / place / ("joy" if n % 2 else "fear") / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (n, 0, 0)).save(path)
    rows = [["joy" if n % 2 else "fear", f"image/{'joy' if n % 2 else 'fear'}/{n}.png", ""] for n in range(20)]
    (tmp_path / "emoset/train.json").write_text(json.dumps(rows))
    for place, prefix in (("flat", ""), ("split", ""), ("emoset", "image/")):
        dataset = list_dataset(config({"train": 0.5, "test": 0.5}, root=tmp_path / place), load_aspects()).whole()
        assert Counter(sample.split for sample in dataset.samples) == {"train": 10, "test": 10}
        for sample in dataset.samples:
            assert os.path.isfile(sample.image) and sample.key.startswith(f"{sample.split}/{prefix}{sample.category}/")
        assert [s.key for s in dataset.samples] == sorted(s.key for s in dataset.samples)


def test_a_copy_that_comes_later_follows_the_first(tmp_path):
    images = some(tmp_path, 80, copies=[(n, n - 40) for n in range(40, 80)])
    half = Undivided(images.names[:40], images.split[:40], images.category[:40], images.image)
    before, division = divide(half, config(FRACTIONS), None)
    after, _ = divide(images, config(FRACTIONS), division)
    assert (after[:40] == before).all() and (after[40:] == before).all()


def test_lists_may_exchange_images_of_one_name(tmp_path):
    for n, split in enumerate(("train", "test")):
        (tmp_path / split / "joy").mkdir(parents=True)
        Image.new("RGB", (4, 4), (n, 0, 0)).save(tmp_path / split / "joy/0.png")
    (tmp_path / "train/joy/1.png").write_bytes((tmp_path / "test/joy/0.png").read_bytes())
    (tmp_path / "train.txt").write_text("test/joy/0.png\ntrain/joy/0.png\n")
    (tmp_path / "test.txt").write_text("train/joy/1.png\n")
    lists = {split: str(tmp_path / f"{split}.txt") for split in ("train", "test")}
    samples = list_dataset(config(lists, root=tmp_path), load_aspects()).whole().samples
    assert {sample.key: os.path.relpath(sample.image, tmp_path) for sample in samples} == {
        "test/train/joy/1%2Epng": "train/joy/1.png",
        "train/joy/0%2Epng": "train/joy/0.png",
        "train/test/joy/0%2Epng": "test/joy/0.png",
    }


def test_nothing_left_is_an_error(tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match="empty.txt: lists no image"):
        divide(some(tmp_path, 2), config({"train": str(tmp_path / "empty.txt")}), None)


def test_nothing_to_divide(tmp_path):
    images = some(tmp_path, 8)
    images.split[:] = SPLITS.index("val")
    with pytest.raises(InputError, match="nothing to divide: data says itself that its images are of val, and only"):
        divide(images, config({"train": 0.8, "test": 0.2}), None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_record_that_another_user_made_private(tmp_path):
    _, division = divide(some(tmp_path, 9), config(FRACTIONS), None)
    record_division(tmp_path, division)
    (tmp_path / "splits.json").chmod(0o600)
    read, write = os.pipe()
    as_another = os.fork()
    if not as_another:
        try:
            os.chdir(tmp_path)  # the directories above are the first user's
            os.setuid(65534)
            read_division(".")
        except InputError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(as_another, 0)
    os.close(write)
    assert os.read(read, 1000) == b"splits.json cannot be read: Permission denied"
    os.close(read)
