"""Fixtures of the tests in this directory."""

from tests.family_vlms import family_vlm
from tests.fixtures import commands, trained, world

__all__ = ["commands", "family_vlm", "trained", "world"]
