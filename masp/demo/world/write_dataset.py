"""Writes pictures of the demo world as EmoSet ships its own: index files, `info.json`, images and annotations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path

from PIL import Image

from masp.demo.world import factors
from masp.demo.world.draw import draw_picture, world_rng
from masp.errors import DataError, InputError, MaspError
from masp.files.regular import exists, is_directory
from masp.files.text import reason
from masp.files.typed import read

NOTE = "world.json"
"""Written last: what the folder was made of, and a digest of every file in it."""
SPLITS = ("train", "val", "test")

Progress = Callable[[int, int], None]
Row = tuple[str, str, str]
"""Emotion, image and annotation of an image, the last two relative to the root."""


@dataclass(frozen=True)
class Note:
    """What a dataset was made of; `world.json`."""

    world: str
    """Version of the world."""
    seed: int
    num_pictures: dict[str, int]
    """Split -> number of its images."""
    digest: str = ""
    """Digest of all files but this one."""


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
    if not root.name:
        raise InputError(f"{root}: must be the name of a directory to make")
    counts = dict(zip(SPLITS, (num_train, num_val, num_test), strict=True))
    for name, count in counts.items():
        if count < 0:
            raise InputError(f"--num-{name} is {count}; it must be 0 or more")
    if not sum(counts.values()):
        raise InputError("a dataset of 0 pictures: give --num-train or --num-test")
    wanted = Note(factors.digest(), seed, counts)
    if exists(root) and not _is_empty_directory(root):
        if _is_complete(root, wanted):
            return False
        raise InputError(f"{root} is not empty and holds something else than this dataset; give another directory")
    partial = root.with_name(f".{root.name}.partial")
    try:
        if exists(partial):
            shutil.rmtree(partial)  # left by a call that was interrupted
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{root} cannot be made: {reason(error)}; give another directory") from None
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
    _write_json(partial / NOTE, {**asdict(wanted), "digest": _digest(partial)})
    root.parent.mkdir(parents=True, exist_ok=True)
    if exists(root):
        root.rmdir()
    partial.rename(root)
    return True


def best_possible(root: str | Path, split: str) -> float:
    """The accuracy that the best possible guess is expected to have on the very pictures of a split.

    It follows from their annotations alone: the mean of the largest posterior.

    Raises:
        InputError: There is no data of this version of the demo world, or no image in the split.
        DataError: An annotation is missing or damaged.
    """
    root = Path(root)
    note, rows = read(Note, root / NOTE), read(tuple[Row, ...], root / f"{split}.json")
    if note is None or rows is None:
        raise InputError(f"{root / (NOTE if note is None else f'{split}.json')} is missing: not data of the demo world")
    if note.world != factors.digest():
        raise InputError(f"{root} was made by another version of the demo world: make it again")
    if not rows:
        raise InputError(f"{root}: no images in split {split!r}")
    scenes = []
    for _, _, path in rows:
        annotation = read(factors.Annotation, root / path)
        if annotation is None:
            raise DataError(f"{root / path} is missing")
        scenes.append(annotation.to_scene().labels)
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


def _is_empty_directory(root: Path) -> bool:
    try:
        return is_directory(root) and not any(root.iterdir())
    except OSError as error:
        raise InputError(f"{root} cannot be read: {reason(error)}") from None


def _is_complete(root: Path, wanted: Note) -> bool:
    try:
        note = read(Note, root / NOTE)
    except MaspError:
        return False
    return note is not None and replace(note, digest="") == wanted and note.digest == _digest(root)
