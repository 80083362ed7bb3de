"""Image folders: `ROOT/{train,val,test}/<emotion>/**`, or `ROOT/<emotion>/**` without splits, annotated in
`ROOT/annotation/<emotion>/<stem>.json`.
"""

import errno
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from masp.data.findings import Finding, Ignored, Why, close_to, examples
from masp.data.keys import sample_key, sample_keys
from masp.data.sample import SPLITS, UNDIVIDED, Entries, Listing, directory_prefix, split_name, split_names
from masp.data.sources.category_names import CategoryNames
from masp.data.sources.split_words import SPLIT_WORDS
from masp.errors import InputError
from masp.files.regular import is_directory
from masp.files.text import nfc, reason
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
_MAX_LITTER = max(map(len, _LITTER))
"""Letters of a longer name need not be compared."""

# The `datasets` library keeps what `map` and `filter` made of a dataset beside its arrow files.
_RESULT_OF_MAP = re.compile(r"cache-[0-9a-f]{16}(_\d{5}_of_\d{5})?\.arrow")

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
_MAX_DEPTH = 32
"""Directories below that of a category."""
_MAX_COUNTED = 100_000
"""Files that are looked at in a directory that is passed over."""


@dataclass(frozen=True)
class Contents:
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
        # nearly always each image has an annotation of its own, all of them in one directory
        numbers = set(map(files.stems.get, stems))
        number = numbers.pop() if len(numbers) == 1 else None
        if number is not None and number >= 0 and len(used := dict.fromkeys(stems, ~number)) == len(stems):
            files.stems.update(used)
            return [self.prefixes[number]] * len(stems)
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
    names: CategoryNames
    ignored: list[Ignored] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    odd: bool = False
    """Whether a path may have more than one Unicode form."""


def read_folders(root: Path, names: CategoryNames) -> Listing:
    """List the images of a dataset in image folders.

    Its splits, or where there are none its categories, may be in a directory of their own. What operating systems leave
    behind is passed over. Everything else that is not an image by its name, hidden, or in a directory where no image
    belongs is listed as ignored. Directories whose names differ only in their Unicode form are one category.

    Args:
        root: Directory of the dataset.
        names: Valid categories, and what names of directories mean.

    Returns:
        The images, the categories in alphabetical order, and what was ignored.

    Raises:
        InputError: A directory does not have the name of a valid category, two mean the same one, one holds no image,
            or two images would share one annotation.
    """
    start, splits = _find_start(root, names)
    bases = {split: f"{start}{name}/" for split, name in splits.items()} or {UNDIVIDED: ""}
    found = _Found(root, Entries(directory_prefix(root), bases), names)
    annotations = _read_annotations(root)
    present: set[str] = set()
    for split, name in splits.items():
        present |= _read_split(found, f"{start}{name}", split, annotations)
    if not splits:
        present = _read_split(found, start.rstrip("/"), "", annotations)
    _check_annotations_are_unique(found.entries, annotations)
    _look_outside(found, start, splits.values())
    found.findings += [*annotations.findings(), *(_same_names(found.entries) if found.odd else ())]
    return Listing(found.entries, tuple(sorted(present)), tuple(found.ignored), tuple(found.findings))


def _find_start(root: Path, names: CategoryNames) -> tuple[str, dict[str, str]]:
    """The directory of the splits, or else of the categories, relative to the root; and the splits with their names.

    It is the root, or while there is only one directory with images and no directory of a split, that directory.
    """
    start, here = "", root
    while True:
        if splits := _splits_in(here):
            return start, splits
        contents = list_directory(here)
        with_images = [n for n in contents.directories if n != ANNOTATION_DIRECTORY and has_image(here / n)]
        if len(with_images) != 1 or normalize_category(with_images[0]) in (names.valid or ()):
            return start, {}
        inside = list_directory(here / with_images[0])
        # a single directory cannot be the categories; if several directories inside it hold images, those are
        num_below = sum(has_image(here / with_images[0] / name) for name in inside.directories)
        if num_below < 2 and any(map(is_image_name, inside.files)):
            return start, {}
        start, here = f"{start}{with_images[0]}/", here / with_images[0]


def _splits_in(directory: Path) -> dict[str, str]:
    """Split -> name of its directory; other words than `train`, `val` and `test` count only where none of these is."""
    names = list_directory(directory).directories
    exact: dict[str, str] = {split: split for split in SPLITS if split in names}
    if exact:
        return exact
    found: dict[str, str] = {}
    for name in names:
        if (split := SPLIT_WORDS.get(name.lower())) and has_image(directory / name):
            if split in found:
                raise InputError(f"{directory / name}: means the split {split}, and so does {directory / found[split]}")
            found[split] = name
    return {split: found[split] for split in SPLITS if split in found}


