"""The layout of image folders: `ROOT/{train,val,test}/<emotion>/*`, annotated in
`ROOT/annotation/<emotion>/<stem>.json`.
"""

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from masp.data.findings import Finding, Ignored, Why, close_to, examples, look_alike
from masp.data.keys import sample_key, sample_keys
from masp.data.sample import SPLITS, Entries, Listing, directory_prefix, split_name
from masp.errors import InputError
from masp.files.regular import is_directory
from masp.files.text import nfc, reason
from masp.files.typed import is_text
from masp.taxonomy import normalize_category

# How the name of a file in a category directory must end to count as an image. Some of these formats Pillow reads only
# where it was built with them; such a file is then reported as unreadable, never passed over.
IMAGE_EXTENSIONS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".gif",
        ".bmp",
        ".dib",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".mpo",
        ".jp2",
        ".j2k",
        ".avif",
        ".ico",
        ".heic",
        ".heif",
    ]
)

ANNOTATION_DIRECTORY = "annotation"

# What operating systems and file servers leave in every directory; nobody needs to hear of it.
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found"})

# What lies beside images in many datasets and is never one; anything else that is passed over may be a misnamed image.
_NO_IMAGE = frozenset(
    ".txt .json .jsonl .xml .csv .tsv .md .html .yaml .yml .npy .npz .pt .pth .pkl .mat .h5 .log .py .pdf".split()
)

# What the directories of splits and annotations are called elsewhere.
_MEANT = {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
    "eval": "test",
    "annotations": ANNOTATION_DIRECTORY,
    "labels": ANNOTATION_DIRECTORY,
}
_MAX_COUNTED = 100_000
"""Files that are looked at in a directory that is passed over."""


@dataclass(frozen=True)
class _Contents:
    """The names in a directory, each kind sorted."""

    directories: list[str]
    files: list[str]
    hidden: list[str]
    """Hidden files with the extension of an image."""


@dataclass
class _Directory:
    """The annotation files of a category, by their stems."""

    stems: dict[str, int] = field(default_factory=dict)
    """Stem -> number of the directory it is in; once an image has it, that number's complement."""
    composed: dict[str, str] = field(default_factory=dict)
    """Stem in composed form -> stem on disk, where they differ."""

    def find(self, stem: str) -> str | None:
        """The stem of an image's annotation, which may be in another Unicode form; None if there is none."""
        if stem in self.stems:
            return stem
        plain = nfc(stem)
        return self.composed.get(stem) or (plain if plain in self.stems else self.composed.get(plain))


@dataclass
class _Annotations:
    """The annotation files of all categories. Millions of paths would take gigabytes, so they are made when needed."""

    prefixes: list[str] = field(default_factory=list)
    """Directories relative to the root, with a slash at the end."""
    categories: dict[str, _Directory] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    """What is not a JSON file in the directory of a category, relative to the root."""
    shared: tuple[str, str] | None = None
    """The first annotation that is that of two images, and the second image's path."""

    def of(self, category: str, images: Sequence[str], stems: Sequence[str], place: str) -> list[str | None]:
        """The annotations of images, as `Entries.annotations` has them; None where there is none.

        Args:
            category: Their category.
            images: Names of their files.
            stems: The names without their extensions.
            place: Path of their directory, with a slash at the end.
        """
        files = self.categories.get(category)
        if files is None:
            return [None] * len(images)
        found: list[str | None] = []
        for name, own_stem in zip(images, stems, strict=True):
            stem = files.find(own_stem)
            if stem is None:
                found.append(None)
                continue
            number = files.stems[stem]
            if number >= 0:
                files.stems[stem] = ~number
            else:
                number = ~number
                self.shared = self.shared or (self._path(number, stem), place + name)
            found.append(self.prefixes[number] if stem == own_stem else self._path(number, stem))
        return found

    def _path(self, number: int, stem: str) -> str:
        return f"{self.prefixes[number]}{stem}.json"

    def findings(self) -> list[Finding]:
        """Annotations that belong to no image."""
        unused = sorted(
            self._path(number, stem)
            for files in self.categories.values()
            for stem, number in files.stems.items()
            if number >= 0
        )
        found = []
        if unused:
            text = f"{len(unused):,} annotations belong to no image"
            found.append(Finding("annotations", text, len(unused), examples(unused)))
        if self.others:
            text = f"{len(self.others):,} entries of {ANNOTATION_DIRECTORY}/ are not <emotion>/<name>.json, and ignored"
            found.append(Finding("annotations", text, len(self.others), examples(sorted(self.others))))
        return found


@dataclass
class _Found:
    """What has been listed so far."""

    root: Path
    entries: Entries
    ignored: list[Ignored] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    odd: bool = False
    """Whether a path may have more than one Unicode form."""


