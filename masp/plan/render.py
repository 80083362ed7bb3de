"""A plan as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from masp.data.findings import finding_lines
from masp.data.questions import EMOTION
from masp.errors import one_line
from masp.plan.actual import Comparison
from masp.plan.evaluation import EvaluationEstimate
from masp.plan.plan import Plan, SplitFacts
from masp.plan.work import ExtractionEstimate, StageEstimate


def size(num_bytes: float) -> str:
    """Format bytes in the decimal unit that suits them."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.2f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"


def flop(count: float) -> str:
    """Format FLOP in the unit that suits them."""
    for unit, factor in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count / 1e6:.2f} MFLOP"


def duration(hours: float) -> str:
    """Format hours, as minutes or seconds where they are few."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"


def render(plan: Plan) -> str:
    """Format a plan as `masp plan` prints it."""
    parts = (_images, _dataset, _cache, _work, _worth, _levers, _actual)
    return "\n\n".join("\n".join(map(one_line, lines)) for part in parts if (lines := part(plan)))


def _images(plan: Plan) -> list[str]:
    images = plan.images
    lines = [f"{plan.dataset.name}: {plan.dataset.root}, {images.num_images:,} images", ""]
    lines.append(
        f"{'split':<8}{'images':>10}{'broken':>8}{'vision tokens: min':>20}" + _cells("median mean p95 max".split())
    )
    everything = SplitFacts(images.num_images, images.num_broken, plan.tokens)
    for name, split in [*images.splits.items(), ("all", everything)]:
        shown = ""
        if tokens := split.tokens:
            shown = f"{tokens.min:>20}" + _cells([tokens.median, f"{tokens.mean:.1f}", tokens.p95, tokens.max])
        lines.append(f"{name:<8}{split.num_images:>10,}{split.num_broken:>8,}{shown}")
    if images.num_broken:
        lines += ["", f"{images.num_broken:,} images whose header is broken, or shows that they will be refused:"]
        lines += [f"  {entry.path}: {entry.reason}" for entry in images.broken]
        if images.num_broken > len(images.broken):
            lines.append(f"  … and {images.num_broken - len(images.broken):,} more")
        if images.num_broken > images.max_bad_fraction * images.num_images:
            lines.append(f"  extraction will fail: more than extract.max_bad_fraction = {images.max_bad_fraction:g}")
    return lines


def _dataset(plan: Plan) -> list[str]:
    target = [] if plan.dataset.target == EMOTION else [f"target: {plan.dataset.target}"]
    return [*target, *plan.dataset.holdings.table(), *finding_lines(plan.dataset.findings)]


def _cells(values: Sequence[object]) -> str:
    return "".join(f"{value:>8}" for value in values)


def _cache(plan: Plan) -> list[str]:
    cache = plan.cache
    if plan.space is None:
        return [
            "cache        none (cache.dir = null): the encoder runs in training; a cache would take "
            f"{size(cache.bytes)} in {cache.dtype}"
        ]
    sizes = ", ".join(f"{name} {size(count)}" for name, count in cache.bytes_by_precision.items())
    return [
        f"cache        {size(cache.bytes)} in {cache.dtype}, with {size(cache.index_bytes)} of index and "
        f"sidecars beside: {cache.dir}",
        f"shards       {cache.num_shards}, of {size(cache.shard_bytes.min)} to {size(cache.shard_bytes.max)}",
        f"precisions   {sizes}",
        f"space        {plan.space.verdict}",
    ]


def _work(plan: Plan) -> list[str]:
    heads = f"{'FLOP/image':>15}{'FLOP':>15}{'GPU time':>12}{'images/s':>11}"
    if plan.space is not None:
        heads += f"{'reads':>13}"
    lines = [f"{'':<9}{'images':>10}{'epochs':>8}{heads}"]
    readable = plan.images.num_images - plan.images.num_broken
    rows: list[tuple[str, int, int, ExtractionEstimate | StageEstimate | EvaluationEstimate, str]] = []
    if plan.space is not None:
        rows.append(("extract", readable, 1, plan.extract, ""))
    for name, stage in plan.stages.items():
        reads = "" if plan.space is None else f"{size(stage.reads_bytes_per_s)}/s"
        rows.append((name, stage.num_images, stage.num_epochs, stage, reads))
    scoring = plan.evaluate
    num_scored = scoring.num_images + scoring.num_validation_images
    reads = f"{size(scoring.reads_bytes_per_s)}/s" if scoring.reads_bytes_per_s else ""
    rows.append(("evaluate", num_scored, scoring.num_wordings, scoring, reads))
    for name, num_images, epochs, work, reads in rows:
        if not num_images:
            nothing = "nothing to score" if work is scoring else "nothing to learn from"
            lines.append(f"{name:<9}{0:>10}  {nothing}")
            continue
        lines.append(
            f"{name:<9}{num_images:>10,}{epochs:>8}{flop(work.flops_per_image):>15}{flop(work.flops):>15}"
            f"{duration(work.hours):>12}{work.images_per_s:>11,.1f}" + (f"{reads:>13}" if reads else "")
        )
    by_source: dict[str, list[str]] = {}
    for name, _, _, work, _ in rows:
        rate = work.rate
        speed = f"{flop(rate.per_second)}/s" if rate.unit == "FLOP" else f"{rate.per_second:,.0f} tokens/s"
        by_source.setdefault(f"{speed} ({rate.source})", []).append(name)
    lines += [f"rate of {', '.join(names)}: {source}" for source, names in by_source.items()]
    if scoring.num_wordings > 1 or scoring.num_validation_images:
        more = f", and {scoring.num_validation_images:,} of val once" if scoring.num_validation_images else ""
        wordings = f"{scoring.num_wordings} wordings of the question" if scoring.num_wordings > 1 else "one wording"
        lines.append(f"evaluate: {scoring.num_images:,} images of {scoring.split} in {wordings}{more}")
    if scoring.num_explained:
        lines.append(f"evaluate: also explains {scoring.num_explained:,} images, contained above")
    if asked := plan.annotate:
        lines.append(
            f"annotate: the VLM is asked {asked.num_questions:,} questions about {', '.join(asked.aspects)} of "
            f"{asked.num_images:,} images: {flop(asked.flops_per_image)}/image, {flop(asked.flops)}, "
            f"{duration(asked.hours)} at the rate of evaluate; stage 1 then learns from more images than shown"
        )
    lines += [
        f"{name}: {stage.num_restarts} restarts, {flop(stage.flops / stage.num_restarts)} and "
        f"{duration(stage.hours / stage.num_restarts)} each, contained above; their values, gradients and moments take "
        f"{size(stage.state_bytes)} over all ranks"
        for name, stage in plan.stages.items()
        if stage.num_restarts > 1
    ]
    if plan.space is not None:
        lines.append("reads: what the cache must deliver per second to keep one such machine busy")
    else:
        lines += [
            f"{name}: the encoder takes {flop(stage.encoder_flops / stage.num_epochs)} and "
            f"{duration(stage.encoder_hours / stage.num_epochs)} of each epoch, contained above"
            for name, stage in plan.stages.items()
            if stage.num_images
        ]
    if plan.flops_estimated:
        lines.append("FLOP are estimated from the number of weights: the VLM's operations cannot be counted")
    if not plan.text_tokens_counted:
        lines.append("text tokens are estimated: the VLM's directory has no usable tokenizer")
    return lines


def _worth(plan: Plan) -> list[str]:
    once = duration(plan.extract.hours)
    if plan.space is None:
        hours = sum(stage.encoder_hours for stage in plan.stages.values())
        return [
            f"Without a cache, training runs the encoder for {duration(hours)}. Extraction would run it for {once}, "
            f"and keep {size(plan.cache.bytes)} in a cache (cache.dir=DIR)"
        ]
    lines = [f"The cache costs {once} of the encoder, once. Without it, training would run the encoder"]
    names = {
        "per_aspect_and_epoch": "for every aspect and epoch, as the published procedure does",
        "per_image_and_epoch": "once per image and epoch",
    }
    stage1 = plan.stages["stage1"]
    first = stage1.num_epochs if stage1.num_images else 0
    for name, other in plan.without_cache.items():
        after = other.pays_after_epochs
        if after is None:
            pays = "the cache does not pay for itself within this run"
        else:
            number = max(1, -(-after // 1))  # an epoch and a bit falls into the second
            place = f"epoch {number:.0f} of stage1" if number <= first else f"epoch {number - first:.0f} of stage2"
            pays = f"paid for itself after {after:.2f} epochs ({place})"
        lines.append(f"  {names[name]}: {duration(other.encoder_hours)}; {pays}")
    return lines


def _levers(plan: Plan) -> list[str]:
    cache, total = plan.cache, plan.extract.flops
    rows = [("as configured", plan.tokens.mean, cache.bytes, total)]
    rows += [(lever.setting, lever.mean_tokens, lever.bytes, lever.extraction_flops) for lever in plan.levers]
    if cache.dtype not in ("int8", "fp8"):
        rows.append(("8 bits (int8, fp8)", plan.tokens.mean, cache.bytes_by_precision["int8"], total))
    lines = [f"{'lever':<26}{'mean tokens':>12}{'cache':>12}{'saves':>8}{'encoder FLOP':>15}{'saves':>8}"]
    for name, tokens, num_bytes, flops in rows:
        lines.append(
            f"{name:<26}{tokens:>12.1f}{size(num_bytes):>12}{1 - num_bytes / cache.bytes:>8.0%}"
            f"{flop(flops):>15}{1 - flops / total:>8.0%}"
        )
    return lines


def _actual(plan: Plan) -> list[str]:
    cache = plan.actual.cache
    lines: list[str] = []
    if cache:
        if cache.dtype != plan.cache.dtype:
            lines.append(f"{f'cache is in {cache.dtype}, not {plan.cache.dtype}':<26}{'':>16}{'':>16}")
        lines += [
            _compared("shards" if cache.complete else "shards so far", cache.num_shards, "{:,.0f}".format),
            _compared("images", cache.num_images, "{:,.0f}".format),
            _compared("vision tokens", cache.num_tokens, "{:,.0f}".format),
            _compared("bytes of shards", cache.bytes, "{:,.0f}".format),
        ]
    if extraction := plan.actual.extract:
        lines.append(_compared("extract: images/s", extraction.images_per_s, "{:,.2f}".format))
    for name, stage in plan.actual.stages.items():
        lines.append(_compared(f"{name}: images/s", stage.images_per_s, "{:,.2f}".format))
        lines.append(_compared(f"{name}: tokens/image", stage.tokens_per_image, "{:,.1f}".format))
    return [f"{'so far':<26}{'predicted':>16}{'actual':>16}{'ratio':>9}", *lines] if lines else []


def _compared(name: str, number: Comparison, show: Callable[[float], str]) -> str:
    predicted, actual = number.predicted, number.actual
    ratio = f"{actual / predicted:>9.3f}" if predicted else ""
    return f"{name:<26}{'' if predicted is None else show(predicted):>16}{show(actual):>16}{ratio}"
