"""Sample keys: reversible, without dots, different wherever paths differ."""

import hashlib
import io
import os
import random
import re
import tarfile

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from masp.data.keys import MAX_KEY_LENGTH, in_order_of_digests, key_order, sample_key, sample_keys, split_key

# Any bytes that a file system on Linux takes as a relative path.
PATHS = st.binary(min_size=1, max_size=80).filter(lambda b: b"\0" not in b and not b.startswith(b"/")).map(os.fsdecode)


def test_the_form_of_a_key():
    assert sample_key("train", "joy/a b.JPG") == "train/joy/a%20b%2EJPG"
    assert sample_key("test", "image/très-joli_1.tar.gz") == "test/image/tr%C3%A8s-joli_1%2Etar%2Egz"
    assert sample_key("val", "50%~.png") == "val/50%25%7E%2Epng"


@given(st.sampled_from(["train", "val", "test", "a/b", "."]), PATHS)
def test_reversible_for_any_bytes(split, path):
    key = sample_key(split, path)
    assert split_key(key) == (split, path)
    assert re.fullmatch(r"[A-Za-z0-9_%/-]+", key)


@given(PATHS, PATHS)
def test_different_paths_have_different_keys(first, second):
    assume(first != second)
    assert sample_key("train", first) != sample_key("train", second)


def test_names_that_look_alike_stay_apart():
    names = [
        "a.jpg",
        "A.jpg",
        "a.JPG",
        "a%2Ejpg",
        "a%2ejpg",
        "a_jpg",
        "a jpg",
        "\u00e9.jpg",
        "e\u0301.jpg",
        "a.jpg ",
        "a/.jpg",
    ]
    keys = {sample_key("train", name) for name in names}
    assert len(keys) == len(names)
    assert sample_key("train", "x.jpg") != sample_key("test", "x.jpg")


@pytest.mark.parametrize("path", ["", "/etc/passwd", "a\0b", "\ud800.jpg", "x" * (MAX_KEY_LENGTH + 1), "é" * 400])
def test_what_is_no_path(path):
    with pytest.raises(ValueError, match="sample key|relative path|file name|too long"):
        sample_key("train", path)


@pytest.mark.parametrize(
    "key", ["", "train", "train/", "/x", "train/a.jpg", "train/a%2ejpg", "train/%41", "train//x", "train/%"]
)
def test_what_is_no_key(key):
    with pytest.raises(ValueError, match="key|path"):
        split_key(key)


def test_the_longest_names_survive_tar_and_webdataset():
    import webdataset

    key = sample_key("train", "é" * 127 + "/" + "ü." * 85)
    assert 1000 < len(key) <= MAX_KEY_LENGTH
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(f"{key}.safetensors")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        assert tar.getnames() == [f"{key}.safetensors"]
    assert webdataset.tariterators.base_plus_ext(f"{key}.safetensors") == (key, "safetensors")


@pytest.mark.parametrize("start", ["", "train/awe/a_long_start_that_all_have_"])
@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_the_order_of_keys_in_a_run_of_bytes_is_that_of_strings(start, count):
    draw = random.Random(count)
    keys = [start + "".join(draw.choices("ab/%", k=draw.randint(1, 25))) for _ in range(count)]
    keys = draw.sample(sorted(set(keys)), len(set(keys)))
    text = np.frombuffer("".join(keys).encode(), dtype=np.uint8)
    order = key_order(text, np.cumsum([0, *map(len, keys)]))
    assert [keys[place] for place in order] == sorted(keys)


@pytest.mark.parametrize("names", [["a.jpg", "b-1.JPG"], ["ä.jpg", "b c.png"], ["~.jpg"], ["x" * 255, "y.jpg"], []])
@pytest.mark.parametrize("directory", ["awe", "überraschung", "a.b/c"])
def test_many_keys_are_those_of_one_at_a_time(directory, names):
    assert sample_keys("train", directory, names) == [sample_key("train", f"{directory}/{name}") for name in names]


def test_a_key_that_is_too_long_is_refused_among_many():
    with pytest.raises(ValueError, match="too long"):
        sample_keys("train", "d/" * 999 + "d", ["a" * 60, "b"])


def test_the_order_of_digests_is_that_of_sha256_whatever_the_order_of_the_keys():
    keys = [f"train/awe/{number}" for number in range(50)]
    expected = sorted(keys, key=lambda key: hashlib.sha256(key.encode()).hexdigest())
    assert in_order_of_digests(keys) == in_order_of_digests(reversed(keys)) == expected != keys
