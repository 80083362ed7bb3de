"""What the tests of this folder share."""

from tests.fixtures import commands, trained, world

__all__ = ["commands", "trained", "world"]
