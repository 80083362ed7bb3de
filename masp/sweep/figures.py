"""Figures of a sweep: the accuracy over each axis."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from masp.errors import InputError
from masp.experiments.plots import MAX_LINES, Axis, Line, Scale, axis_figure
from masp.files.atomic import write_bytes
from masp.files.text import reason
from masp.report.export import file_name, visible
from masp.sweep.settings import SPLIT_NAMES, Setting, SettingScores, column_names, title

LOG = logging.getLogger(__name__)


def write_figures(directory: Path, scores: SettingScores, log_keys: Collection[str] = ()) -> list[Path]:
    """Write `accuracy-<axis>.png`, `.svg` and `.pdf` of every setting that has several values among those scored.

    Args:
        directory: Directory of the sweep.
        scores: Settings on one split.
        log_keys: Settings that were drawn from a logarithmic range.

    Raises:
        InputError: A file cannot be written.
    """
    scored = [setting for setting in scores.settings if setting.members]
    keys = list(dict.fromkeys(key for setting in scored for key in setting.values))
    written = []
    for key, name in zip(keys, column_names(keys), strict=True):
        values = _values(scored, key)
        if len(values) < 2:
            continue
        axis = Axis(name, values, _scale(key, values, log_keys))
        dots = [
            (setting.values[key], accuracy)
            for setting in scored
            if key in setting.values
            for accuracy in setting.members.values()
        ]
        best = None if scores.best is None else scores.settings[scores.best]
        lines = _lines(scored, key, axis, best)
        png, drawn = axis_figure(axis, f"accuracy, {SPLIT_NAMES[scores.split]} split", dots, lines)
        path = directory / f"accuracy-{file_name(name)}"
        try:
            for suffix, content in ((".png", png), (".svg", drawn.svg), (".pdf", drawn.pdf)):
                write_bytes(path.with_name(path.name + suffix), content)
                written.append(path.with_name(path.name + suffix))
        except OSError as error:
            raise InputError(f"output_dir: {directory} cannot be written: {reason(error)}") from None
        if drawn.missing:
            LOG.info("%s: the font has no %s, drawn as boxes", path, visible(drawn.missing))
    return written


def _values(settings: Sequence[Setting], key: str) -> list[Any]:
    """The different values of a setting: numbers by size, others in the order of the members."""
    found = {repr(each.values[key]): each.values[key] for each in settings if key in each.values}
    values = list(found.values())
    return sorted(values) if _are_numbers(values) else values


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _scale(key: str, values: Sequence[Any], log_keys: Collection[str]) -> Scale:
    """Logarithmic where it was drawn so, or spans more than a decade."""
    if not _are_numbers(values):
        return "categories"
    return "log" if values[0] > 0 and (key in log_keys or values[-1] > 10 * values[0]) else "linear"


def _lines(settings: Sequence[Setting], key: str, axis: Axis, best: Setting | None) -> list[Line]:
    """A line for each combination of the other settings; of very many, only the one of the best setting."""
    order = list(map(repr, axis.values))
    along: dict[str, list[Setting]] = {}
    for setting in sorted((s for s in settings if key in s.values), key=lambda s: order.index(repr(s.values[key]))):
        along.setdefault(repr(sorted(_others(setting, key).items())), []).append(setting)
    joined = [each for each in along.values() if len(each) > 1]
    if len(joined) > MAX_LINES:
        joined = [each for each in joined if best in each]
    if not joined:  # draws from several ranges have no other value in common
        return [Line("", [_point(setting, key) for each in along.values() for setting in each], is_joined=False)]
    return [
        Line(
            "" if len(along) == 1 else title(_others(each[0], key)),
            [_point(setting, key) for setting in each],
            is_joined=axis.scale != "categories",
        )
        for each in joined
    ]


def _others(setting: Setting, key: str) -> dict[str, Any]:
    return {name: value for name, value in setting.values.items() if name != key}


def _point(setting: Setting, key: str) -> tuple[Any, float, tuple[float, float] | None]:
    assert setting.accuracy is not None
    return setting.values[key], setting.accuracy, setting.interval
