"""What splits are called in columns and in the names of files and directories."""

import re
from collections.abc import Mapping

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
