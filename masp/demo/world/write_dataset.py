"""Writes pictures of the demo world as EmoSet ships its own: index files, `info.json`, images and annotations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

from PIL import Image

from masp.demo.world import factors
from masp.demo.world.draw import draw_picture, world_rng
from masp.errors import DataError, InputError

NOTE = "world.json"
"""Written last: what the folder was made of, and a digest of every file in it."""
SPLITS = ("train", "val", "test")

Progress = Callable[[int, int], None]


def write_demo_data(
    root: str | Path, num_train: int, num_test: int, seed: int, num_val: int = 0, progress: Progress | None = None
) -> bool:
    """Draw and write a dataset; the same arguments always give the same bytes.

    Args:
        root: folder to write. It may exist if it is empty or holds the same dataset already.
        num_train, num_test, num_val: pictures per split.
        seed: names the dataset. The pictures of the VLM's pretraining come under no seed.
        progress: called with the number of pictures done and of all.

    Returns:
        True if it was written, False if it was there already.

    Raises:
        InputError: a count below zero, no picture at all, or a folder that holds anything else.
    """
    root = Path(root)
    counts = dict(zip(SPLITS, (num_train, num_val, num_test), strict=True))
    for name, count in counts.items():
        if count < 0:
            raise InputError(f"--num-{name} is {count}; it must be 0 or more")
    if not sum(counts.values()):
        raise InputError("a dataset of 0 pictures: give --num-train or --num-test")
    wanted = {"world": factors.digest(), "seed": seed, "num_pictures": counts}
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        if _is_complete(root, wanted):
            return False
        raise InputError(f"{root} is not empty and holds something else than this dataset; give another folder")
    partial = root.with_name(f".{root.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)  # left by a call that was interrupted
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{root} cannot be made: {error.strerror}; give another folder") from None
    done, total = 0, sum(counts.values())
    for split, count in counts.items():
        if not count:
            continue
        rows = []
        for row in _write_split(partial, split, count, seed):
            rows.append(row)
            done += 1
            if progress:
                progress(done, total)
        _write_json(partial / f"{split}.json", rows)
    _write_json(partial / "info.json", _info())
    _write_json(partial / NOTE, {**wanted, "digest": _digest(partial)})
    root.parent.mkdir(parents=True, exist_ok=True)
    if root.exists():
        root.rmdir()
    partial.rename(root)
    return True


def best_possible(root: str | Path, split: str) -> float:
    """The accuracy that the best possible guess is expected to have on the very pictures of a split.

    It follows from their annotations alone: the mean of the largest posterior.

    Raises:
        InputError: no data of this version of the demo world, or no such picture.
        DataError: an annotation that cannot be read.
    """
    root = Path(root)
    try:
        note = json.loads((root / NOTE).read_text())
        rows = json.loads((root / f"{split}.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{root} is no demo data: {getattr(error, 'filename', None) or error}") from None
    if note.get("world") != factors.digest():
        raise InputError(f"{root} was made by another version of the demo world: make it again")
    if not rows:
        raise InputError(f"{root}: no pictures in split {split!r}")
    scenes = []
    for row in rows:
        path = root / row[-1]
        try:
            scenes.append(factors.read_annotation(json.loads(path.read_text())).labels)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is no annotation of the demo world: {error}") from None
    return factors.expected_accuracy(scenes)


def _write_split(root: Path, split: str, count: int, seed: int) -> Iterator[list[str]]:
    for index in range(count):
        rng = world_rng("demo", seed, split, index)
        scene = factors.draw_scene(rng)
        picture = draw_picture(scene, rng)
        emotion = factors.draw_emotion(rng, scene)
        stem = f"{emotion}_{split}_{index:05d}"
        image, note = f"image/{emotion}/{stem}.png", f"annotation/{emotion}/{stem}.json"
        for name in (image, note):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.pixels).save(root / image, compress_level=1)
        content = {"image_id": stem, "emotion": emotion}
        _write_json(root / note, content | factors.annotation(scene, picture.brightness, picture.colorfulness))
        yield [emotion, image, note]


def _info() -> dict:
    """The vocabularies, nested as in EmoSet's `info.json`."""
    levels = [round(0.1 * k, 1) for k in range(11)]
    lists = {"emotion": factors.EMOTIONS, "brightness": levels, "colorfulness": levels}
    lists |= {a: factors.LABELS[a] for a in ("scene", "object", "facial_expression", "human_action")}
    return {
        name: {
            "label2idx": {str(value): k for k, value in enumerate(values)},
            "idx2label": {str(k): value for k, value in enumerate(values)},
        }
        for name, values in lists.items()
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def _digest(root: Path) -> str:
    """Of the names and bytes of all files but the note."""
    digest = blake2b(digest_size=16)
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.name != NOTE):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _is_complete(root: Path, wanted: dict) -> bool:
    try:
        note = json.loads((root / NOTE).read_text())
    except (OSError, ValueError):
        return False
    return note == wanted | {"digest": note.get("digest")} and note["digest"] == _digest(root)
