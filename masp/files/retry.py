"""Reading files on shared disks, which sometimes fail for a moment."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Errors that another try would meet again. Any other may be transient: a network disk that fails for a moment (EIO,
# ESTALE, ETIMEDOUT), a busy machine (EAGAIN, ENFILE).
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
    """Call `read`, and again after a while if it fails with an error that may be transient.

    Args:
        read: Function to call.
        waits_s: Seconds to wait before each further try.

    Returns:
        The value that `read` returns.

    Raises:
        OSError: A permanent error at once, a transient one after the last try. Errors without an errno, which image
            decoders raise, are about the content and are raised at once too.
    """
    for wait_s in waits_s:
        try:
            return read()
        except OSError as error:
            if error.errno is None or error.errno in PERMANENT_ERRORS:
                raise
            time.sleep(wait_s)
    return read()
