"""The ablations of the method: what each leaves out or changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from masp.artifacts.trained import NONE
from masp.config import Config
from masp.config.schema import StageName

FULL = "masp"
"""The method as configured; every other variant is compared with it."""


@dataclass(frozen=True)
class Variant:
    """One way to run the method."""

    name: str
    """For directories and tables."""
    title: str
    group: str
    """What kind of change it is: `method`, `part` (something is left out), `aspect`, `length`, `queries`, `layout`."""
    changes: dict[str, Any]
    """Dotted settings that differ from the configuration."""
    stages: tuple[StageName, ...]
    """What must be trained anew for each seed; without stage 1 the method's own aspect modules are used."""
    seeded: bool = True
    """Whether its result depends on the seed."""

    @property
    def removes(self) -> bool:
        """Whether it leaves out a part of the method."""
        return self.group in ("part", "aspect")


def variants_of(config: Config) -> list[Variant]:
    """The method and its ablations, in the order of the table.

    Without aspects there are none that leave aspect modules out or train others.
    """
    aspects, length = list(config.aspects), config.stage2.num_soft_prompt_tokens
    queries, layout = config.aspect_module.num_queries, config.stage2.layout
    both: tuple[StageName, ...] = ("stage1", "stage2") if aspects else ("stage2",)
    found = [Variant(FULL, "MASP", "method", {}, both)]

    def part(name: str, title: str, stages: tuple[StageName, ...], seeded: bool = True, **changes: Any) -> None:
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        found.append(Variant(name, title, "part", changes, stages, seeded))

    nothing = {"checkpoint__aspect": NONE, "checkpoint__soft_prompt": NONE}
    part("zero_shot", "nothing trained (zero-shot)", (), seeded=False, **nothing)
    part("without_soft_prompt", "without soft prompt", (), checkpoint__soft_prompt=NONE)
    if aspects:
        part("without_aspects", "without aspect tokens", ("stage2",), aspects=[])
        part("without_vision_features", "without vision features", ("stage2",), stage2__vision_features=False)
    if len(aspects) > 1:
        for aspect in aspects:
            rest = {"aspects": [other for other in aspects if other != aspect]}
            title = f"without {aspect.replace('_', ' ')}"
            found.append(Variant(f"without_{aspect}", title, "aspect", rest, ("stage2",)))
    for other in sorted({max(1, length // 8), max(1, length // 2), 2 * length} - {length}):
        change = {"stage2.num_soft_prompt_tokens": other}
        found.append(Variant(f"soft_prompt_{other}", f"soft prompt of {other}", "length", change, ("stage2",)))
    for other in sorted({1, 2 * queries} - {queries}) if aspects else ():
        change = {"aspect_module.num_queries": other}
        title = f"{other} {'query' if other == 1 else 'queries'} per aspect"
        found.append(Variant(f"queries_{other}", title, "queries", change, ("stage1", "stage2")))
    swapped = "released" if layout == "after_image" else "after_image"
    found.append(Variant(f"layout_{swapped}", f"layout {swapped}", "layout", {"stage2.layout": swapped}, ("stage2",)))
    return found
