"""By which id trackers know a run: kept in the run directory, so that whatever is resumed goes on in the same place.

trackers.json   {"id"}, sealed with a digest
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from masp.errors import DataError, InputError
from masp.files.sealed import create_sealed, read_sealed
from masp.files.text import reason

FILE = "trackers.json"


@dataclass(frozen=True)
class RunId:
    """The content of `trackers.json`."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


def run_id(output_dir: Path) -> str:
    """The id of the run in a directory; a new one is made and kept if there is none.

    Raises:
        InputError: The file cannot be written or read. DataError: It is damaged.
    """
    path = output_dir / FILE
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            create_sealed(path, RunId(uuid.uuid4().hex))  # of several that try, one succeeds
    except OSError as error:
        raise InputError(f"output_dir: {path} cannot be written: {reason(error)}") from None
    try:
        found = read_sealed(RunId, path)
    except DataError as error:
        raise DataError(f"{error}; delete it, and the trackers begin a new run") from None
    if found is None:
        raise InputError(f"output_dir: {path} was removed while it was read; run the same command again")
    return found.id
