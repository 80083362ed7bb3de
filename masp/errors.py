"""The errors that a user can meet, each with its exit code."""


class MaspError(Exception):
    """Base of every expected failure: shown as one line, without a traceback."""

    exit_code = 1


class InputError(MaspError):
    """The user's input is wrong (a key, a path, a checkpoint that does not fit): exit code 2."""

    exit_code = 2


class DataError(MaspError):
    """Data written by MASP or by the dataset's author is damaged: exit code 3."""

    exit_code = 3


class StoppedEarly(MaspError):
    """Stopped on request, with a checkpoint or ledger to resume from: exit code 75."""

    exit_code = 75


class FilesInUse(InputError):
    """Another live process is writing the same files; the same command works once that one has ended."""


class TrainingFailed(InputError):
    """What a training computed ended it: its loss is not finite, or a part of it learned nothing."""


class OtherRankFailed(MaspError):
    """Another rank failed and reports the cause; this one ends because of it. Exit code 1."""


class OtherTrainingFailed(OtherRankFailed):
    """On another rank, that is a `TrainingFailed`."""


def one_line(text: str) -> str:
    """Escape line ends and control characters, which file names may contain, so that a message stays on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
