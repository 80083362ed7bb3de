"""Predicting any number of images: decoded ahead of the encoder by workers, in batches, into a file or one by one."""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from masp.data.questions import EMOTION
from masp.distributed.ranks import Ranks, claim_gpu, read_share
from masp.errors import DataError, InputError, StoppedEarly
from masp.evaluation.explain import known_answers
from masp.evaluation.scorers import ScoreRequest
from masp.files.atomic import replacing
from masp.files.sealed import canonical_json, digest_of
from masp.inference.batch.formats import Contents, opener_of
from masp.inference.batch.image_list import ImageList
from masp.inference.batch.parts import Finished, Parts, plain_write_errors
from masp.inference.batch.rows import Row, explained
from masp.inference.images import NamedImage
from masp.inference.model import Model, Prediction, Unreadable, readable
from masp.results.explanations.explanation import Explanation
from masp.runtime.devices import plain_memory_errors
from masp.runtime.log import show
from masp.runtime.stop import StopFlag

LOG = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0
"""Seconds between two looks at what other ranks have done."""


@dataclass(frozen=True)
class Outcome:
    """What was found for one image."""

    number: int
    """In the list of images."""
    image: NamedImage
    reason: str | None = None
    """Why it cannot be read; None if it was predicted."""
    request: ScoreRequest | None = None
    """The image, encoded."""
    prediction: Prediction | None = None
    explanation: Explanation | None = None


def outcomes(
    model: Model,
    images: Sequence[NamedImage],
    order: Iterable[int] | None = None,
    *,
    explain: bool = False,
    strict: bool = False,
) -> Generator[list[Outcome]]:
    """Predict images, a batch of `evaluate.batch_size` at a time, while `evaluate.num_workers` read those to come.

    Args:
        model: What predicts.
        images: The images.
        order: Numbers of those to predict, taken as they are needed; None for all.
        explain: Also explain each prediction.
        strict: Stop where the file system does not answer, which says nothing about the image.

    Raises:
        DataError: See `strict`; or features are not finite.
        InputError: The output of the model is not finite, or memory runs out.
    """
    evaluate = model.config.evaluate
    taken: deque[int] = deque()

    def noted(numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            taken.append(number)
            yield number

    order = noted(range(len(images)) if order is None else order)
    # of a single batch, nothing can be read ahead
    num_workers = evaluate.num_workers if len(images) > evaluate.batch_size else 0
    with model.encoder.stream(images, num_workers, order) as stream:
        while prepared := list(itertools.islice(stream, evaluate.batch_size)):
            numbers = [taken.popleft() for _ in prepared]
            named = [images[number] for number in numbers]
            if strict and (failure := next((image.failure for image in prepared if image.failure), None)):
                raise DataError(
                    f"{failure}: the file system does not answer; what is predicted is kept, the same command goes on "
                    "when it does; a file that can never be read may be replaced by an empty one"
                )
            with plain_memory_errors(f"lower evaluate.batch_size, which is {evaluate.batch_size}"):
                encoded = model.encode_prepared([each.name for each in named], prepared)
                requests = readable(encoded)
                why: Sequence[Explanation | None] = [None] * len(requests)
                if explain and requests:
                    why = model.explainer.explain(requests)
                found = zip(requests, model.predict_requests(requests), why, strict=True)
                yield [
                    Outcome(number, image, reason=each.reason)
                    if isinstance(each, Unreadable)
                    else Outcome(number, image, None, *next(found))
                    for number, image, each in zip(numbers, named, encoded, strict=True)
                ]


def predict_to_file(
    model: Model, images: ImageList, output: Path, *, explain: bool = False, stop: StopFlag | None = None
) -> Path | None:
    """Predict images into a file; see `masp.inference.batch.parts` for how that goes on after any interruption.

    Any number of processes may do this at once: each begins with its share of the images, and then takes what nobody
    else is working on.

    Args:
        model: What predicts.
        images: The images.
        output: File that ends in `.csv`, `.jsonl` or `.parquet`.
        explain: Also explain each prediction.
        stop: Looked at between batches; None lets SIGTERM, SIGINT and SIGUSR2 stop the job.

    Returns:
        The output; None if other processes still have images to predict.

    Raises:
        InputError: The rows that are there are those of another model, of other images or other settings; none of the
            images can be read; or the output cannot be written.
        DataError: Rows are damaged, or see `outcomes`.
        StoppedEarly: As `stop` asked; what is predicted is kept.
    """
    ranks, opener = read_share(), opener_of(output)
    identity = identity_of(model, images, explain)
    target = model.config.target.name
    contents = Contents(
        tuple(model.categories),
        tuple(model.aspects) if explain else None,
        None if target == EMOTION else target,
        canonical_json(identity).decode(),
    )
    try:
        with Parts(output, identity, model.machine, len(images)) as parts:
            for name, theirs, ours in parts.machine_differences if ranks.is_rank_0 else ():
                LOG.info("rows come from different machines: %s was %r, here it is %r", name, theirs, ours)
            with nullcontext(stop) if stop is not None else StopFlag() as flag:
                with model.sharing_vlm() as answers:
                    if not answers:
                        return None
                    _predict(model, images, parts, ranks, explain, flag)
                with parts.merging() as units:
                    if units is None:
                        show(f"predict: rank {ranks.rank} is done; other ranks still have images to predict")
                        return None
                    num_unreadable = 0
                    with (
                        plain_write_errors(output),
                        replacing(output) as temporary,
                        opener(temporary, contents) as file,
                    ):
                        for rows in units:
                            file.write([images[row.number].name for row in rows], rows)
                            num_unreadable += sum(row.reason is not None for row in rows)
                            _check_stop(flag, parts)
    except Finished:
        show(f"predictions: {output}")
        return output
    return _say(output, len(images), num_unreadable)


def _say(output: Path, num_images: int, num_unreadable: int) -> Path:
    """The last line of a job: where the results are, and how many images could not be read."""
    count = "1 image" if num_images == 1 else f"{num_images:,} images"
    if num_unreadable == num_images:
        raise InputError(f"none of {count} can be read; {output} says why")
    show(f"predictions: {output} ({count}, {num_unreadable:,} of them cannot be read)")
    return output


def identity_of(model: Model, images: ImageList, explain: bool) -> dict[str, Any]:
    """All that a row depends on, by what an error calls it."""
    config, trained = model.config, model.trained
    found: dict[str, Any] = {
        "digest of the list of images": images.digest,
        "categories": list(model.categories),
        "question": model.questions.target_first(model.categories),
        "target": config.target.name,
        "aspects": list(model.aspects),
        "aspect modules": trained.aspect_lineage.digest if trained.aspect_lineage else None,
        "soft prompt": trained.soft_prompt_lineage.digest if trained.soft_prompt_lineage else None,
        "layout": trained.layout,
        "vision features": trained.vision_features,
        "engine.precision": config.engine.precision,
        "vlm.quantization": config.vlm.quantization,
        "--explain": explain,
        **{f"vlm: {name}": value for name, value in model.features_of.items()},
    }
    if explain:
        questions = {aspect: model.questions.aspect_first(aspect) for aspect in model.aspects}
        asked = [questions, known_answers(config), config.annotate.max_new_tokens]
        found["questions about aspects"] = digest_of(asked)
    return found


def claims(parts: Parts, ranks: Ranks) -> Iterator[int]:
    """Numbers of the images that this process predicts: its own share of the units, then whatever is left by others,
    from the end, where they come last."""
    first, last = (parts.num_units * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1))
    others = [*range(last, parts.num_units), *range(first)]
    try:
        for unit in itertools.chain(range(first, last), reversed(others)):
            yield from parts.claim(unit)
    except Finished:
        return


