"""The layout of image folders: `ROOT/{train,val,test}/<emotion>/*`, annotated in
`ROOT/annotation/<emotion>/<stem>.json`.
"""

import os
from pathlib import Path

from masp.data.sample import SPLITS, Entry, Listing, repetitions
from masp.errors import InputError
from masp.files.regular import exists, is_directory
from masp.files.text import reason
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
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"})


def read_folders(root: Path, categories: tuple[str, ...] | None) -> Listing:
    """List the images of a dataset in image folders.

    Hidden files (their name starts with a dot) and what operating systems leave behind are passed over. Everything else
    that is not an image, by its name, is listed as ignored.

    Args:
        root: Directory of the dataset.
        categories: Valid categories; None takes the names of the directories.

    Returns:
        The images, the categories in alphabetical order, and what was ignored.

    Raises:
        InputError: A directory does not have the name of a valid category, two mean the same one, one holds no image,
            or two images would share one annotation.
    """
    entries: list[Entry] = []
    ignored: list[str] = []
    found: set[str] = set()
    annotations = _annotation_directories(root)
    for split in SPLITS:
        if not is_directory(root / split, key="dataset.root"):
            continue
        directories, others = _contents(root / split)
        ignored += [f"{split}/{name}" for name in others]
        if not directories:
            raise InputError(f"{root / split}: holds no category directory such as {_example(categories)}/")
        names: dict[str, str] = {}
        for directory in directories:
            category = _category(root / split / directory, categories, names)
            names[category] = directory
            entries += _read_category(root, split, directory, category, annotations.get(category), ignored)
        found |= names.keys()
    _check_annotations_are_unique(entries)
    return Listing(entries, tuple(sorted(found)), tuple(ignored))


def _read_category(
    root: Path, split: str, directory: str, category: str, annotation: Path | None, ignored: list[str]
) -> list[Entry]:
    path = root / split / directory
    directories, files = _contents(path)
    ignored += [f"{split}/{directory}/{name}/" for name in directories]
    images = [name for name in files if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS]
    ignored += [f"{split}/{directory}/{name}" for name in set(files).difference(images)]
    if not images:
        others = f" ({len(files) + len(directories)} other things)" if files or directories else ""
        raise InputError(
            f"{path}: this category directory holds no image{others}; add images (.jpg, .png, .webp, …) or remove it"
        )
    return [
        Entry(
            split=split,
            relative_path=f"{directory}/{name}",
            directory=str(root / split),
            category=category,
            annotations=None if annotation is None else str(annotation),
        )
        for name in images
    ]


def _category(path: Path, categories: tuple[str, ...] | None, names: dict[str, str]) -> str:
    """The category that the name of a directory means, checked."""
    category = normalize_category(path.name)
    if categories is not None and category not in categories:
        raise InputError(
            f"{path}: {category!r} is not a category of this dataset; valid are {', '.join(categories)} "
            f"(dataset.name chooses the set, dataset.categories sets another one)"
        )
    if not category or not is_text(category):
        raise InputError(f"{path}: the name of this directory must be text that names a category")
    if category in names:
        raise InputError(f"{path}: means the category {category!r}, and so does {path.parent / names[category]}")
    return category


def _annotation_directories(root: Path) -> dict[str, Path]:
    """The directory of each category's annotations, which may be written in another case than that of its images."""
    path = root / ANNOTATION_DIRECTORY
    if not is_directory(path, key="dataset.root"):
        return {}
    return {normalize_category(name): path / name for name in _contents(path)[0]}


def _check_annotations_are_unique(entries: list[Entry]) -> None:
    for other, entry in repetitions(entries, lambda entry: entry.annotation_path):
        if exists(Path(entry.annotation_path or "")):
            raise InputError(
                f"{entry.annotation_path}: would annotate both {other.image_path} and {entry.image_path}; "
                f"give images different names"
            )


def _contents(path: Path) -> tuple[list[str], list[str]]:
    """The names of the directories and of the other things in a directory, each sorted."""
    directories: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(path) as listing:
            for item in listing:
                if not item.name.startswith(".") and item.name.lower() not in _LITTER:
                    (directories if item.is_dir() else files).append(item.name)
    except OSError as error:
        raise InputError(f"{path}: cannot list this directory: {reason(error)}") from None
    return sorted(directories), sorted(files)


def _example(categories: tuple[str, ...] | None) -> str:
    return categories[0] if categories else "joy"
