"""What a sweep costs, said before anything is computed: its groups, their FLOP, and those of the same single runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from masp.config import Config
from masp.data.splits.subset import subset_settings
from masp.errors import InputError
from masp.plan.plan import Survey, survey
from masp.plan.rates import DEFAULT_UTILIZATION, Rate, rates_of_run, stated_rates
from masp.plan.render import duration, flop
from masp.plan.tokens import PlannedImages, Words, count_words
from masp.plan.work import StageWork, stage1_work, stage2_prefix_flops, stage2_work
from masp.sweep.halving import kept_of, num_rungs
from masp.sweep.members import Member, Sweep
from masp.training.group.members import OWN, OWN_OF_STAGE, why_alone
from masp.training.logs import device_peak

_OWN = (*OWN, *(f"stage2.{name}" for name in OWN_OF_STAGE), "target.questions")
_NUM_NAMED = 4
"""How many members of a group a line names."""


@dataclass(frozen=True)
class MemberCost:
    """What a member takes."""

    work: StageWork
    """Alone."""
    prefix_flops_per_epoch: float
    """The part of it that a group shares, per epoch."""

    @property
    def own_flops_per_epoch(self) -> float:
        """The part that it does not share."""
        return self.work.flops_per_epoch - self.prefix_flops_per_epoch


@dataclass(frozen=True)
class SweepCost:
    """What a sweep takes."""

    groups: tuple[tuple[MemberCost, ...], ...]
    stage1: tuple[StageWork, ...]
    """Each training of stage 1."""
    is_estimate: bool
    """Whether the VLM's operations could not be counted, so that its number of weights stands for them."""
    rate: Rate | None
    """How fast stage 2 is trained; None where that is not known."""

    @property
    def flops(self) -> float:
        """FLOP of stage 2 of all members, in their groups."""
        return sum(map(group_flops, self.groups))

    @property
    def single_flops(self) -> float:
        """FLOP of the same members as single runs."""
        return sum(cost.work.flops for group in self.groups for cost in group)

    def hours(self, flops: float) -> float | None:
        """How long an amount of work takes; None where no rate is known."""
        if self.rate is None:
            return None
        tokens = sum(cost.work.tokens for group in self.groups for cost in group)
        return self.rate.hours(flops, flops / self.single_flops * tokens)

    def halved_flops(self, eta: int) -> float:
        """FLOP of stage 2 at most with successive halving: which members and groups are left is not known before.

        Args:
            eta: One of `eta` members is kept at each rung.
        """
        every = [cost for group in self.groups for cost in group]
        longest = max(cost.work.num_epochs for cost in every)
        count, left, begin, total = num_rungs(len(every), eta), len(every), 0.0, 0.0
        for rung in range(count + 1):
            end = longest / eta ** (count - rung)
            total += self._between(begin, end, left)
            begin, left = end, kept_of(left, eta)
        return total

    def _between(self, begin: float, end: float, left: int) -> float:
        """FLOP at most between two epochs of the `left` members that cost most."""

        def epochs(cost: MemberCost) -> float:
            return max(0.0, min(end, cost.work.num_epochs) - begin)

        own = sorted((epochs(c) * c.own_flops_per_epoch for group in self.groups for c in group), reverse=True)
        shared = sorted(
            (max(epochs(c) * c.prefix_flops_per_epoch for c in group) for group in self.groups), reverse=True
        )
        return sum(own[:left]) + sum(shared[:left])


def group_flops(group: Sequence[MemberCost]) -> float:
    """FLOP of the members of a group: the prefix once for as many epochs as any of them has, the rest of each."""
    shared = max(cost.prefix_flops_per_epoch * cost.work.num_epochs for cost in group)
    return shared + sum(cost.own_flops_per_epoch * cost.work.num_epochs for cost in group)


def sweep_cost(
    sweep: Sweep, tflops: float | None = None, utilization: float | None = None, rate_from: str | None = None
) -> SweepCost:
    """Count what a sweep takes, from image headers and settings alone.

    Args:
        sweep: The sweep.
        tflops: Peak of one GPU in TFLOP/s; None takes that of the GPU here, if it is known.
        utilization: Share of the peak that is reached; None for that of `masp plan`.
        rate_from: `output_dir` of an earlier run whose rate to take.

    Raises:
        InputError: Dataset, VLM or rates are unusable. DataError: The dataset is damaged.
    """
    rate = _rate(sweep, tflops, utilization, rate_from)
    surveys: dict[str, Survey] = {}
    words: dict[str, Words] = {}

    def look(config: Config) -> tuple[Survey, PlannedImages, Words]:
        key = repr((config.target.name, config.target.labels, config.vlm, config.aspect_definitions))
        if key not in surveys:
            surveys[key] = survey(config)
        found = surveys[key]
        train = found.images.for_training(config.dataset)
        parts = (config.questions, config.target, config.aspects, config.stage2.supervision, subset_settings(config))
        key = repr((key, parts, config.stage2.distribution_loss))
        if key not in words:
            at = replace(config, vlm=found.config.vlm)
            words[key] = count_words(at, train.samples, found.seen.categories)
        return found, train, words[key]

    def cost(member: Member) -> MemberCost:
        found, train, text = look(member.config)
        config, used = replace(member.config, vlm=found.config.vlm), train.labeled()
        stage2 = config.stage2
        if stage2.validate_every is not None and not len(found.images.in_split("val")):
            used = used[: max(0, len(used) - stage2.validation_size)]  # which ones are held out is not asked here
        work = stage2_work(config, found.language, text, used)
        can_share = why_alone(config) is None
        return MemberCost(work, stage2_prefix_flops(config, found.language, text, used) if can_share else 0.0)

    groups = tuple(tuple(map(cost, group)) for group in sweep.groups)
    stage1 = []
    for training in sweep.aspects:
        found, train, text = look(training.config)
        stage1.append(stage1_work(replace(training.config, vlm=found.config.vlm), found.language, text, train))
    is_estimate = any(getattr(found.language, "is_estimate", False) for found in surveys.values())
    return SweepCost(groups, tuple(stage1), is_estimate, rate)


