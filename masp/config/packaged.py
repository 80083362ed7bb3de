"""MASP's own files, which commands name as in a clone: `configs/train.yaml` is found from any directory."""

import logging
import os
from pathlib import Path, PurePath

LOG = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parent.parent
# An installation keeps `configs/` inside the package; in a clone it stays beside it.
_PLACES = {"configs": (_PACKAGE / "configs", _PACKAGE.parent / "configs"), "masp": (_PACKAGE,)}
_said: set[str] = set()


def find_packaged(path: str, directory: str | Path = "") -> str:
    """Find a file that a directory lacks among those that came with MASP.

    Args:
        path: as the user or a file gave it.
        directory: what it is relative to; the working directory if empty.

    Returns:
        MASP's own file, which is said on stderr once, if `path` begins with `configs/` or `masp/`, does not exist and
        names such a file; else `path` in `directory`.
    """
    given = os.path.join(directory, path)
    first, *rest = PurePath(path).parts or ("",)
    if not rest or ".." in rest or os.path.exists(given):
        return given
    for place in _PLACES.get(first, ()):
        own = str(place.joinpath(*rest))
        if os.path.exists(own):
            if given not in _said:
                _said.add(given)
                LOG.info("%s does not exist; using MASP's own %s", given, own)
            return own
    return given