def _read_split(found: _Found, place: str, split: str, annotations: _Annotations) -> set[str]:
    """List the categories in a directory, relative to the root; returns them."""
    here = found.root / place
    contents = list_directory(here)
    found.ignored += _passed_over(split, place, contents.files, contents.hidden, "no category")
    names: dict[str, str] = {}
    for directory in contents.directories:
        path = here / directory
        if not split and (directory == ANNOTATION_DIRECTORY or not has_image(path)):
            continue
        if not split and _is_annotations(directory, found.names):
            count = count_images(path)
            found.ignored.append(Ignored(f"{directory}/", "no category", count, meant=f"{ANNOTATION_DIRECTORY}/"))
            continue
        try:
            category = found.names.of(directory, lambda path=path: str(path))  # type: ignore[misc]
        except InputError as error:
            if split or (meant := meant_by_name(directory)) not in SPLITS:
                raise
            raise InputError(f"{error}; if it is a split, rename it to {meant}/") from None
        if category is None:  # left out by dataset.label_names
            left_out = f"{path.relative_to(found.root)}/"
            found.ignored.append(Ignored(left_out, "left out", count_images(path), split))
            continue
        other = names.setdefault(category, directory)
        if other != directory and found.names.translated is None:
            if nfc(other) != nfc(directory):
                raise InputError(f"{path}: means the category {category!r}, and so does {path.parent / other}")
            text = f"{split} has the category {category!r} in two directories, whose names differ in their Unicode form"
            found.findings.append(Finding("names", text, 2))
        _read_category(found, place, directory, category, split, annotations)
    if not names and found.ignored and all(each.why == "left out" for each in found.ignored):
        raise InputError(f"{here}: dataset.label_names leaves all categories out")
    if not names:
        example = found.names.valid[0] if found.names.valid else "joy"
        raise InputError(f"{here}: holds no category directory such as {example}/")
    if not split and not found.names.valid:
        found.findings += _same_inside(here, names.values())
    return set(names)


def _is_annotations(directory: str, names: CategoryNames) -> bool:
    """Whether a directory is probably the annotations under another name, and not a category."""
    category = normalize_category(directory)
    known = (*(names.valid or ()), *(names.translated or ()))
    return category not in known and _MEANT.get(directory.lower()) == ANNOTATION_DIRECTORY


def _same_inside(place: Path, categories: Iterable[str]) -> list[Finding]:
    """Categories that all hold the same directories and no image beside them: perhaps those are the categories."""
    first, *others = categories
    contents = list_directory(place / first)
    same = contents.directories
    if not others or not same or any(map(is_image_name, contents.files)):
        return []
    if any(list_directory(place / name).directories != same for name in others):
        return []
    count = 1 + len(others)
    text = (
        f"all {count} category directories hold the same directories, {', '.join(same[:5])}; if these are the "
        "categories, dataset.root must be the directory that they are in"
    )
    return [Finding("names", text, count, serious=True)]


def _read_category(
    found: _Found, place: str, directory: str, category: str, split: str, annotations: _Annotations
) -> None:
    """List the images in a directory of a category and in all directories below it."""
    here = f"{place}/{directory}" if place else directory
    images = 0
    below = [here]
    while below:
        inside = below.pop()
        contents = list_directory(found.root / inside)
        named, others = contents.files, []
        stems, suffixes = split_names(named)
        is_image = {suffix: suffix.lower() in IMAGE_EXTENSIONS for suffix in set(suffixes)}
        if not all(is_image.values()):
            others = [name for name, suffix in zip(named, suffixes, strict=True) if not is_image[suffix]]
            stems = [stem for stem, suffix in zip(stems, suffixes, strict=True) if is_image[suffix]]
            named = [name for name, suffix in zip(named, suffixes, strict=True) if is_image[suffix]]
        found.ignored += _passed_over(split, inside, others, contents.hidden, "extension")
        _add(found, inside, named, stems, category, split, annotations)
        images += len(named)
        below += [f"{inside}/{name}" for name in reversed(contents.directories)]
        if inside.count("/") - here.count("/") > _MAX_DEPTH:
            raise InputError(f"{found.root / inside}: directories are nested more than {_MAX_DEPTH} deep")
    if not images:
        contents = list_directory(found.root / here)
        count = len(contents.files) + len(contents.directories) + len(contents.hidden)
        raise InputError(
            f"{found.root / here}: this category directory holds no image"
            f"{f' ({count} other things)' if count else ''}; add images (.jpg, .png, .webp, …) or remove it"
        )


def _add(
    found: _Found,
    place: str,
    images: Sequence[str],
    stems: Sequence[str],
    category: str,
    split: str,
    annotations: _Annotations,
) -> None:
    """Add the images of one directory, whose names without extensions are `stems`."""
    entries = found.entries
    base, of = entries.bases[split or UNDIVIDED], split or UNDIVIDED
    prefix = f"{entries.root}{place}/"
    entries.keys += _keys(of, place[len(base) :], images, prefix)
    entries.annotations += annotations.of(category, images, stems, prefix)
    entries.categories += [category] * len(images)
    found.odd = found.odd or not place.isascii() or not "".join(images).isascii()


