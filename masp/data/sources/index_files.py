"""The layout in which EmoSet's authors ship it: `ROOT/{train,val,test}.json` list images and annotations."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from masp.data.findings import Finding, Ignored, examples
from masp.data.image_files.paths import path_inside, why_not_inside
from masp.data.keys import sample_key
from masp.data.reading import read_json
from masp.data.sample import SPLITS, Entries, Listing, directory_prefix
from masp.data.sources.category_names import CategoryNames
from masp.data.sources.folders import is_image_name
from masp.errors import InputError
from masp.files.regular import is_file
from masp.files.text import nfc, reason, shown
from masp.files.typed import is_text
from masp.taxonomy import normalize_category

INFO_FILE = "info.json"
_ROW = '["emotion", "image path", "annotation path"], with an id after the emotion or without'


def read_index_files(root: Path, names: CategoryNames) -> Listing:
    """List the images of a dataset that comes with index files.

    Args:
        root: Directory of the dataset.
        names: Valid categories, and what emotions of rows mean; without, those of `info.json`, or else of the rows.

    Returns:
        The images and the categories, in the order of `info.json` or alphabetical.

    Raises:
        InputError: A file is not valid JSON, a row is not as it should be, does not have a valid category, leaves the
            dataset's directory, or lists an image again. The message names file and row.
    """
    if names.valid is None and names.translated is None:
        names = CategoryNames(read_info(root))
    entries = Entries(directory_prefix(root), dict.fromkeys(SPLITS, ""))
    for split in SPLITS:
        path = root / f"{split}.json"
        if is_file(path, key="dataset.root"):
            _read_index(entries, path, split, names)
    found = tuple(sorted(set(entries.categories)))
    ignored, findings = _compare_with_disk(root, entries)
    return Listing(entries, names.valid or found, ignored, findings, lists_annotations=True)


class FilesOnDisk:
    """The files of the directories that rows name, each listed once."""

    def __init__(self, root: Path) -> None:
        """Nothing listed yet; directories are relative to the root."""
        self._root = root
        self._listed: dict[str, dict[str, str] | None] = {}

    def names(self, directory: str) -> dict[str, str] | None:
        """Name in composed form -> name on disk; None if the directory cannot be listed."""
        if directory not in self._listed:
            try:
                names = sorted(os.listdir(self._root / directory))
            except (FileNotFoundError, NotADirectoryError):
                names = []
            except OSError:  # whether its files can be read is for whoever reads them to say
                names = None
            self._listed[directory] = None if names is None else {nfc(n): n for n in names} | {n: n for n in names}
        return self._listed[directory]

    def find(self, path: str) -> str | None:
        """The file that a path names, whose name on disk may be in another Unicode form; None if there is none."""
        directory, name = os.path.split(path)
        names = self.names(directory)
        if names is None:
            return path
        on_disk = names.get(name) or names.get(nfc(name))
        return None if on_disk is None else path if on_disk == name else os.path.join(directory, on_disk)


def _compare_with_disk(root: Path, entries: Entries) -> tuple[tuple[Ignored, ...], tuple[Finding, ...]]:
    """Give entries the paths of the files that are there, and find what is missing or not listed.

    Keys stay those of the rows. A directory whose own name is in another form than in the rows is not looked for.
    """
    directories = FilesOnDisk(root)
    missing: list[str] = []
    used: set[str] = set()
    images: set[str] = set()
    for number, annotation in enumerate(entries.annotations):
        image = entries.relative_path(number)
        path = directories.find(image)
        if path is None:
            missing.append(image)
        else:
            used.add(path)
            if path != image:
                entries.moved[number] = path
        images.add(os.path.dirname(image))
        if annotation is not None:
            entries.annotations[number] = directories.find(annotation) or annotation
    unlisted = [
        Ignored(file, "not listed")
        for directory in sorted(images)
        for name in sorted(set((directories.names(directory) or {}).values()))
        if is_image_name(name) and not name.startswith(".") and (file := os.path.join(directory, name)) not in used
    ]
    return tuple(unlisted), missing_images(missing, len(entries))


def missing_images(missing: Sequence[str], count: int) -> tuple[Finding, ...]:
    """What is said of images that do not exist.

    Args:
        missing: Paths of those that do not.
        count: How many are listed.
    """
    if not missing:
        return ()
    text = f"{len(missing):,} of {count:,} listed images do not exist"
    return (Finding("missing", text, len(missing), examples(missing), serious=2 * len(missing) > count),)


def read_info(root: Path) -> tuple[str, ...] | None:
    """The emotions in `info.json`, in the order of their numbers.

    The file exists in several forms: with the vocabularies of all attributes
    (`{"emotion": {"label2idx": {…}}, …}`), with that of the emotion alone (`{"label2idx": {…}, …}`), or as the plain
    map (`{"amusement": 0, …}`).

    Args:
        root: Directory of the dataset.

    Returns:
        The emotions, or None if the file does not exist.

    Raises:
        InputError: The file is not valid JSON or has none of these forms.
    """
    path = root / INFO_FILE
    if not is_file(path, key="dataset.root"):
        return None
    info = _read_json(path)
    vocabulary = info.get("emotion", info) if isinstance(info, dict) else None
    if isinstance(vocabulary, dict):
        vocabulary = vocabulary.get("label2idx", vocabulary)
    if not isinstance(vocabulary, dict) or not vocabulary or not all(map(_is_index, vocabulary.values())):
        raise InputError(f'{path}: must number the emotions, as in {{"label2idx": {{"amusement": 0, "awe": 1}}}}')
    names = [normalize_category(name) for name in sorted(vocabulary, key=vocabulary.__getitem__)]
    if "" in names or len(set(names)) < len(names) or not all(map(is_text, names)):
        raise InputError(f"{path}: must name every emotion once, not {shown(', '.join(names))}")
    return tuple(names)


def _read_index(entries: Entries, path: Path, split: str, names: CategoryNames) -> None:
    """Add the images of an index file."""
    rows = _read_json(path)
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: must hold a list of rows, each {_ROW}")
    entries.first_rows[split] = len(entries)
    first_row: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        where = f"{path} row {number}"
        if not isinstance(row, list) or len(row) not in (3, 4) or not all(isinstance(item, str) for item in row):
            raise InputError(f"{where}: {shown(row)}: must be {_ROW}")
        category = names.of(row[0], lambda where=where: where)  # type: ignore[misc]
        if category is None:
            entries.left_out.setdefault(split, []).append(len(entries))
            continue
        image, annotation = _inside(row[-2], where), _inside(row[-1], where) if row[-1].strip() else None
        if image in first_row:
            raise InputError(f"{where}: {shown(image)} is listed again, first in row {first_row[image]}")
        first_row[image] = number
        try:
            entries.keys.append(sample_key(split, image))
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
        entries.categories.append(category)
        entries.annotations.append(annotation)


def _inside(text: str, where: str) -> str:
    """A row's path in its shortest form, checked to stay in the dataset's directory."""
    path = path_inside(text)
    if path is None:
        raise InputError(f"{where}: {shown(text)}: {why_not_inside(text)}")
    return path


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_json(path: Path) -> Any:
    try:
        return read_json(path, InputError)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None
