"""Images that are added to the dataset: only their shards are computed, and nothing else changes."""

import hashlib
import json
import shutil

import pytest

from masp.cache.describe import describe
from masp.cache.reader import open_cache
from masp.cache.verify import verify_cache
from masp.cli.main import main
from masp.config import save_config
from masp.errors import InputError
from masp.extraction.extend import extend
from masp.extraction.job import extract
from masp.extraction.repair import repair
from tests.images import make_config, make_dataset
from tests.tiny import make_vlm


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return make_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def base(vlm, tmp_path_factory):
    """A dataset and its finished cache; tests take copies."""
    folder = tmp_path_factory.mktemp("base")
    root = make_dataset(folder / "data", 12, 4, broken=True)
    extract(make_config(root, vlm, folder / "cache"))
    return folder


@pytest.fixture
def copied(base, vlm, tmp_path):
    """`(dataset, cache, configuration)` of one's own."""
    for name in ("data", "cache"):
        shutil.copytree(base / name, tmp_path / name)
    return tmp_path / "data", tmp_path / "cache", make_config(tmp_path / "data", vlm, tmp_path / "cache")


def add(root, *names, split="train"):
    """Add pictures to a split, under names of their own."""
    for name in names:
        shutil.copy(root / "train" / "awe" / "train.001.png", root / split / "joy" / name)


def digests(folder, pattern="*"):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "shards").glob(pattern)}


def everything(folder):
    return [(folder / n).read_bytes() for n in ("index.h5", "manifest.json", "layout.json", "quarantine.jsonl")]


def keys_of(folder):
    return sorted(open_cache(folder).index.keys)


def test_only_the_new_shards_are_computed(copied):
    root, folder, config = copied
    old, keys = digests(folder), keys_of(folder)
    before = {p: p.stat().st_mtime_ns for p in (folder / "shards").iterdir()}
    add(root, "a.png", "b.png", "c.png", "d.png")
    add(root, "z.png", split="test")
    with pytest.raises(InputError, match=r"train/joy/a%2Epng is new in the dataset.*masp cache extend"):
        extract(config)
    extend(config)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    now = digests(folder)
    assert now.items() > old.items()
    assert {n for n in now if n not in old and n.endswith(".tar")} == {"test-g1-00000.tar", "train-g1-00000.tar"}
    cache = open_cache(folder)
    added = [f"train/joy/{n}%2Epng" for n in "abcd"] + ["test/joy/z%2Epng"]
    assert sorted(cache.index.keys) == sorted(keys + added)  # each once
    for row in range(len(cache)):
        cache.read(row)
    assert verify_cache(folder) == []
    assert "5 images added in generation 1" in describe(folder)


def test_from_the_command_line(copied, tmp_path, capsys):
    root, folder, config = copied
    save_config(config, tmp_path / "c.yaml")
    add(root, "a.png")
    command = ["cache", "extend", "--config", str(tmp_path / "c.yaml")]
    assert main([*command, "--num-tasks", "2"]) == 2
    assert "give --num-tasks and --task-index together" in capsys.readouterr().err
    assert main(command) == 0
    assert "1 new images form generation 1" in capsys.readouterr().out
    assert main(["cache", "info", str(folder)]) == 0
    assert "1 images added in generation 1, 1 shards" in capsys.readouterr().out
    assert main(["cache", "verify", str(folder)]) == 0


def test_extending_twice_and_with_nothing_new(copied, capsys):
    root, folder, config = copied
    extend(config)
    assert "is complete" in capsys.readouterr().out
    for name in ("a.png", "b.png"):
        add(root, name)
        extend(config)
    assert len(open_cache(folder).manifest.generations) == 3
    assert verify_cache(folder) == []
    before = everything(folder)
    extract(config)
    extend(config)
    assert everything(folder) == before


def test_tasks_and_an_interruption_leave_no_trace(copied, vlm, tmp_path):
    root, folder, config = copied
    add(root, *(f"{i}.png" for i in range(9)))
    other = shutil.copytree(folder, tmp_path / "other")
    extend(config)
    elsewhere = make_config(root, vlm, other)
    for task in (2, 0, 1):
        extend(elsewhere, num_tasks=3, task_index=task)
    assert (digests(other), everything(other)) == (digests(folder), everything(folder))
    (other / "shards" / "train-g1-00001.json").unlink()
    (other / "manifest.json").unlink()
    with pytest.raises(InputError, match="1 of 6 shards are missing"):
        open_cache(other)
    add(root, "late.png")  # an extension that was not finished takes more
    extend(elsewhere)
    assert [len(g.shards) for g in open_cache(other).manifest.generations] == [4, 2, 1]
    assert verify_cache(other) == []


