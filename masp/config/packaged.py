"""MASP's own files: commands name them as in a clone, so `configs/train.yaml` is found from any directory."""

import logging
import os
from pathlib import Path, PurePath

from masp.files.regular import exists

LOG = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parent.parent
# An installation keeps `configs/` inside the package; in a clone it stays beside it.
_PLACES = {"configs": (_PACKAGE / "configs", _PACKAGE.parent / "configs"), "masp": (_PACKAGE,)}
# Configurations of the previous release name the demo's VLM by its old place; goes with the next release.
_MOVED: dict[tuple[str, ...], tuple[str, ...]] = {("data", "demo", "vlm"): ("demo", "tiny_vlm", "weights")}
_noted: set[str] = set()


def find_packaged(path: str, directory: str | Path = "", *, is_noted: bool = True) -> str:
    """Find a file that a directory lacks among those that came with MASP.

    Args:
        path: Path as the user or a file gave it.
        directory: Directory that a relative path starts from; empty for the working directory.
        is_noted: Whether to say so where MASP's own file is used.

    Returns:
        MASP's own file, noted once on stderr, if `path` begins with `configs/` or `masp/`, does not exist and MASP has
        such a file; otherwise `path` in `directory`.

    Raises:
        InputError: The file system does not say whether `path` exists.
    """
    given = os.path.join(directory, path)
    first, *rest = PurePath(path).parts or ("",)
    places = _PLACES.get(first, ())
    if not places or not rest or ".." in rest or exists(Path(given)):
        return given
    for place in places:
        own = place.joinpath(*_MOVED.get(tuple(rest), rest))
        if exists(own):
            if is_noted and given not in _noted:
                _noted.add(given)
                LOG.info("%s does not exist; using MASP's own %s", given, own)
            return str(own)
    return given
