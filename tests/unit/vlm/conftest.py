"""What the tests of this directory share."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from masp.errors import InputError
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


@pytest.fixture
def refused(vlm) -> Callable[[Callable[[str], object]], str]:
    """Load something of the VLM and give the one line that refuses it."""

    def apply(load: Callable[[str], object]) -> str:
        with pytest.raises(InputError) as error:
            load(str(vlm))
        assert str(vlm) in str(error.value) and "\n" not in str(error.value) and error.value.exit_code == 2
        return str(error.value)

    return apply