def read_folders(root: Path, categories: tuple[str, ...] | None) -> Listing:
    """List the images of a dataset in image folders.

    What operating systems leave behind is passed over. Everything else that is not an image by its name, hidden, or in
    a directory where no image belongs is listed as ignored. Directories whose names differ only in their Unicode form
    are one category.

    Args:
        root: Directory of the dataset.
        categories: Valid categories; None takes the names of the directories.

    Returns:
        The images, the categories in alphabetical order, and what was ignored.

    Raises:
        InputError: A directory does not have the name of a valid category, two mean the same one, one holds no image,
            or two images would share one annotation.
    """
    found = _Found(root, Entries(directory_prefix(root), {split: f"{split}/" for split in SPLITS}))
    annotations = _read_annotations(root)
    present: set[str] = set()
    for split in SPLITS:
        if is_directory(root / split, key="dataset.root"):
            present |= _read_split(found, split, categories, annotations)
    _check_annotations_are_unique(found.entries, annotations)
    _look_outside(found)
    found.findings += [*annotations.findings(), *(_same_names(found.entries) if found.odd else ())]
    return Listing(found.entries, tuple(sorted(present)), tuple(found.ignored), tuple(found.findings))


def _read_split(found: _Found, split: str, categories: tuple[str, ...] | None, annotations: _Annotations) -> set[str]:
    """List one split; returns its categories."""
    contents = _contents(found.root / split)
    found.ignored += _passed_over(split, split, contents.files, contents.hidden, "no category")
    if not contents.directories:
        raise InputError(f"{found.root / split}: holds no category directory such as {_example(categories)}/")
    names: dict[str, str] = {}
    for directory in contents.directories:
        path = found.root / split / directory
        category = _category(path, categories)
        other = names.setdefault(category, directory)
        if other != directory:
            if nfc(other) != nfc(directory):
                raise InputError(f"{path}: means the category {category!r}, and so does {path.parent / other}")
            text = f"{split} has the category {category!r} in two directories, whose names differ in their Unicode form"
            found.findings.append(Finding("names", text, 2))
        _read_category(found, split, directory, category, annotations)
    return set(names)


def _read_category(found: _Found, split: str, directory: str, category: str, annotations: _Annotations) -> None:
    """List the images of one category directory."""
    path = found.root / split / directory
    contents = _contents(path)
    images: list[str] = []
    stems: list[str] = []
    others: list[str] = []
    for name in contents.files:
        stem, suffix = split_name(name)
        if suffix.lower() in IMAGE_EXTENSIONS:
            images.append(name)
            stems.append(stem)
        else:
            others.append(name)
    if not images:
        count = len(contents.files) + len(contents.directories) + len(contents.hidden)
        raise InputError(
            f"{path}: this category directory holds no image{f' ({count} other things)' if count else ''}; add images "
            "(.jpg, .png, .webp, …) or remove it"
        )
    for name in contents.directories:
        count = count_images(path / name)
        found.ignored.append(
            Ignored(f"{split}/{directory}/{name}/", "too deep" if count else "other file", count or 1, split)
        )
    found.ignored += _passed_over(split, f"{split}/{directory}", others, contents.hidden, "extension")
    entries, prefix = found.entries, f"{found.entries.root}{split}/{directory}/"
    entries.keys += _keys(split, directory, images, prefix)
    entries.annotations += annotations.of(category, images, stems, prefix)
    entries.categories += [category] * len(images)
    found.odd = found.odd or not directory.isascii() or not "".join(images).isascii()


def _keys(split: str, directory: str, images: Sequence[str], place: str) -> list[str]:
    """Sample keys of the images in a category directory.

    Raises:
        InputError: One cannot have a key; names it.
    """
    try:
        return sample_keys(split, directory, images)
    except ValueError:
        for name in images:
            try:
                sample_key(split, f"{directory}/{name}")
            except ValueError as error:
                raise InputError(f"{place}{name}: {error}") from None
        raise


def _passed_over(split: str, place: str, files: Iterable[str], hidden: Iterable[str], why: Why) -> list[Ignored]:
    """The files of a directory that are not images of the dataset.

    Args:
        split: Split whose directory they are in.
        place: Directory, relative to the root.
        files: Files that are not hidden.
        hidden: Hidden files that are called like images.
        why: Why an image among `files` is not part of the dataset; `extension` where there is none.
    """
    found = []
    for name in files:
        other: Why = "other file" if split_name(name)[1].lower() in _NO_IMAGE else "extension"
        found.append(Ignored(f"{place}/{name}", why if is_image_name(name) else other, split=split))
    return found + [Ignored(f"{place}/{name}", "hidden", split=split) for name in hidden]


