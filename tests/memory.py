"""The peak memory of a process, for tests that run one to measure it."""

from pathlib import Path


def peak_memory_bytes() -> int:
    """Peak of this process's resident set since it was started.

    Not `ru_maxrss`, which begins at the peak of the process that started it, and so at that of the test itself.
    """
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
