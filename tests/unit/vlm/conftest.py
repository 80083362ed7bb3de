"""What the tests of this directory share."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import make_vlm


@pytest.fixture(scope="session")
def whole_vlm(tmp_path_factory) -> Path:
    return make_vlm(tmp_path_factory.mktemp("whole") / "vlm")


@pytest.fixture
def vlm(whole_vlm, tmp_path) -> Path:
    """The directory of a VLM that a test may change."""
    return Path(shutil.copytree(whole_vlm, tmp_path / "vlm"))


@pytest.fixture
def change(vlm) -> Callable[..., None]:
    """Change a JSON file of the VLM: new values of keys, None to remove one; `section__key` for a nested one."""

    def apply(name: str, **values: object) -> None:
        content = json.loads((vlm / name).read_text())
        for key, value in values.items():
            section, _, inner = key.rpartition("__")
            target = content[section] if section else content
            target.pop(inner, None)
            if value is not None:
                target[inner] = value
        (vlm / name).write_text(json.dumps(content))

    return apply