@pytest.mark.parametrize("damage", ["train-00001.tar", "train-g1-00000.tar", "train-g1-00000.json"])
def test_an_extended_cache_is_mended_like_any_other(copied, damage):
    root, folder, config = copied
    add(root, "a.png", "b.png")
    extend(config)
    before, rest = digests(folder), everything(folder)
    path = folder / "shards" / damage
    path.write_bytes(path.read_bytes()[:-700])
    (problem, *_) = verify_cache(folder)
    assert problem.shard == damage.rpartition(".")[0]
    repair(config)
    assert (digests(folder), everything(folder)) == (before, rest)


def test_a_layout_that_is_lost_comes_back_from_the_manifest(copied):
    root, folder, config = copied
    add(root, "a.png")
    extend(config)
    before = everything(folder)
    (folder / "layout.json").unlink()
    repair(config)
    assert everything(folder) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda r: (r / "train/joy/train.002.jpg").unlink(), "train/joy/train%2E002%2Ejpg is no longer in the dataset"),
        (
            lambda r: [(r / f"train/joy/train.00{i}.{e}").unlink() for i, e in ((2, "jpg"), (5, "png"))],
            "train/joy/train%2E002%2Ejpg is no .*train/joy/train%2E005%2Epng is no longer",
        ),
        (
            lambda r: shutil.copy(r / "train/joy/train.008.jpg", r / "train/joy/train.002.jpg"),
            "train/joy/train%2E002%2Ejpg: .*train.002.jpg has changed",
        ),
        (
            lambda r: (r / "annotation/joy/train.002.json").write_text('{"scene": "forest"}'),
            "train/joy/train%2E002%2Ejpg was cached with answers",
        ),
        (
            lambda r: ((r / "train/rage").mkdir(), shutil.copy(r / "train/joy/train.002.jpg", r / "train/rage/a.jpg")),
            "dataset.categories",
        ),
    ],
)
def test_what_went_or_changed_is_named_and_nothing_is_touched(copied, change, named):
    root, folder, config = copied
    add(root, "a.png")
    change(root)
    before = digests(folder), everything(folder)
    with pytest.raises(InputError, match=named):
        extend(config)
    assert (digests(folder), everything(folder)) == before


def test_another_machine_or_model_is_refused_before_anything_is_touched(copied, vlm):
    root, folder, _ = copied
    add(root, "a.png")
    before = digests(folder), everything(folder)
    for override, field in (
        ("extract.num_threads=2", "num_threads"),
        ("vlm.max_side=64", "max_side"),
        ("cache.dtype=bf16", "dtype"),
    ):
        with pytest.raises(InputError, match=f"made with {field} = "):
            extend(make_config(root, vlm, folder, override))
    assert (digests(folder), everything(folder)) == before


def test_a_generation_of_which_nothing_was_finished_binds_nobody(copied, monkeypatch):
    root, folder, config = copied
    add(root, "a.png", "b.png")

    def crash(*_):
        raise RuntimeError("crash")

    with monkeypatch.context() as patch:
        patch.setattr("masp.extraction.job._encode", crash)
        with pytest.raises(RuntimeError):
            extend(config)
    assert len(json.loads((folder / "layout.json").read_text())["generations"]) == 2
    (root / "train" / "joy" / "b.png").unlink()
    extend(config)
    assert open_cache(folder).manifest.generations[1].keys == ("train/joy/a%2Epng",)


def test_what_was_never_finished_cannot_be_extended(copied, vlm, tmp_path):
    root, folder, config = copied
    (folder / "manifest.json").unlink()
    (folder / "shards" / "train-00001.json").unlink()
    add(root, "a.png")
    with pytest.raises(InputError, match=r"is unfinished: 1 of 4 shards are missing \(train-00001\)"):
        extend(config)
    with pytest.raises(InputError, match="is not a feature cache"):
        extend(make_config(root, vlm, tmp_path / "nothing"))
