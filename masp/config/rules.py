"""What each setting may be: read from the dataclasses of `schema.py`, used by the checks and by the documentation."""

import dataclasses
import functools
import math
import os
import types
import typing
from typing import Any

from masp.config.schema import Config


@dataclasses.dataclass(frozen=True)
class Rule:
    """The rule of one setting."""

    name: str
    """Its dotted name."""

    kind: type
    """`int`, `float`, `bool`, `str`, or `list` for a list of texts."""

    optional: bool
    """Whether null is valid."""

    default: Any
    """Its default, or `masp.config.schema.REQUIRED`."""

    limits: dict[str, Any]
    """The arguments of `masp.config.schema.rule`."""

    def valid(self) -> str:
        """What would be valid, in words that follow "must be"."""
        if self.kind is list:
            choices = self.limits.get("choices")
            words = f"a list of any of {', '.join(choices)}" if choices else "a list of texts"
            if example := self.limits.get("example"):
                words = f"a list such as {example}"
            if self.limits.get("unique"):
                words += ", none of them twice"
        elif self.kind is str:
            choices = self.limits.get("choices")
            words = f"one of {', '.join(choices)}" if choices else "text"
        elif self.kind is bool:
            words = "true or false"
        else:
            words = " ".join(filter(None, ("a whole number" if self.kind is int else "a number", self._bounds())))
        return words + (", or null" if self.optional else "")

    def check(self, value: Any) -> Any:
        """Check one value.

        Args:
            value: as YAML gave it.

        Returns:
            The value in the setting's type, with `~` at the start of a path replaced.

        Raises:
            ValueError: it breaks the rule. The message is what would be valid.
        """
        if value is None and self.optional:
            return None
        converted = self._convert(value)
        if converted is None:
            raise ValueError(f"must be {self.valid()}")
        for text in converted if self.kind is list else [converted] if self.kind is str else []:
            if "${" in text:
                raise ValueError("must be written out: references such as ${…} are not replaced")
            if "\0" in text:
                raise ValueError("must not hold a zero byte")
        if self.limits.get("is_path"):
            return os.path.expanduser(converted)
        return converted

    def _convert(self, value: Any) -> Any:
        """The value in the setting's type, or None if it breaks the rule."""
        if self.kind is bool:
            return value if isinstance(value, bool) else None
        if self.kind is str:
            return value if isinstance(value, str) and value.strip() and self._is_choice(value) else None
        if self.kind is list:
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                return None
            if self.limits.get("unique") and len(set(value)) < len(value):
                return None
            return value if all(map(self._is_choice, value)) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        # A whole number of more digits than a float can hold would fail in the comparisons below.
        if (isinstance(value, int) and value.bit_length() > 64) or not math.isfinite(value):
            return None
        # `1e5` is a float in YAML, and a perfectly good count.
        if self.kind is int and value != int(value):
            return None
        number = self.kind(value)
        return number if self._is_inside(number) else None

    def _is_choice(self, text: str) -> bool:
        choices = self.limits.get("choices")
        return choices is None or text in choices

    def _is_inside(self, number: float) -> bool:
        limits = self.limits
        return (
            (limits.get("at_least") is None or number >= limits["at_least"])
            and (limits.get("above") is None or number > limits["above"])
            and (limits.get("at_most") is None or number <= limits["at_most"])
        )

    def _bounds(self) -> str:
        low, above, high = (self.limits.get(name) for name in ("at_least", "above", "at_most"))
        if low is not None and high is not None:
            return f"from {low:g} to {high:g}" if self.kind is float else f"from {low} to {high}"
        parts = []
        if low is not None:
            parts.append(f"of at least {low:g}")
        if above is not None:
            parts.append(f"above {above:g}")
        if high is not None:
            parts.append(f"of at most {high:g}")
        return " and ".join(parts)


@functools.cache
def config_rules(root: type = Config) -> dict[str, Rule]:
    """The rule of every setting of a configuration, by its dotted name, in the order of the dataclasses."""
    return dict(_rules_of(root, ""))


@functools.cache
def config_sections(root: type = Config) -> dict[str, type]:
    """The dataclass of every section of a configuration, by its name, in order; `root` itself under the empty name."""
    hints = typing.get_type_hints(root)
    return {"": root} | {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}


def _rules_of(kind: type, prefix: str) -> typing.Iterator[tuple[str, Rule]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name}"
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _rules_of(hint, f"{name}.")
            continue
        arguments = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        inner = next(argument for argument in arguments if argument is not types.NoneType)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        yield (
            name,
            Rule(
                name=name,
                kind=typing.get_origin(inner) or inner,
                optional=types.NoneType in arguments,
                default=default,
                limits=dict(field.metadata),
            ),
        )
