"""Whether the paths of a run can be used by its jobs: what Slurm makes of their names, and where jobs start."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from launch.job.config import ClusterConfig
from launch.job.parts import Part
from launch.submission.record import submissions_of
from masp.config import Config
from masp.errors import InputError
from masp.files.regular import exists
from masp.files.text import shown

_TAGS = ("%j", "%t", "%A", "%a")
"""What submitit replaces in the paths of logs. Slurm replaces more after `%`; a backslash turns that off."""


def check_submission_path(config: Config, cluster: ClusterConfig) -> None:
    """Check that the directory of a submission has a name that reaches sbatch as it is.

    Scripts name it in a line `#SBATCH --output=…`, where these characters mean something else. All others, such as
    spaces and quotes, are quoted.

    Raises:
        InputError: it has not.
    """
    path = str(submissions_of(config))
    if cluster.executor == "local":
        bad = next((tag for tag in _TAGS if tag in path), None)
        what = f"{bad!r}, which stands for a number in the names of logs"
    else:
        bad = next((c for c in path if c in "%\\" or unicodedata.category(c) in ("Cc", "Cs")), None)
        what = _described(bad or "")
    if bad is not None:
        raise InputError(
            f"output_dir = {shown(config.output_dir)}: {shown(path)} contains {what}; give a path without it"
        )


def _described(character: str) -> str:
    if character in "%\\":
        return f"{character!r}, which Slurm replaces in the names of logs"
    if unicodedata.category(character or "x") == "Cs":
        return "bytes that are not UTF-8, in which sbatch scripts are written"
    return f"the control character {character!r}, which would end a line of the sbatch script or garble it"


def check_start_directory(parts: Sequence[Part], config: Config, cluster: ClusterConfig) -> None:
    """Where jobs start in another directory (`chdir`), check that they find there what they need.

    Raises:
        InputError: a path of the configuration is relative, or the code cannot be imported there.
    """
    for part in parts:
        options = dict(option.split("=", 1) for option in (*cluster.sbatch, *part.resources.sbatch))
        if (directory := options.get("chdir")) is None:
            continue
        where = f"cluster: {part.name.section}: chdir={directory}"
        for name, path in _paths(config).items():
            if not Path(path).is_absolute():
                raise InputError(f"{where}: jobs would look for {name} = {path} in there; give absolute paths")
        if part.resources.python is not None:
            continue  # it may exist on the nodes alone
        with tempfile.TemporaryDirectory() as elsewhere:
            command = [sys.executable, "-c", "import launch.job.task"]
            done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise InputError(f"{where}: Python does not find the package launch there; install it: pip install -e .")


def _paths(config: Config) -> dict[str, str]:
    """The paths of a configuration: those that are written, and those that are read and exist."""
    written = {"output_dir": config.output_dir}
    if config.cache.dir is not None:
        written["cache.dir"] = config.cache.dir
    if config.evaluate.output_dir is not None:
        written["evaluate.output_dir"] = config.evaluate.output_dir
    read = {
        "dataset.root": config.dataset.root,
        "questions": config.questions,
        "vlm.path": config.vlm.path,
        "checkpoint.aspect": config.checkpoint.aspect,
        "checkpoint.soft_prompt": config.checkpoint.soft_prompt,
    }
    return written | {name: path for name, path in read.items() if path and exists(Path(path), key=name)}
