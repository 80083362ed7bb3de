"""Slurm's commands, replaced by scripts that print what the real ones printed; tests/slurm asks the real ones."""

from __future__ import annotations

from pathlib import Path

from launch.job.parts import PartName
from tests.runs import REPOSITORY

SLURM = REPOSITORY / "configs" / "cluster" / "slurm.yaml"
LOCAL = REPOSITORY / "configs" / "cluster" / "local.yaml"
CONFIG = REPOSITORY / "configs" / "demo.yaml"
PIPELINE = [PartName.EXTRACT, PartName.STAGE1, PartName.STAGE2, PartName.EVALUATE]
"""The parts of a pipeline over annotated images."""

FAKE_SBATCH = """#!/bin/sh
# Accepts every job before it is submitted; then the first, and refuses the second.
if [ "$1" = --test-only ]; then exit 0; fi
if [ -e "$0.once" ]; then echo "sbatch: error: Batch job submission failed: Invalid qos" >&2; exit 1; fi
touch "$0.once"; echo "Submitted batch job 41"
"""
COMMANDS = {
    "sbatch": FAKE_SBATCH,
    "srun": "#!/bin/sh\n",
    "squeue": "#!/bin/sh\n",
    "sacct": "#!/bin/sh\n",
    "sinfo": "#!/bin/sh\necho 'small|30:00'; echo 'main*|1-00:00:00'\n",
    "scontrol": "#!/bin/sh\necho 'Slurmctld(primary) at here is UP'\n",
    "scancel": '#!/bin/sh\necho "$@" >> $(dirname $0)/cancelled\n',
}


def install(directory: Path) -> None:
    """Write the commands into a directory."""
    directory.mkdir()
    for name, text in COMMANDS.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
