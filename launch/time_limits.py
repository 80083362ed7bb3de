"""Whether the time limits of parts are enough for the work that `masp plan` expects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launch.job.config import ClusterConfig
from launch.job.parts import Part, PartName
from masp.config import Config
from masp.errors import InputError
from masp.files.regular import is_file
from masp.plan.plan import Plan
from masp.plan.rates import rates_of_run, stated_rates


def check_time(parts: Sequence[Part], config: Config, cluster: ClusterConfig, plan: Plan) -> list[str]:
    """Compare expected time with time limits and requeues.

    The plan's rate is that of a large GPU, or of an earlier run of this configuration whose logs are there; for a CPU
    without such logs nothing is expected, so nothing is compared.

    Args:
        plan: what `masp.plan.plan.make_plan` returned.

    Returns:
        Notes for the user.

    Raises:
        InputError: a part could not finish even if it started again as often as it may.
    """
    notes = []
    for part in parts:
        hours = expected_hours(part, config, plan)
        if hours is None:
            continue
        limit = part.resources.timeout_min / 60
        runs = hours / limit
        section = part.name.section
        if runs > cluster.max_requeues + 1:
            raise InputError(
                f"cluster: {section}.timeout_min = {part.resources.timeout_min} with max_requeues ="
                f" {cluster.max_requeues}: {part.name} is expected to take {hours:.1f} h, which is more than"
                f" {cluster.max_requeues + 1} runs of {limit:.1f} h; raise one of them, or ask for more processes"
            )
        if runs > 1:
            notes.append(
                f"{part.name} is expected to take {hours:.1f} h and will start again about {int(runs)} times, since"
                f" cluster.{section}.timeout_min is {limit:.1f} h"
            )
    return notes


def expected_hours(part: Part, config: Config, plan: Plan) -> float | None:
    """How long a part takes with all its processes at once; None where no rate is known."""
    parallel = min(len(part.jobs), part.max_parallel)
    if part.name == PartName.EXTRACT:
        return plan.extract.hours / min(parallel, config.cache.num_shards) if part.resources.gpus_per_task else None
    if part.name == PartName.ANNOTATE:
        if plan.annotate is None or not part.resources.gpus_per_task:
            return None
        return plan.annotate.hours / min(parallel, config.cache.num_shards)
    if part.name == PartName.EVALUATE:
        return plan.evaluate.hours / parallel if part.resources.gpus_per_task else None
    if part.name not in plan.stages:  # of a sweep, whose plan says what it costs, or a study
        return None
    stage = plan.stages[part.name]
    if is_file(Path(config.output_dir) / part.name / "metrics.jsonl"):
        rate = getattr(rates_of_run(config.output_dir, stated_rates(1.0, 1.0)), part.name)
        if rate.unit == "tokens":  # of all its ranks
            return rate.hours(0.0, stage.tokens_per_image * stage.num_images * stage.num_epochs)
    return stage.hours / part.num_ranks if part.resources.gpus_per_task else None
