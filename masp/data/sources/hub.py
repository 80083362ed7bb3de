"""Datasets of the Hugging Face Hub: downloaded once by huggingface_hub, then read like any others."""

from __future__ import annotations

import re
from pathlib import Path

from masp.data.sources.folders import IMAGE_EXTENSIONS
from masp.errors import InputError, one_line
from masp.files.text import first_line, shown

SCHEME = "hf://"


def _spellings(suffix: str) -> tuple[str, ...]:
    """An extension as people write it: the Hub's patterns know no other case."""
    return suffix, suffix.upper(), f".{suffix[1:].title()}"


_NAME = re.compile(r"(?:datasets/)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_PATTERNS = [f"*{suffix}" for suffix in (".parquet", ".arrow", ".tar", ".json", ".jsonl", ".csv", ".tsv", ".txt")]
_IMAGES = [f"*{spelled}" for suffix in sorted(IMAGE_EXTENSIONS) for spelled in _spellings(suffix)]


def is_metadata(file: Path) -> bool:
    """Whether a file is called as the Hub's tables beside images are: `metadata.csv`, `.jsonl` or `.parquet`."""
    return file.stem.lower() == "metadata"


def download(name: str) -> Path:
    """The local directory of a dataset of the hub. Data and images are downloaded, never code.

    Args:
        name: `hf://owner/name`, or with a revision `hf://owner/name@revision`.

    Raises:
        InputError: Not such a name, or it cannot be downloaded and is not in huggingface_hub's cache either.
    """
    found = _NAME.fullmatch(name.removeprefix(SCHEME).rstrip("/"))
    if found is None:
        raise InputError(f"dataset.root = {shown(name)}: must be hf://owner/name, or hf://owner/name@revision")
    # huggingface_hub takes a tenth of a second to import, and only names of the hub need it
    from huggingface_hub import snapshot_download

    try:
        directory = snapshot_download(
            found["repo"], repo_type="dataset", revision=found["revision"], allow_patterns=[*_PATTERNS, *_IMAGES]
        )
    except Exception as error:
        # huggingface_hub raises errors of requests, httpx and its own, of which few have a common base
        raise InputError(
            f"dataset.root = {shown(name)}: cannot be downloaded from the hub, and was not before: "
            f"{one_line(first_line(error))}"
        ) from None
    return Path(directory)