def _keys(split: str, directory: str, images: Sequence[str], place: str) -> list[str]:
    """Sample keys of the images in one directory.

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
    found, place = [], f"{place}/" if place else ""
    for name in files:
        other: Why = "other file" if split_name(name)[1].lower() in _NO_IMAGE else "extension"
        found.append(Ignored(f"{place}{name}", why if is_image_name(name) else other, split=split))
    return found + [Ignored(f"{place}{name}", "hidden", split=split) for name in hidden]


def _look_outside(found: _Found, start: str, splits: Collection[str]) -> None:
    """Directories with images beside the splits, and images in the root itself."""
    if UNDIVIDED in found.entries.bases:  # every directory with images was a category, or leads to them
        here = found.root
        for part in Path(start).parts:
            found.ignored += [
                Ignored(str((here / name).relative_to(found.root)), "no category")
                for name in list_directory(here).files
                if is_image_name(name)
            ]
            here /= part
        return
    contents = list_directory(found.root)
    for name in contents.directories:
        if name in (*splits, ANNOTATION_DIRECTORY) or start.startswith(f"{name}/"):
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
    """Files with one of these extensions in a directory and those below it, among the first 100,000 files; what cannot
    be listed is not counted."""
    return sum(split_name(name)[1].lower() in suffixes for name in _files_below(path, lambda _: None))


def has_image(path: Path) -> bool:
    """Whether there is an image in a directory or those below it; looks no further than the first one.

    Raises:
        InputError: A directory on the way to it cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot list this directory: {reason(error)}") from None

    return any(map(is_image_name, _files_below(path, refuse)))


def _files_below(path: Path, on_error: Callable[[OSError], None]) -> Iterator[str]:
    """Names of the files in a directory, then of those in the directories below it: the first 100,000.

    Args:
        path: The directory.
        on_error: Told of every directory that cannot be listed.
    """
    been: set[tuple[int, int]] = set()
    unread, count = [str(path)], 0
    while unread:
        here, inside = unread.pop(), []
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in been:  # links may lead in a circle
                continue
            been.add((status.st_dev, status.st_ino))
            with os.scandir(here) as listing:
                for item in listing:
                    if is_litter(item.name):
                        continue
                    if _is_directory(item):
                        inside.append(item.path)
                    elif count < _MAX_COUNTED:
                        count += 1
                        yield item.name
                    else:
                        return
        except OSError as error:
            on_error(error)
        unread += sorted(inside, reverse=True)


def _is_directory(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that leads to itself leads nowhere, like one to what does not exist
            return False
        raise


def meant_by_name(name: str) -> str:
    """The directory of a dataset's root that another name probably stands for; empty if there is none."""
    return _MEANT.get(name.lower()) or close_to(name, (*SPLITS, ANNOTATION_DIRECTORY))


def is_litter(name: str) -> bool:
    """Whether a file or directory is what operating systems and libraries leave behind, by its name."""
    first = name[0]
    if first == "c" and name.startswith("cache-"):
        return _RESULT_OF_MAP.fullmatch(name) is not None
    return first == "." or (len(name) <= _MAX_LITTER and name.lower() in _LITTER)


def _read_annotations(root: Path) -> _Annotations:
    """List the annotations; a category's directory may be written in another case or form than that of its images."""
    path = root / ANNOTATION_DIRECTORY
    found = _Annotations()
    if not is_directory(path, key="dataset.root"):
        return found
    contents = list_directory(path)
    found.others += [f"{ANNOTATION_DIRECTORY}/{name}" for name in contents.files]
    for number, directory in enumerate(contents.directories):
        place = f"{ANNOTATION_DIRECTORY}/{directory}"
        found.prefixes.append(f"{place}/")
        files = found.categories.setdefault(normalize_category(directory), _Directory())
        inside = list_directory(path / directory)
        found.others += [f"{place}/{name}/" for name in inside.directories]
        stems, suffixes = split_names(inside.files)
        if suffixes.count(".json") < len(suffixes):
            others = [name for name, suffix in zip(inside.files, suffixes, strict=True) if suffix != ".json"]
            found.others += [f"{place}/{name}" for name in others]
            stems = [stem for stem, suffix in zip(stems, suffixes, strict=True) if suffix == ".json"]
        files.stems.update(dict.fromkeys(stems, number))
        if not "".join(stems).isascii():
            for stem in stems:
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


def list_directory(path: Path, suffixes: Collection[str] | None = None) -> Contents:
    """What a directory holds, without what operating systems leave behind.

    Args:
        path: The directory.
        suffixes: Extensions in lower case: of the files, only those with one of these; None for all.

    Raises:
        InputError: It cannot be listed.
    """
    found = Contents([], [], [])
    try:
        with os.scandir(path) as listing:
            for item in listing:
                name = item.name
                if (len(name) <= _MAX_LITTER or name[0] in ".c") and is_litter(name):
                    if name[0] == "." and not name.startswith("._") and is_image_name(name):
                        found.hidden.append(name)  # `._a.jpg` is what macOS knows about `a.jpg`
                elif _is_directory(item):
                    found.directories.append(name)
                elif suffixes is None or name[name.rfind(".") :].lower() in suffixes:
                    found.files.append(name)
    except OSError as error:
        raise InputError(f"{path}: cannot list this directory: {reason(error)}") from None
    for names in (found.directories, found.files, found.hidden):
        names.sort()
    return found
