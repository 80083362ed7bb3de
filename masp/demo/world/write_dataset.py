"""Writes images of the demo world in EmoSet's layout: index files, `info.json`, images and annotations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path

from PIL import Image

from masp.demo.world import factors
from masp.demo.world.draw import draw_image, world_rng
from masp.errors import DataError, InputError, MaspError
from masp.files.regular import exists, is_directory
from masp.files.text import reason
from masp.files.typed import read

NOTE = "world.json"
"""Written last: the parameters of the dataset, and a digest of all its files."""
SPLITS = ("train", "val", "test")

Progress = Callable[[int, int], None]
Row = tuple[str, str, str]
"""Emotion, path of the image and path of its annotation; paths are relative to the root."""


@dataclass(frozen=True)
class Note:
    """The parameters of a dataset, in `world.json`."""

    world: str
    """Version of the world."""
    seed: int
    num_pictures: dict[str, int]
    """Number of images per split."""
    digest: str = ""
    """Digest of all files but this one."""


def write_demo_data(
    root: str | Path, num_train: int, num_test: int, seed: int, num_val: int = 0, progress: Progress | None = None
) -> bool:
    """Draw and write a dataset; the same arguments always give the same bytes.

    Args:
        root: Directory to write. It may exist if it is empty or already contains the same dataset.
        num_train, num_test, num_val: Numbers of images per split.
        seed: Seed of the dataset. No seed gives the images of the VLM's pretraining.
        progress: Called with the number of images written and the total.

    Returns:
        True if the dataset was written, False if it already existed.

    Raises:
        InputError: A count is negative, there are no images at all, or the directory has other content.
    """
    root = Path(root)
    if not root.name:
        raise InputError(f"{root}: must be the name of a directory to create")
    counts = dict(zip(SPLITS, (num_train, num_val, num_test), strict=True))
    for name, count in counts.items():
        if count < 0:
            raise InputError(f"--num-{name} is {count}; it must be 0 or more")
    if not sum(counts.values()):
        raise InputError("--num-train, --num-val, --num-test: a dataset needs at least one image")
    wanted = Note(factors.digest(), seed, counts)
    if exists(root) and not _is_empty_directory(root):
        if _is_complete(root, wanted):
            return False
        raise InputError(f"{root} is not empty and does not contain this dataset; give another directory")
    partial = root.with_name(f".{root.name}.partial")
    try:
        if exists(partial):
            shutil.rmtree(partial)  # left by an interrupted call
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{root} cannot be created: {reason(error)}; give another directory") from None
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
    """Expected accuracy of the best possible prediction on the images of a split.

    It follows from their annotations alone: the mean of the largest posterior.

    Raises:
        InputError: This is not a dataset of this version of the demo world, or the split has no images.
        DataError: An annotation is missing or damaged.
    """
    root = Path(root)
    note, rows = read(Note, root / NOTE), read(tuple[Row, ...], root / f"{split}.json")
    if note is None or rows is None:
        name = NOTE if note is None else f"{split}.json"
        raise InputError(f"{root / name} is missing: not a dataset of the demo world")
    if note.world != factors.digest():
        raise InputError(f"{root} was made by another version of the demo world; delete it and draw it again")
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
        drawn = draw_image(scene, rng)
        emotion = factors.draw_emotion(rng, scene)
        stem = f"{emotion}_{split}_{index:05d}"
        image, note = f"image/{emotion}/{stem}.png", f"annotation/{emotion}/{stem}.json"
        for name in (image, note):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.pixels).save(root / image, compress_level=1)
        content = {"image_id": stem, "emotion": emotion}
        _write_json(root / note, content | factors.annotation(scene, drawn.brightness, drawn.colorfulness))
        yield [emotion, image, note]


def _info() -> dict:
    """The vocabularies, nested like EmoSet's `info.json`."""
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
    """Digest of the names and bytes of all files except `NOTE`."""
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
