"""Whatever is damaged, `verify` says so, and `repair` brings back the very bytes."""

import hashlib
import io
import random
import tarfile

import pytest

from masp.cache.reader import open_cache
from masp.cache.verify import verify_cache
from masp.errors import DataError, InputError
from masp.extraction.job import extract
from masp.extraction.repair import repair


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
