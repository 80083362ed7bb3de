"""A small cache, extracted once; tests that damage it use a copy."""

import shutil

import pytest

from masp.cache.reader import open_cache
from masp.extraction.job import extract
from tests.images import make_config, make_dataset
from tests.tiny import make_vlm


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A dataset with broken images, a VLM, and the cache made from them: `(root, vlm, directory)`. Read-only."""
    base = tmp_path_factory.mktemp("cache")
    root, vlm = make_dataset(base / "data", broken=True), make_vlm(base / "vlm")
    return root, vlm, extract(make_config(root, vlm, base / "cache"))


@pytest.fixture(scope="session")
def cache(made):
    """The cache, opened."""
    return open_cache(made[2])


@pytest.fixture
def copied(made, tmp_path):
    """A copy of the cache to damage, and the configuration that made it: `(directory, config)`."""
    root, vlm, directory = made
    shutil.copytree(directory, tmp_path / "copy")
    return tmp_path / "copy", make_config(root, vlm, tmp_path / "copy")