def _rate(sweep: Sweep, tflops: float | None, utilization: float | None, rate_from: str | None) -> Rate | None:
    if tflops is None and utilization is not None:
        raise InputError(f"--utilization {utilization:g}: of which peak? give --tflops too")
    share = DEFAULT_UTILIZATION if utilization is None else utilization
    if rate_from is not None:
        found = rates_of_run(rate_from, stated_rates(1.0, 1.0)).stage2
        if found.unit != "tokens":
            raise InputError(f"--rate-from {rate_from}: holds no stage2/metrics.jsonl with lines")
        return found
    if tflops is None:
        engine = sweep.base.engine
        is_gpu = engine.device != "cpu" and torch.cuda.is_available()
        tflops = device_peak("cuda" if is_gpu else "cpu", engine.precision) / 1e12
    return stated_rates(tflops, share).stage2 if tflops else None


def describe_groups(sweep: Sweep) -> list[str]:
    """Which members are trained together, and why others are not: a line each."""
    count = len(sweep.members)
    lines = [f"sweep: {count} member{'s' * (count != 1)} in groups of {' + '.join(str(len(g)) for g in sweep.groups)}"]
    for number, group in enumerate(sweep.groups, start=1):
        own = {member.name for member in group}
        names = ", ".join(member.name for member in group[:_NUM_NAMED])
        more = f", and {len(group) - _NUM_NAMED} more" if len(group) > _NUM_NAMED else ""
        why = why_alone(group[0].config)
        if why is not None:
            lines.append(f"  group {number}: {names}: alone, since {why}")
            continue
        others = [member for member in sweep.members if member.name not in own]
        differing = [key for key in group[0].settings.values if not key.startswith(_OWN) and _tells(key, group, others)]
        apart = f"; no other has its {' and '.join(differing)}" if differing and len(sweep.groups) > 1 else ""
        behind = "behind one pass of the prefix" if len(group) > 1 else "alone"
        lines.append(f"  group {number}: {names}{more}: {behind}{apart}")
    return lines


def _tells(key: str, group: Sequence[Member], others: Sequence[Member]) -> bool:
    """Whether a setting is the same for all of a group, and another one for some of the others."""
    values = [member.settings.values.get(key) for member in group]
    return all(value == values[0] for value in values) and any(
        member.settings.values.get(key) != values[0] for member in others
    )


def describe_cost(cost: SweepCost, halving: int | None) -> list[str]:
    """What the sweep costs, as lines of text.

    Args:
        cost: The cost.
        halving: As of `masp.sweep.run.run_sweep`.
    """

    def amount(flops: float) -> str:
        hours = cost.hours(flops)
        return flop(flops) + ("" if hours is None else f", {duration(hours)}")

    lines = []
    if cost.stage1:
        total = sum(work.flops for work in cost.stage1)
        number = len(cost.stage1)
        lines.append(f"stage 1: {number} training{'s' * (number != 1)} for all members: {flop(total)}")
    if cost.flops:
        lines.append(
            f"stage 2: {amount(cost.flops)}; as single runs {amount(cost.single_flops)}: "
            f"{cost.single_flops / cost.flops:.1f} times as much"
        )
    if halving is not None:
        lines.append(
            f"halving: at most about {amount(cost.halved_flops(halving))} of stage 2, and less the more groups end"
        )
    if cost.rate is None:
        lines.append("hours: unknown, since the peak of this device is not; --tflops or --rate-from gives a speed")
    else:
        lines.append(f"hours: of one device: {cost.rate.source}")
    if cost.is_estimate:
        lines.append("FLOP are estimated from the number of weights: the VLM's operations cannot be counted")
    lines.append("not counted: measuring held-out losses, and evaluation")
    return lines


def plan_lines(
    sweep: Sweep,
    halving: int | None = None,
    tflops: float | None = None,
    utilization: float | None = None,
    rate_from: str | None = None,
) -> list[str]:
    """Groups and cost of a sweep, as lines of text; arguments as of `sweep_cost` and `describe_cost`.

    Raises:
        InputError: A stated rate is not valid. DataError: The dataset is damaged.
    """
    lines = describe_groups(sweep)
    try:
        return [*lines, *describe_cost(sweep_cost(sweep, tflops, utilization, rate_from), halving)]
    except InputError as error:
        if not (tflops is None and utilization is None and rate_from is None):
            raise
        return [*lines, f"cost: unknown: {error}"]  # such as where the images are not, but the cache is
