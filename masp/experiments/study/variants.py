"""The ablations of the method: what each leaves out or changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    """The method and those of its ablations that the configuration makes possible, in the order of the table."""
    without_stage1 = config.checkpoint.aspect is not None or not config.aspects
    found = [variant for variant in _all_variants(config) if _why_impossible(config, variant) is None]
    if without_stage1:
        found = [replace(v, stages=tuple(stage for stage in v.stages if stage != "stage1")) for v in found]
    if not config.aspects:
        found[0] = replace(found[0], title="soft prompt alone")
    return found


def left_out_of(config: Config) -> dict[str, str]:
    """Name of an ablation that the configuration makes impossible -> why."""
    found = {variant.name: _why_impossible(config, variant) for variant in _all_variants(config)}
    return {name: why for name, why in found.items() if why}


def _why_impossible(config: Config, variant: Variant) -> str | None:
    if config.checkpoint.aspect is not None and variant.group == "queries":
        return "the aspect modules are given, with their queries"
    if config.aspects:
        return None
    if variant.group == "queries":
        return "there are no aspect modules"
    return {
        "without_soft_prompt": "without aspect modules it is the same as nothing trained",
        "without_aspects": "it is the method itself, which has no aspect modules",
        "without_vision_features": "without aspect modules nothing of the image would be left",
    }.get(variant.name)


def _all_variants(config: Config) -> list[Variant]:
    aspects, length = list(config.aspects), config.stage2.num_soft_prompt_tokens
    queries, layout = config.aspect_module.num_queries, config.stage2.layout
    found = [Variant(FULL, "MASP", "method", {}, ("stage1", "stage2"))]

    def part(name: str, title: str, stages: tuple[StageName, ...], seeded: bool = True, **changes: Any) -> None:
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        found.append(Variant(name, title, "part", changes, stages, seeded))

    nothing = {"checkpoint__aspect": NONE, "checkpoint__soft_prompt": NONE}
    part("zero_shot", "nothing trained (zero-shot)", (), seeded=False, **nothing)
    part("without_soft_prompt", "without soft prompt", (), checkpoint__soft_prompt=NONE)
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
    for other in sorted({1, 2 * queries} - {queries}):
        change = {"aspect_module.num_queries": other}
        title = f"{other} {'query' if other == 1 else 'queries'} per aspect"
        found.append(Variant(f"queries_{other}", title, "queries", change, ("stage1", "stage2")))
    swapped = "released" if layout == "after_image" else "after_image"
    found.append(Variant(f"layout_{swapped}", f"layout {swapped}", "layout", {"stage2.layout": swapped}, ("stage2",)))
    return found
