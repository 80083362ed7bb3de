"""Slurm clusters on this machine, for the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.slurm.site import Site
from tools.dev_cluster import DevCluster, running


@pytest.fixture(scope="session")
def cluster(require_slurm) -> Iterator[DevCluster]:
    """Two nodes, up; torn down afterwards, with all jobs on it, even if this process is killed."""
    with running() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def hosts(require_slurm) -> Iterator[DevCluster]:
    """Three nodes that are hosts of their own and can be cut off."""
    with running(num_nodes=3, separate_hosts=True) as cluster:
        yield cluster


@pytest.fixture
def site(cluster, tmp_path) -> Site:
    """The cluster of two nodes, as its user has it."""
    return Site(cluster, tmp_path)
