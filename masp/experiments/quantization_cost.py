"""What `vlm.quantization` costs, measured on a sample: memory, scores, predictions, accuracy."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import get_args

from masp.config import Config
from masp.config.feature_source import cache_directory
from masp.config.schema import Quantization
from masp.data.keys import in_order_of_digests
from masp.evaluation.feed import open_feed
from masp.evaluation.prompts import VALIDATION
from masp.evaluation.run import evaluate_dir, open_evaluation
from masp.evaluation.scorers import load_language
from masp.evaluation.target import TargetEvaluation
from masp.experiments.cache_dtypes import check_options, in_words, with_what_is_there
from masp.results.ledger_format import Record
from masp.runtime.devices import pick_device
from masp.runtime.log import show
from masp.vlm.quantized.rounding import require_library

KINDS: tuple[Quantization, ...] = get_args(Quantization)
REFERENCE: Quantization = "none"


@dataclass(frozen=True)
class Cost:
    """What one value of `vlm.quantization` costs, against `none`."""

    bytes: int
    """Memory of the language half's weights."""
    share_of_none: float
    """The same as a share of that without quantization."""
    score_change_mean: float
    """Over images, of the largest change of a category's log-likelihood, nats."""
    score_change_max: float
    num_changed: int
    """Predictions that change."""
    agreement: float
    """Share of the predictions that do not."""
    accuracy: float
    accuracy_difference: float
    """Accuracy less that without quantization."""


@dataclass(frozen=True)
class Measurement:
    """What quantization of the language half costs on a sample."""

    num_images: int
    split: str
    precision: str
    """`engine.precision`, in which everything is computed that is not quantized."""
    scored_with: str
    """What was trained, in words."""
    kinds: dict[str, Cost]


def measure(config: Config, kinds: Sequence[str], num_images: int) -> Measurement:
    """Score a sample with each language half; one of them is in memory at a time.

    The sample is drawn from the cache by a hash of the keys: of the validation split, or of `evaluate.split` where the
    dataset has no validation split. Scores are those of `masp evaluate`, with the aspect modules and the soft prompt of
    the run where there are any.

    Args:
        config: Run configuration.
        kinds: Values of `vlm.quantization`.
        num_images: Number of images, at most.

    Raises:
        InputError: Unknown values, no cache, torchao is missing, or what was trained does not fit.
    """
    check_options("--kind", kinds, KINDS, num_images)
    wanted = [kind for kind in KINDS if kind in (*kinds, REFERENCE)]
    require_library(wanted[-1])
    evaluation, keys = _sample(config, num_images)
    found: dict[Quantization, tuple[int, dict[str, Record]]] = {}
    for kind in wanted:
        found[kind] = _scored(evaluation, kind, keys)
    return Measurement(
        num_images=len(keys),
        split=evaluation.config.evaluate.split,
        precision=config.engine.precision,
        scored_with=in_words(evaluation.trained),
        kinds={kind: _cost(found[kind], found[REFERENCE]) for kind in wanted},
    )


def report(config: Config, kinds: Sequence[str] | None, num_images: int, as_json: bool = False) -> Measurement:
    """Measure and print; `kinds` None for all."""
    result = measure(config, list(kinds or KINDS), num_images)
    show(*(json.dumps(asdict(result)) if as_json else table(result)).split("\n"))
    return result


def table(result: Measurement) -> str:
    """The result of `measure` as text."""
    lines = [
        f"{result.num_images:,} images of {result.split}, scored with {result.scored_with} in {result.precision}.",
        "",
        f"{'vlm.quantization':<17}{'MB':>11}{'of none':>9}{'score change':>14}{'largest':>9}"
        f"{'predictions changed':>21}{'agreement':>11}{'accuracy':>10}{'difference':>12}",
    ]
    for name, row in result.kinds.items():
        lines.append(
            f"{name:<17}{row.bytes / 1e6:>11,.1f}{row.share_of_none:>9.3f}{row.score_change_mean:>14.4f}"
            f"{row.score_change_max:>9.4f}{row.num_changed:>21,}{row.agreement:>11.2%}{row.accuracy:>10.2%}"
            f"{row.accuracy_difference:>+12.2%}"
        )
    return "\n".join(lines)


def _sample(config: Config, num_images: int) -> tuple[TargetEvaluation, list[str]]:
    cache_directory(config)
    config = copy.deepcopy(with_what_is_there(config))
    asked = config.evaluate
    asked.stage, asked.scoring, asked.source, asked.partition_vlm = "stage2", "likelihood", "cache", False
    asked.attention = asked.linear_probe = asked.validation = False
    feed = open_feed(config)
    if asked.split != VALIDATION and feed.category_counts(VALIDATION):
        asked.split = VALIDATION
        feed = open_feed(config)
    evaluation = open_evaluation(config, evaluate_dir(config), feed)
    assert isinstance(evaluation, TargetEvaluation)  # the stage is stage2
    return evaluation, in_order_of_digests(evaluation.images)[:num_images]


def _scored(evaluation: TargetEvaluation, kind: Quantization, keys: Sequence[str]) -> tuple[int, dict[str, Record]]:
    """Bytes of the language half, and the record of each image."""
    config = copy.deepcopy(evaluation.config)
    config.vlm.quantization = kind
    device = pick_device(config.engine.device, "engine.device")
    language = load_language(config, device)
    evaluation.load(device, language)
    missing = {key: (key,) for key in keys}
    found: dict[str, Record] = {}
    with closing(evaluation.feed.batches(keys, config.evaluate.batch_size)) as batches:
        for items in batches:
            records, _ = evaluation.score(items, missing)
            found |= {record.sample_key: record for record in records}
    evaluation.scorer = None
    return sum(parameter.nbytes for parameter in language.parameters()), found


def _cost(found: tuple[int, dict[str, Record]], reference: tuple[int, dict[str, Record]]) -> Cost:
    (num_bytes, records), (whole_bytes, expected) = found, reference
    count = len(expected)
    changes = [_change(records[key], expected[key]) for key in expected]
    num_changed = sum(records[key].prediction != expected[key].prediction for key in expected)
    accuracy, before = (sum(r.prediction == r.label for r in each.values()) / count for each in (records, expected))
    return Cost(
        bytes=num_bytes,
        share_of_none=num_bytes / whole_bytes,
        score_change_mean=sum(changes) / count,
        score_change_max=max(changes),
        num_changed=num_changed,
        agreement=1 - num_changed / count,
        accuracy=accuracy,
        accuracy_difference=accuracy - before,
    )


def _change(record: Record, expected: Record) -> float:
    """The largest change of a category's score."""
    assert record.scores is not None and expected.scores is not None  # scoring is by likelihood
    return max(abs(a - b) for a, b in zip(record.scores, expected.scores, strict=True))
