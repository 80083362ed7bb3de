"""The layout of folders: `ROOT/{train,val,test}/<emotion>/*`, annotated in `ROOT/annotation/<emotion>/<stem>.json`."""

import os
from pathlib import Path

from masp.data.sample import SPLITS, Entry, Listing
from masp.errors import InputError
from masp.taxonomy import normalise_category

# What a file in a category folder must be called to count as an image. Some of these formats Pillow reads only where it
# was built with them; such a file is then reported as unreadable, never passed over.
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

ANNOTATION_FOLDER = "annotation"

# What operating systems and file servers leave in every folder; nobody needs to hear of it.
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"})


def read_folders(root: Path, categories: tuple[str, ...] | None) -> Listing:
    """List the images of a dataset in folders.

    Hidden files (their name starts with a dot) and what operating systems leave behind do not exist for it. Every other
    thing that is no image, by its name, is listed as ignored.

    Args:
        root: the dataset's folder.
        categories: the valid categories; None takes the folder names.

    Returns:
        The images, the categories in alphabetical order, and what was ignored.

    Raises:
        InputError: a folder is named like no valid category, two are named alike, one holds no image, or two images
            would share one annotation.
    """
    entries: list[Entry] = []
    ignored: list[str] = []
    found: set[str] = set()
    annotations = _annotation_folders(root)
    for split in SPLITS:
        if not (root / split).is_dir():
            continue
        folders, others = _contents(root / split)
        ignored += [f"{split}/{name}" for name in others]
        if not folders:
            raise InputError(f"{root / split}: holds no category folder such as {_example(categories)}/")
        names: dict[str, str] = {}
        for folder in folders:
            category = _category(root / split / folder, categories, names)
            names[category] = folder
            entries += _read_category(root, split, folder, category, annotations.get(category), ignored)
        found |= names.keys()
    _check_annotations_are_unique(entries)
    return Listing(entries, tuple(sorted(found)), tuple(ignored))


def _read_category(
    root: Path, split: str, folder: str, category: str, annotation: Path | None, ignored: list[str]
) -> list[Entry]:
    path = root / split / folder
    folders, files = _contents(path)
    ignored += [f"{split}/{folder}/{name}/" for name in folders]
    images = [name for name in files if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS]
    ignored += [f"{split}/{folder}/{name}" for name in set(files).difference(images)]
    if not images:
        others = f" ({len(files) + len(folders)} other things)" if files or folders else ""
        raise InputError(
            f"{path}: this category folder holds no image{others}; add images (.jpg, .png, .webp, …) or remove it"
        )
    return [
        Entry(
            split=split,
            relative_path=f"{folder}/{name}",
            image_path=path / name,
            category=category,
            annotation_path=None if annotation is None else annotation / f"{os.path.splitext(name)[0]}.json",
            where=str(path / name),
        )
        for name in images
    ]


def _category(path: Path, categories: tuple[str, ...] | None, names: dict[str, str]) -> str:
    """The category that a folder's name means, checked."""
    category = normalise_category(path.name)
    if categories is not None and category not in categories:
        raise InputError(
            f"{path}: {category!r} is no category of this dataset; valid are {', '.join(categories)} "
            f"(dataset.name chooses the set, dataset.categories sets another one)"
        )
    if not category:
        raise InputError(f"{path}: this folder's name holds no word to name a category with")
    if category in names:
        raise InputError(f"{path}: means the category {category!r}, and so does {path.parent / names[category]}")
    return category


def _annotation_folders(root: Path) -> dict[str, Path]:
    """The annotation folder of each category, which may be written in another case than the images' folder."""
    path = root / ANNOTATION_FOLDER
    if not path.is_dir():
        return {}
    return {normalise_category(name): path / name for name in _contents(path)[0]}


def _check_annotations_are_unique(entries: list[Entry]) -> None:
    users: dict[Path, Entry] = {}
    for entry in entries:
        if entry.annotation_path is None:
            continue
        other = users.setdefault(entry.annotation_path, entry)
        if other is not entry and entry.annotation_path.exists():
            raise InputError(
                f"{entry.annotation_path}: would annotate both {other.image_path} and {entry.image_path}; "
                f"give images different names"
            )


def _contents(path: Path) -> tuple[list[str], list[str]]:
    """The names of the folders and of the other things in a folder, each sorted."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(path) as listing:
            for item in listing:
                if not item.name.startswith(".") and item.name.lower() not in _LITTER:
                    (folders if item.is_dir() else files).append(item.name)
    except OSError as error:
        raise InputError(f"{path}: cannot list this folder: {error.strerror}") from None
    return sorted(folders), sorted(files)


def _example(categories: tuple[str, ...] | None) -> str:
    return categories[0] if categories else "joy"
