"""What splits are called in columns and in the names of files and directories."""

import re
from collections.abc import Mapping, Sequence

from masp.taxonomy import Split

SPLIT_WORDS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "publictest": "val",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "eval": "test",
    "privatetest": "test",
}
"""Word in lower case -> split. FER2013 calls its validation split `PublicTest` and its test split `PrivateTest`."""

_WORD = re.compile(r"[A-Za-z]+")


def split_word(path: str) -> str | None:
    """The word in a file's name or directories that names a split, as it is written; None if there is none.

    The word must stand alone, between digits or other characters that are not letters. The name of the file counts
    before those of its directories, the innermost first; a name with words for two splits (`train_val`) says nothing.

    Args:
        path: Path relative to the root of the dataset, with `/` between directories.
    """
    for part in reversed(path.split("/")):
        words = [word for word in _WORD.findall(part) if word.lower() in SPLIT_WORDS]
        if words:
            return words[0] if len({SPLIT_WORDS[word.lower()] for word in words}) == 1 else None
    return None


def words_of_directories(paths: Sequence[str]) -> list[str | None]:
    """The word for a split that each image's directories have, the innermost first; None for all if one has none.

    Unlike in `split_word`, the word must be all of the directory's name.

    Args:
        paths: Paths relative to the root of the dataset; an absolute one has no word.
    """
    words: list[str | None] = []
    for path in paths:
        directories = [] if path.startswith("/") else path.split("/")[:-1]
        word = next((each for each in reversed(directories) if each.lower() in SPLIT_WORDS), None)
        if word is None:
            return [None] * len(paths)
        words.append(word)
    return words
