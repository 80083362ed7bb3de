"""The versions that records name are those that are imported."""

import sys

import numpy
import PIL
import torch
import transformers

from masp import __version__
from masp.runtime import versions


def test_versions_are_those_of_the_libraries(monkeypatch):
    found = versions.software()
    assert found["masp"] == __version__ and found["python"] == ".".join(map(str, sys.version_info[:3]))
    libraries = {"torch": torch, "transformers": transformers, "numpy": numpy, "pillow": PIL}
    assert {name: found[name] for name in libraries} == {n: str(m.__version__) for n, m in libraries.items()}
    monkeypatch.setattr(versions, "LIBRARIES", ("torch", "no-such-library"))
    assert set(versions.software()) == {"masp", "python", "torch"}
