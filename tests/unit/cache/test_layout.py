"""Which sample goes to which shard depends on the samples' keys and the number of shards, and on nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masp.cache.fingerprint import this_machine
from masp.cache.layout import assign, make_layout, split_of
from masp.data.sample import Sample
from masp.errors import DataError


def samples_of(**counts):
    return [Sample(f"{s}/c{i % 3}/{i:04d}", s, "a.jpg", "awe", {}) for s, n in counts.items() for i in range(n)]


@given(
    counts=st.dictionaries(st.sampled_from(["train", "val", "test"]), st.integers(1, 60), min_size=1),
    num_shards=st.integers(1, 40),
    random=st.randoms(),
)
def test_shards_divide_the_samples(counts, num_shards, random):
    samples = samples_of(**counts)
    shards = assign(samples, num_shards)
    assert sorted(s.key for shard in shards for s in shard.samples) == sorted(s.key for s in samples)
    assert all(shard.samples and {s.split for s in shard.samples} == {shard.split} for shard in shards)
    assert len(shards) == min(max(num_shards, len(counts)), len(samples))
    assert [shard.number for shard in shards] == list(range(len(shards)))
    for split in counts:  # equal runs
        sizes = [len(shard.samples) for shard in shards if shard.split == split]
        assert max(sizes) - min(sizes) <= 1
    random.shuffle(samples)
    assert assign(samples, num_shards) == shards
    layout = make_layout("folder", ["a"], num_shards, shards, {}, this_machine("cpu", "fp32", 64, 1))
    assert layout.shard_names == [shard.name for shard in shards]


def test_splits_get_shards_in_proportion_and_categories_mix():
    shards = assign(samples_of(train=900, test=100), 10)
    assert [shard.split for shard in shards] == ["test"] + ["train"] * 9
    assert all(len({s.key.split("/")[1] for s in shard.samples}) == 3 for shard in shards)


def test_names_say_split_and_generation():
    assert [s.name for s in assign(samples_of(train=2), 2)] == ["train-00000", "train-00001"]
    added = assign(samples_of(train=1, test=1), 1, generation=2, first_number=7)
    assert [(s.name, s.number) for s in added] == [("test-g2-00000", 7), ("train-g2-00000", 8)]
    assert split_of("train-g2-00000") == "train"
    assert split_of("val-123456") == "val"
    with pytest.raises(DataError):
        split_of("../train")
