"""A small VLM, and a configuration that extracts with it."""

import pytest

from tests.images import make_config, make_dataset
from tests.tiny import make_vlm


@pytest.fixture(scope="session")
def vlm(tmp_path_factory):
    return make_vlm(tmp_path_factory.mktemp("plan") / "vlm")


@pytest.fixture
def config(vlm, tmp_path):
    root = make_dataset(tmp_path / "data")
    return make_config(root, vlm, tmp_path / "cache", f"output_dir={tmp_path / 'run'}")
