"""Reading files on shared disks, which now and then fail for a moment."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# What says something about this file for good. Any other error may pass: a network disk that hiccups (EIO, ESTALE,
# ETIMEDOUT), a busy machine (EAGAIN, ENFILE).
PERMANENT_ERRORS = frozenset(
    {
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.ENXIO,
    }
)

_WAITS_S = (0.1, 0.5, 2.0, 5.0)


def retry_io(read: Callable[[], T], waits_s: tuple[float, ...] = _WAITS_S) -> T:
    """Call `read` again after a while when it fails in a way that may pass.

    Args:
        read: what to call.
        waits_s: how long to wait before each further try.

    Returns:
        What `read` returned.

    Raises:
        OSError: a permanent one at once, a transient one after the last try. Errors without a number, as image decoders
            raise them, concern the content and are raised at once too.
    """
    for wait_s in waits_s:
        try:
            return read()
        except OSError as error:
            if error.errno is None or error.errno in PERMANENT_ERRORS:
                raise
            time.sleep(wait_s)
    return read()
