"""What the tests of this directory share."""

import pytest

from masp.config import load_config
from masp.extraction.job import extract
from tests.runs import make_run


@pytest.fixture(scope="package")
def config(tmp_path_factory):
    """Configuration of a run whose cache is extracted; tests change a copy."""
    path = make_run(tmp_path_factory.mktemp("run"), 13, 3)
    config = load_config(path, ["stage1.global_batch_size=5", "stage2.global_batch_size=5"])
    extract(config)
    return config
