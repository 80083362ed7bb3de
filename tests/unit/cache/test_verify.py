"""Whatever is damaged, `verify` says so, and `repair` brings back the very bytes."""

import hashlib
import io
import json
import random
import shutil
import tarfile
from dataclasses import replace

import pytest
import torch

from masp.cache import writer
from masp.cache.codec import EIGHT_BIT, TORCH_NAMES, encode_features, encode_record
from masp.cache.reader import open_cache
from masp.cache.verify import verify_cache
from masp.errors import DataError, InputError
from masp.extraction.job import extract
from masp.extraction.repair import repair
from tests.small_cache import make_small_cache


def digests(folder):
    files = [*folder.glob("shards/*"), *(folder / n for n in ("index.h5", "quarantine.jsonl", "manifest.json"))]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 16
    path.write_bytes(data)


def swap_sidecars(folder):
    one, other = (folder / "shards" / f"train-0000{n}.json" for n in (0, 1))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def without_member(path):
    """The tar as `tar` would write it without its second member."""
    with tarfile.open(path) as old:
        members = [(m, old.extractfile(m).read()) for m in old]
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as new:
        for member, data in members[:1] + members[2:]:
            new.addfile(member, io.BytesIO(data))


def append(path):
    path.write_bytes(path.read_bytes() + b"\0" * 512)


