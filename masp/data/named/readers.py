"""Readers of the layouts that only one published dataset has."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from masp.config.schema import DatasetConfig
from masp.data.findings import Ignored
from masp.data.image_files.paths import path_inside, why_not_inside
from masp.data.sources.folders import is_image_name, is_litter
from masp.data.sources.rows import ColumnBuilder, Header, Rows, Value
from masp.errors import InputError
from masp.files.regular import UnsuitableFile, is_directory, is_file, open_binary
from masp.files.text import nfc, reason, shown
from masp.taxonomy import CATEGORY_SETS, normalize_category

_MAX_BYTES = 64 << 20


@dataclass
class ListedFiles:
    """A source of image files that are known one by one."""

    kind: str
    root: Path
    label_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    distribution: tuple[str, ...] = ()
    paths: list[str] = field(default_factory=list)
    """Relative to the root; also the names of the images."""
    places: list[str] = field(default_factory=list)
    """Where each is listed."""
    values: dict[str, list[Value]] = field(default_factory=dict)
    ignored: list[Ignored] = field(default_factory=list)
    _first: dict[str, str] = field(default_factory=dict)
    """Path -> where it is listed."""

    def add(self, path: str, where: str, **values: Value) -> None:
        """Add an image; every call gives the same columns.

        Raises:
            InputError: It is added again.
        """
        first = self._first.setdefault(path, where)
        if first is not where:
            raise InputError(f"{where}: {shown(path)} is listed again, first in {first}")
        self.paths.append(path)
        self.places.append(where)
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def complete(self, file: Path, before: int = 0) -> None:
        """Check that a file lists images: that there are more now than before it was read."""
        if len(self.paths) == before:
            raise InputError(f"{file}: lists no image")

    def ignore_unlisted(self, directories: Iterable[str]) -> None:
        """Add to what is ignored the images in some directories, relative to the root, that are not listed."""
        listed = set(map(nfc, self.paths))
        for directory in directories:
            if is_directory(self.root / directory):
                paths = [f"{directory}{name}" for name in _names(self.root / directory) if is_image_name(name)]
                self.ignored += [Ignored(path, "not listed") for path in paths if nfc(path) not in listed]

    def header(self) -> Header:
        """See `RowSource.header`."""
        return Header(
            tuple(self.values), rows_are_images=True, label_names=self.label_names, distribution=self.distribution
        )

    def read(self, columns: Sequence[str], image: str | None, identity: str | None) -> Rows:
        """See `RowSource.read`."""
        found = {}
        for name in columns:
            builder = ColumnBuilder()
            for value in self.values[name]:
                builder.append(value)
            found[name] = builder.column()
        names = self.paths if identity is None else [str(value) for value in self.values[identity]]
        return Rows(
            identities=names,
            columns=found,
            where=self.places.__getitem__,
            paths=[str(self.root / path) for path in self.paths],
            ignored=tuple(self.ignored),
        )


def emotion6(root: Path, config: DatasetConfig) -> ListedFiles | None:
    """`images/<emotion>/<n>.jpg` with `ground_truth.txt`: name, valence, arousal and 7 probabilities, of which the last
    is that of no emotion. The label is the directory, as in published accuracies."""
    path = root / "ground_truth.txt"
    if not is_file(path, key="dataset.root"):
        return None
    emotions = (*CATEGORY_SETS["emotion6"], "neutral")
    found = ListedFiles("files of Emotion6", root)
    found.distribution = emotions if "neutral" in (config.categories or ()) else emotions[:-1]
    for number, line in _lines(path):
        values = re.split(r"\s+", line)
        where = f"{path} line {number}"
        if not is_image_name(values[0]):  # the header
            if number > 1:
                raise InputError(f"{where}: {shown(values[0])}: must be the name of an image such as anger/1.jpg")
            continue
        if len(values) != 3 + len(emotions) or "/" not in values[0]:
            raise InputError(
                f"{where}: must be <emotion>/<n>.jpg, valence, arousal and the probabilities of {', '.join(emotions)}, "
                f"not {len(values)} values"
            )
        image = _inside(values[0], where)
        found.add(f"images/{image}", where, label=image.split("/")[0], **dict(zip(emotions, values[3:], strict=True)))
    found.complete(path)
    found.ignore_unlisted(_inside_images(root))
    return found


def artphoto(root: Path, config: DatasetConfig) -> ListedFiles | None:
    """`<emotion>_<id>.jpg` in one directory."""
    if not is_directory(root, key="dataset.root"):
        return None
    names = [name for name in _names(root) if is_image_name(name)]
    if not any("_" in name for name in names):
        return None
    found = ListedFiles("files of ArtPhoto", root)
    for name in names:
        if "_" in name:
            found.add(name, str(root / name), label=name.partition("_")[0])
        else:
            found.ignored.append(Ignored(name, "no category"))
    return found


def abstract(root: Path, config: DatasetConfig) -> ListedFiles | None:
    """Images in one directory and `ABSTRACT_groundTruth.csv`: a name in single quotes, then votes."""
    path = root / "ABSTRACT_groundTruth.csv"
    if not is_file(path, key="dataset.root"):
        return None
    found = ListedFiles("files of Abstract", root)
    emotions: list[str] = []
    for number, line in _lines(path):
        values = [value.strip().strip("'\"") for value in line.split(",")]
        where = f"{path} line {number}"
        if not emotions:
            emotions = values[1:]
            names = [normalize_category(name) for name in emotions]
            if twice := [name for name in names if names.count(name) > 1]:
                raise InputError(f"{where}: has the column {shown(twice[0])} twice")
            continue
        if len(values) != len(emotions) + 1:
            raise InputError(f"{where}: must be a name and {len(emotions)} numbers of votes, not {len(values)} values")
        found.add(_inside(values[0], where), where, **dict(zip(emotions, values[1:], strict=True)))
    found.complete(path)
    found.distribution = tuple(emotions)
    return found


def emotionroi(root: Path, config: DatasetConfig) -> ListedFiles | None:
    """`images/<emotion>/<n>.jpg`, listed in `training_testing_split/{training,testing}.txt`."""
    lists = root / "training_testing_split"
    if not is_directory(lists, key="dataset.root") or config.split is not None:
        return None
    found = ListedFiles("files of EmotionROI", root)
    for name in ("training", "testing"):
        path, before = lists / f"{name}.txt", len(found.paths)
        for number, line in _lines(path):
            where = f"{path} line {number}"
            image = _inside(line, where)
            if "/" not in image:
                raise InputError(f"{where}: {shown(line)}: must be <emotion>/<n>.jpg")
            found.add(f"images/{image}", where, label=image.split("/")[0], split=name)
        found.complete(path, before)
    found.ignore_unlisted(_inside_images(root))
    return found


def twitter(root: Path, config: DatasetConfig) -> ListedFiles | None:
    """Images in one directory and lists with lines `<name> <0 or 1>`."""
    path = root if is_file(root, key="dataset.root") else root / "five_agree.txt"
    if not is_file(path, key="dataset.root"):
        return None
    found = ListedFiles("files of Twitter I", path.parent, {"label": ("negative", "positive")})
    for number, line in _lines(path):
        where = f"{path} line {number}"
        name, _, label = line.rpartition(" ")
        if label not in ("0", "1") or not name.strip():
            raise InputError(f"{where}: {shown(line)}: must be the name of an image and 0 or 1, as in `1.jpg 1`")
        found.add(_inside(name.strip(), where), where, label=int(label))
    found.complete(path)
    found.ignore_unlisted([""])
    return found


def _inside_images(root: Path) -> list[str]:
    """The directories in `images/`, relative to the root, with a slash at the end."""
    images = root / "images"
    if not is_directory(images, key="dataset.root"):
        return []
    return [f"images/{name}/" for name in _names(images) if is_directory(images / name)]


def _names(directory: Path) -> list[str]:
    """What is in a directory, but for litter such as `._1.jpg`; sorted."""
    try:
        return sorted(name for name in os.listdir(directory) if not is_litter(name))
    except OSError as error:
        raise InputError(f"dataset.root = {str(directory)!r}: cannot be listed: {reason(error)}") from None


def _lines(path: Path) -> list[tuple[int, str]]:
    """Number and text of each line that is not empty."""
    try:
        with open_binary(path, max_bytes=_MAX_BYTES) as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not text in UTF-8") from None
    except (UnsuitableFile, OSError) as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None
    return [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]


def _inside(text: str, where: str) -> str:
    """A path in its shortest form, checked to stay in the dataset's directory."""
    path = path_inside(text)
    if path is None:
        raise InputError(f"{where}: {shown(text)}: {why_not_inside(text)}")
    return path
