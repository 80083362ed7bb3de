"""The errors a user can meet, each with the exit code of its process."""


class MaspError(Exception):
    """Base of every expected failure: shown as one line, without a traceback."""

    exit_code = 1


class InputError(MaspError):
    """What the user gave is wrong (a key, a path, a checkpoint that does not fit): exit code 2."""

    exit_code = 2


class DataError(MaspError):
    """Data that MASP or the dataset's author wrote is damaged: exit code 3."""

    exit_code = 3


class StoppedEarly(MaspError):
    """Stopped on request, with a checkpoint or ledger to resume from: exit code 75."""

    exit_code = 75


class FilesInUse(InputError):
    """Another live process is writing what this one would write; the same command works once that one has ended."""


def one_line(text: str) -> str:
    """A message on one line that a terminal takes as text: file names may hold line ends and control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class OtherRankFailed(MaspError):
    """Another rank met the cause and says so; this one ends with it."""