def _look_outside(found: _Found) -> None:
    """Directories with images beside the splits, and images in the root itself."""
    contents = _contents(found.root)
    for name in contents.directories:
        if name in (*SPLITS, ANNOTATION_DIRECTORY):
            continue
        meant = meant_by_name(name)
        suffixes = (".json",) if meant == ANNOTATION_DIRECTORY else IMAGE_EXTENSIONS
        if count := count_images(found.root / name, suffixes):
            found.ignored.append(Ignored(f"{name}/", "no split", count, meant=f"{meant}/" if meant else ""))
    images = [name for name in contents.files if is_image_name(name)]
    found.ignored += [Ignored(name, "no split") for name in images]


def is_image_name(name: str) -> bool:
    """Whether a file counts as an image, by its name."""
    return split_name(name)[1].lower() in IMAGE_EXTENSIONS


def count_images(path: Path, suffixes: Sequence[str] | frozenset[str] = IMAGE_EXTENSIONS) -> int:
    """Files with one of these extensions in a directory and those below it, among the first 100,000 files."""
    count = seen = 0
    for _, directories, files in os.walk(path):
        directories[:] = sorted(name for name in directories if not _is_litter(name))
        count += sum(split_name(name)[1].lower() in suffixes for name in files if not _is_litter(name))
        seen += len(files)
        if seen >= _MAX_COUNTED:
            break
    return count


def meant_by_name(name: str) -> str:
    """The directory of a dataset's root that another name probably stands for; empty if there is none."""
    return _MEANT.get(name.lower()) or close_to(name, (*SPLITS, ANNOTATION_DIRECTORY))


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _category(path: Path, categories: tuple[str, ...] | None) -> str:
    """The category that the name of a directory means, checked."""
    category = normalize_category(path.name)
    if categories is not None and category not in categories:
        raise InputError(
            f"{path}: {category!r} is not a category of this dataset; valid are {', '.join(categories)} "
            f"(dataset.name chooses the set, dataset.categories sets another one){did_you_mean(category, categories)}"
        )
    if not category or not is_text(category):
        raise InputError(f"{path}: the name of this directory must be text that names a category")
    return category


def did_you_mean(category: str, categories: Sequence[str]) -> str:
    """What to add to an error about a category that is not valid; may be empty."""
    close = look_alike(category, categories) or difflib.get_close_matches(category, categories, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _read_annotations(root: Path) -> _Annotations:
    """List the annotations; a category's directory may be written in another case or form than that of its images."""
    path = root / ANNOTATION_DIRECTORY
    found = _Annotations()
    if not is_directory(path, key="dataset.root"):
        return found
    contents = _contents(path)
    found.others += [f"{ANNOTATION_DIRECTORY}/{name}" for name in contents.files]
    for number, directory in enumerate(contents.directories):
        place = f"{ANNOTATION_DIRECTORY}/{directory}"
        found.prefixes.append(f"{place}/")
        files = found.categories.setdefault(normalize_category(directory), _Directory())
        inside = _contents(path / directory)
        found.others += [f"{place}/{name}/" for name in inside.directories]
        for name in inside.files:
            stem, suffix = split_name(name)
            if suffix != ".json":
                found.others.append(f"{place}/{name}")
                continue
            files.stems[stem] = number
            if not stem.isascii() and (composed := nfc(stem)) != stem:
                files.composed.setdefault(composed, stem)
    return found


def _check_annotations_are_unique(entries: Entries, annotations: _Annotations) -> None:
    if annotations.shared is not None:
        path, second = annotations.shared
        first = entries.image_path(next(n for n in range(len(entries)) if entries.annotation_path(n) == path))
        raise InputError(f"{entries.root}{path}: would annotate both {first} and {second}; give images different names")


def _same_names(entries: Entries) -> list[Finding]:
    """Images whose paths differ in nothing but the Unicode form: usually the same image, copied twice."""
    first: dict[str, str] = {}
    paths = (f"{entries.split(number)}/{entries.relative_path(number)}" for number in range(len(entries)))
    twice = [path for path in paths if first.setdefault(nfc(path), path) != path]
    if not twice:
        return []
    text = f"{len(twice):,} images are called like another one but for the Unicode form of the name"
    return [Finding("names", text, len(twice), examples(twice))]


def _contents(path: Path) -> _Contents:
    """What a directory holds, without what operating systems leave behind."""
    found = _Contents([], [], [])
    try:
        with os.scandir(path) as listing:
            for item in listing:
                name = item.name
                if name[0] != "." and name.lower() not in _LITTER:
                    (found.directories if item.is_dir() else found.files).append(name)
                elif name[0] == "." and not name.startswith("._") and is_image_name(name):
                    found.hidden.append(name)  # `._a.jpg` is what macOS knows about `a.jpg`
    except OSError as error:
        raise InputError(f"{path}: cannot list this directory: {reason(error)}") from None
    for names in (found.directories, found.files, found.hidden):
        names.sort()
    return found


def _example(categories: tuple[str, ...] | None) -> str:
    return categories[0] if categories else "joy"
