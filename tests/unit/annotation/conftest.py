"""A cache that is annotated once for the tests of this directory."""

import pytest

from masp.annotation.job import annotate
from tests.annotated import copy_cache, make_annotated


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """A configuration with a finished cache and all its answers."""
    config = make_annotated(tmp_path_factory.mktemp("annotated"))
    annotate(config)
    return config


@pytest.fixture
def fresh(config, tmp_path):
    """The same with a cache without answers."""
    return copy_cache(config, tmp_path)
