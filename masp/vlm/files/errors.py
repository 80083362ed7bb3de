"""Whatever a library raises over the files of a VLM, as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
        reason = f"no {error}" if isinstance(error, KeyError) else first_line(error)  # whose text is the key alone
        if reason.endswith(":"):
            reason = all_lines(error)
        raise InputError(f"vlm.path: {what}: {reason}") from None
