"""Fixtures of the tests in this directory."""

from tests.fixtures import commands, trained, world

__all__ = ["commands", "trained", "world"]
