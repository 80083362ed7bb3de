"""The environment of all tests (quiet, offline, single-threaded), and fixtures for optional requirements.

A test whose requirement is missing is skipped with the reason. `.ci/run` sets `MASP_REQUIRE_…=1`, which turns these
skips into failures, so that a skipped check is never mistaken for a passed one.
"""

import os
import shutil
from pathlib import Path

import pytest

from tests.family_vlms import family_vlm

__all__ = ["family_vlm"]

# Set before any heavy import, and inherited by every process that a test starts.
os.environ.update(
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    DS_ACCELERATOR="cpu",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="agg",
)

REPOSITORY = Path(__file__).resolve().parents[1]
_SLURM_COMMANDS = ("slurmctld", "slurmd", "slurmdbd", "srun", "sbatch", "munged", "mariadbd")
_MARK_FIXTURES = {"slurm": "require_slurm", "hosts": "require_hosts", "shared": "shared_dir", "chromium": "chromium"}


def pytest_collection_modifyitems(items):
    """A marker adds the fixture of its requirement, so that a test does not have to name both."""
    for item in items:
        for mark, fixture in _MARK_FIXTURES.items():
            if item.get_closest_marker(mark) and fixture not in item.fixturenames:
                item.fixturenames.append(fixture)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Directory with tokenizers of real VLMs and the parity case, next to the repository."""
    directory = Path(os.environ.get("MASP_SHARED", REPOSITORY.parent / "shared"))
    if not directory.is_dir():
        _absent("SHARED", f"no directory {directory}; MASP_SHARED can name another one")
    return directory.resolve()


@pytest.fixture(scope="session")
def require_slurm() -> None:
    """Requires everything that starts a real Slurm on this machine."""
    missing = [command for command in _SLURM_COMMANDS if not _find_command(command)]
    if missing:
        _absent("SLURM", f"not installed: {', '.join(missing)}; Debian: slurm-wlm munge slurmdbd mariadb-server")
    if os.geteuid() != 0:
        _absent("SLURM", "a private Slurm needs root")


@pytest.fixture(scope="session")
def require_hosts() -> None:
    """Requires everything that creates separate hosts on this machine and connects to them."""
    missing = [command for command in ("ip", "nsenter", "ssh", "sshd", "pdsh") if not _find_command(command)]
    if missing:
        _absent("HOSTS", f"not installed: {', '.join(missing)}; Debian: iproute2 util-linux openssh-server pdsh")
    if os.geteuid() != 0:
        _absent("HOSTS", "network namespaces need root")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of Chromium."""
    command = _find_command("chromium") or _find_command("chromium-browser")
    if not command:
        _absent("CHROMIUM", "not installed: chromium")
    return command


def _find_command(name: str) -> str | None:
    # Daemons are in sbin, which is not on every user's path.
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def _absent(name: str, reason: str) -> None:
    if os.environ.get(f"MASP_REQUIRE_{name}") == "1":
        pytest.fail(f"MASP_REQUIRE_{name}=1, but {reason}", pytrace=False)
    pytest.skip(reason)
