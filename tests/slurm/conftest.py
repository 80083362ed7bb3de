"""Slurm clusters on this machine, for the tests in this directory."""

from collections.abc import Iterator

import pytest

from tests.slurm.site import Site
from tools.dev_cluster import DevCluster, running


@pytest.fixture(scope="session")
def cluster(require_slurm) -> Iterator[DevCluster]:
    """A running cluster of two nodes; removed afterwards with all its jobs, even if this process is killed."""
    with running() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def hosts(require_slurm) -> Iterator[DevCluster]:
    """A cluster of three nodes that are separate hosts and can be cut off."""
    with running(num_nodes=3, separate_hosts=True) as cluster:
        yield cluster


@pytest.fixture
def site(cluster, tmp_path) -> Site:
    """The cluster of two nodes, from a user's point of view."""
    return Site(cluster, tmp_path)