DAMAGES = {
    "a byte of a shard's data": lambda c: flip(c / "shards/train-00000.tar", 3000),
    "a byte of a tar header": lambda c: flip(c / "shards/train-00000.tar", 3),
    "the last byte of a shard": lambda c: flip(c / "shards/test-00000.tar", -1),
    "a tar cut short": lambda c: (c / "shards/train-00001.tar").write_bytes(b"x" * 700),
    "bytes after a tar": lambda c: append(c / "shards/train-00001.tar"),
    "a member deleted": lambda c: without_member(c / "shards/train-00001.tar"),
    "a tar gone": lambda c: (c / "shards/train-00001.tar").unlink(),
    "a sidecar gone": lambda c: (c / "shards/train-00001.json").unlink(),
    "a byte of a sidecar": lambda c: flip(c / "shards/train-00002.json", 300),
    "sidecars exchanged": swap_sidecars,
    "the index cut short": lambda c: (c / "index.h5").write_bytes((c / "index.h5").read_bytes()[:999]),
    "a byte of the index": lambda c: flip(c / "index.h5", 5000),
    "the index gone": lambda c: (c / "index.h5").unlink(),
    "a byte of the manifest": lambda c: flip(c / "manifest.json", 77),
    "a byte of the quarantine list": lambda c: flip(c / "quarantine.jsonl", 5),
    "the quarantine list gone": lambda c: (c / "quarantine.jsonl").unlink(),
    "a byte of the layout": lambda c: flip(c / "layout.json", 90),
    "the layout gone": lambda c: (c / "layout.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_found_and_mended(copied, damage):
    folder, config = copied
    before = digests(folder)
    assert verify_cache(folder) == []
    DAMAGES[damage](folder)
    problems = verify_cache(folder)
    assert problems, damage
    assert repair(config) == problems
    assert verify_cache(folder) == []
    assert digests(folder) == before
    open_cache(folder).read(0)


def test_a_byte_flipped_anywhere_is_found(copied):
    folder, _ = copied
    draw, files = (
        random.Random(0),
        [p for p in sorted(folder.rglob("*")) if p.suffix in (".tar", ".json", ".h5", ".safetensors")],
    )
    files.append(folder / "quarantine.jsonl")
    sizes = [path.stat().st_size for path in files]
    # half of them in the tars, as their sizes have it; the others spread over all files
    picks = draw.choices(files, sizes, k=30) + [files[i % len(files)] for i in range(30)]
    for path in picks:
        position = draw.randrange(path.stat().st_size)
        flip(path, position)
        problems = verify_cache(folder)
        flip(path, position)
        assert problems, (path, position)
        name = f"shards/{path.name}" if path.parent.name == "shards" else path.name
        assert name in {problem.file for problem in problems}, (path, position, problems)
    assert verify_cache(folder) == []


def test_a_damaged_sample_is_named(copied):
    folder, _ = copied
    cache = open_cache(folder)
    row = int(cache.rows("train")[2])
    flip(folder / "shards" / f"{cache.shard_name(cache.index.shard[row])}.tar", int(cache.index.offset[row]) + 5)
    (problem,) = verify_cache(folder)
    assert problem.key == cache.index.keys[row] and problem.shard == "train-00000"
    assert "its JSON is damaged" in str(problem)


def safetensors_of(folder, row):
    """Path of the tar with a sample, and where the data of each of its tensors starts and ends in it."""
    cache = open_cache(folder)
    path = folder / "shards" / f"{cache.shard_name(int(cache.index.shard[row]))}.tar"
    start = int(cache.index.offset[row] + cache.index.features_start[row])
    data = path.read_bytes()
    body = start + 8 + int.from_bytes(data[start : start + 8], "little")
    header = json.loads(data[start + 8 : body])
    return path, {name: [body + place for place in entry["data_offsets"]] for name, entry in header.items()}


@pytest.mark.parametrize("dtype", TORCH_NAMES)
def test_a_bit_of_each_tensor_of_a_sample(tmp_path, dtype):
    folder = make_small_cache(tmp_path / "cache", dtype=dtype, num_deep_maps=2)
    assert verify_cache(folder) == []
    path, tensors = safetensors_of(folder, 3)
    assert len(tensors) == (4 if dtype in EIGHT_BIT else 2)
    for start, end in tensors.values():
        for position in (start, end - 1):
            flip(path, position)
            (problem,) = verify_cache(folder)
            assert problem.key == open_cache(folder).index.keys[3] and problem.what == "its features are damaged"
            with pytest.raises(DataError, match="the features do not match their checksum"):
                open_cache(folder).read(3)
            flip(path, position)
    assert verify_cache(folder) == []


def cut(stored, name, *where):
    return {**stored, name: stored[name][where].contiguous()}


WRONG_FEATURES = {
    "has 1 deep maps instead of 2": lambda s: cut(s, "deep", slice(0, 1)),
    "has 0 deep maps instead of 2": lambda s: {"features": s["features"]},
    "has features of 7 numbers instead of 8": lambda s: {
        name: tensor[..., :7].contiguous() for name, tensor in s.items()
    },
    "has 1 tokens instead of": lambda s: {name: tensor[..., :1, :].contiguous() for name, tensor in s.items()},
    "with the T and D of the features": lambda s: cut(s, "deep", slice(None), slice(0, 1)),
    "its features are not finite": lambda s: {**s, "deep": s["deep"] * torch.inf},
}


@pytest.mark.parametrize("what", WRONG_FEATURES)
def test_features_with_the_right_checksum_and_the_wrong_content(tmp_path, monkeypatch, what):
    monkeypatch.setattr(writer, "encode_features", lambda stored: encode_features(WRONG_FEATURES[what](stored)))
    folder = make_small_cache(tmp_path / "cache", num_deep_maps=2)
    problems = verify_cache(folder)
    assert len(problems) == 6 and all(p.key and what in str(p) for p in problems), problems


def test_a_block_with_another_number_of_tokens(tmp_path, monkeypatch):
    def longer(record):
        (token, count), *others = record.block
        return encode_record(replace(record, block=((token, count + 1), *others)))

    monkeypatch.setattr(writer, "encode_record", longer)
    problems = verify_cache(make_small_cache(tmp_path / "cache", separator=9))
    assert len(problems) == 6 and "no token of its block is there 2 times" in str(problems[0])


def test_a_shard_with_another_number_of_deep_maps(tmp_path):
    folder, other = (make_small_cache(tmp_path / str(count), num_deep_maps=count) for count in (2, 3))
    for file in ("train-00001.json", "train-00001.tar"):
        shutil.copyfile(other / "shards" / file, folder / "shards" / file)
    (problem,) = verify_cache(folder)
    assert str(problem) == "shards/train-00001.json: is not the one that the manifest names"
    flip(folder / "manifest.json", 77)
    found = [str(problem) for problem in verify_cache(folder)]
    assert "shards/train-00001.json: has another number of deep maps than the cache" in found and len(found) == 2


def test_a_manifest_of_another_cache_is_noticed(copied, made, tmp_path):
    from tests.images import make_config

    folder, _ = copied
    root, vlm, _ = made
    other = extract(make_config(root, vlm, tmp_path / "other", "vlm.max_side=60"))
    (folder / "manifest.json").write_bytes((other / "manifest.json").read_bytes())
    assert "does not agree" in str(verify_cache(folder)[0])


def test_a_strange_tar_is_named_and_left_alone(copied):
    folder, config = copied
    stranger = folder / "shards" / "mine.tar"
    stranger.write_bytes(b"?")
    (problem,) = verify_cache(folder)
    assert "mine.tar: is not a shard of this cache" in str(problem)
    with pytest.raises(InputError, match="remove it"):
        repair(config)
    assert stranger.exists()


def test_repair_with_another_configuration_touches_nothing(copied, made):
    from tests.images import make_config

    folder, _ = copied
    flip(folder / "shards" / "train-00000.tar", 3000)
    before = digests(folder)
    for override, field in (("vlm.max_side=50", "max_side"), ("extract.num_threads=2", "num_threads")):
        with pytest.raises(InputError, match=field):
            repair(make_config(made[0], made[1], folder, override))
    assert digests(folder) == before


def test_both_descriptions_lost_is_an_error(copied):
    folder, _ = copied
    flip(folder / "manifest.json", 50)
    flip(folder / "layout.json", 50)
    with pytest.raises(DataError):
        verify_cache(folder)
