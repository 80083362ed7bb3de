"""Whatever a library raises over the files of a VLM, as one line."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils.import_utils import BACKENDS_MAPPING, requires_backends

from masp.errors import InputError, MaspError
from masp.files.text import all_lines, first_line


@contextmanager
def plain_vlm_errors(what: str) -> Iterator[None]:
    """Turn whatever a library raises over the files of a VLM into one line for the user.

    A directory that somebody downloaded may hold anything, and nothing lists what transformers, tokenizers,
    safetensors and a chat template raise then.

    Args:
        what: What cannot be done, naming the directory; the first line of the cause follows it.

    Raises:
        InputError: Instead of what was raised.
    """
    try:
        yield
    except MaspError:
        raise
    except Exception as error:
        if (package := _asked_package(error)) is not None:
            raise InputError(f"vlm.path: {what}: {needs(package)}") from None
        reason = f"missing {error}" if isinstance(error, KeyError) else first_line(error)  # whose text is the key alone
        if reason.endswith(":"):
            reason = all_lines(error)
        raise InputError(f"vlm.path: {what}: {reason}") from None


def needs(package: str) -> str:
    """What a message says of a package that a VLM needs and that is not installed."""
    return f"it needs the package {package}, which is not installed; `pip install {package}`"


def missing_package(candidates: Iterable[Any]) -> str | None:
    """The package without which transformers has only stand-ins for all of these classes; None if one can be used."""
    missing = None
    for candidate in candidates:
        if not getattr(candidate, "is_dummy", False):
            return None
        missing = missing or _first_missing(candidate._backends)
    return missing


def _asked_package(error: BaseException) -> str | None:
    """The package that transformers' own check of packages did not find when it raised this error."""
    if isinstance(error, ImportError):
        # the error itself holds a text alone
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code is requires_backends.__code__:
                asked = frame.f_locals["backends"]
                return _first_missing([asked] if isinstance(asked, str) else asked)
    return None


def _first_missing(backends: Iterable[Any]) -> str | None:
    return next((name for name in backends if name in BACKENDS_MAPPING and not BACKENDS_MAPPING[name][0]()), None)