def _predict(model: Model, images: ImageList, parts: Parts, ranks: Ranks, explain: bool, stop: StopFlag) -> None:
    """Predict what this process finds missing."""
    order = claims(parts, ranks)
    first = next(order, None)
    if first is None:  # the VLM is not needed
        return
    if model.config.engine.num_threads:
        torch.set_num_threads(model.config.engine.num_threads)
    if model.device == "cuda":
        claim_gpu(ranks)
    done = parts.num_done()
    if done and ranks.is_rank_0:
        show(f"predict: {done:,} of {len(images):,} images are predicted already")
    with plain_memory_errors(
        "divide the VLM over several ranks (evaluate.partition_vlm=true), or give vlm.quantization"
    ):
        model.load(explain)
    pause_s = 0.1 if sys.stderr.isatty() else 30.0
    bar = tqdm(
        total=len(images), initial=done, desc="predict", unit="img", mininterval=pause_s, disable=not ranks.is_rank_0
    )
    looked = time.monotonic()
    batches = closing(outcomes(model, images, itertools.chain([first], order), explain=explain, strict=True))
    with bar, batches as found:
        for batch in found:
            parts.append([_row(outcome) for outcome in batch])
            bar.update(len(batch))
            if ranks.size > 1 and time.monotonic() - looked > _LOOK_EVERY_S:
                bar.update(max(0, parts.num_done() - bar.n))
                looked = time.monotonic()
            _check_stop(stop, parts)


def _check_stop(stop: StopFlag, parts: Parts) -> None:
    if stop:
        raise StoppedEarly(
            f"predict: stopped on request; {parts.directory} keeps what is predicted, the same command goes on"
        )


def _row(outcome: Outcome) -> Row:
    if outcome.prediction is None:
        return Row(outcome.number, reason=outcome.reason)
    why = None if outcome.explanation is None else explained(outcome.explanation)
    found = outcome.prediction
    return Row(outcome.number, None, found.label, tuple(found.log_likelihoods.values()), why)
