"""Evaluation: score a slice -> ledger -> records and metrics.

Ranks share nothing but files, so none waits for another, unless they share the language half
(`evaluate.partition_vlm`).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import torch
from tqdm import tqdm

from masp.config import Config, save_config
from masp.config.feature_source import evaluation_source
from masp.data.findings import log_findings, save_findings
from masp.data.questions import questions_of
from masp.distributed.ranks import Ranks, claim_gpu, read_ranks, read_share
from masp.errors import InputError, StoppedEarly
from masp.evaluation.aspects import AspectEvaluation
from masp.evaluation.feed import CachedFeed, Feed, open_feed
from masp.evaluation.linear_probe import write_probe
from masp.evaluation.partitioned import Passes, joined, load_for_scoring, on_any_rank
from masp.evaluation.prompts import FIRST, VALIDATION, Wording, other_evaluations, other_wordings, write_table
from masp.evaluation.protocol import Evaluation
from masp.evaluation.target import TargetEvaluation
from masp.files.text import reason, shown
from masp.results.aspect_records import DIRECTORY as STAGE1
from masp.results.ledger import DIRECTORY, Ledgers, Scoring
from masp.results.ledgers.slices import Slice
from masp.results.metrics_file import DATASETS, METRICS, PROBE, PROMPTS, read_metrics
from masp.results.records import FILE as RECORDS
from masp.runtime.devices import pick_device, plain_memory_errors
from masp.runtime.log import show
from masp.runtime.run_directory import STATUS_FILE as STATUS
from masp.runtime.run_directory import RunState, noting_failure, read_status, write_status
from masp.runtime.stop import StopFlag
from masp.tracking.trackers import REMOTE, open_trackers, require_trackers
from masp.vlm.quantized.rounding import require_library

LOG = logging.getLogger(__name__)


def evaluate_dir(config: Config) -> Path:
    """Where ledgers, records and metrics go."""
    name = "evaluate" if config.evaluate.stage == "stage2" else STAGE1
    return Path(config.evaluate.output_dir or Path(config.output_dir) / name)


def open_evaluation(
    config: Config, directory: Path, feed: Feed, known_categories: Sequence[str] = (), wording: Wording = FIRST
) -> Evaluation:
    """What `evaluate.stage` asks for, checked; the VLM is not loaded yet.

    Args:
        config: Run configuration.
        directory: Directory of its results.
        feed: The images.
        known_categories: More that may stand in `evaluate.category_map`: those of other datasets.
        wording: How the target is asked for.

    Raises:
        InputError: what was trained is missing or does not fit, nothing can be asked of these images, or what else is
            asked for beside the scores cannot be had.
    """
    _check_extras(config, feed)
    require_trackers(config)
    require_library(config.vlm.quantization)
    questions = questions_of(config)
    if config.evaluate.stage == "stage1":
        return AspectEvaluation(config, directory, feed, questions)
    return TargetEvaluation(config, directory, feed, questions, known_categories, wording)


def _check_extras(config: Config, feed: Feed) -> None:
    """Refuse what cannot be had beside the scores, before anything is scored."""
    asked = config.evaluate
    extras = {"validation": asked.validation, "prompts": asked.prompts == "all", "linear_probe": asked.linear_probe}
    extras["without"] = bool(asked.without)
    for name, wanted in extras.items():
        if wanted and asked.stage == "stage1":
            value = shown(getattr(asked, name))
            raise InputError(f"evaluate.{name} = {value}: only of evaluations of stage 2; leave it out of stage 1")
    if asked.validation and asked.split != VALIDATION and not feed.category_counts(VALIDATION):
        raise InputError(
            f"evaluate.validation = true: the dataset has no validation split ({VALIDATION}), so no temperature can be "
            "fitted; leave it out"
        )
    is_live = evaluation_source(config) == "live"
    if asked.linear_probe and (is_live or len(feed.category_counts("train")) < 2):
        why = "needs features in the cache" if is_live else "needs a training split of two categories"
        raise InputError(f"evaluate.linear_probe = true: {why}; leave it out")


def evaluate(
    config: Config,
    stop: StopFlag | None = None,
    known_categories: Sequence[str] = (),
    tables: Sequence[Path] = (),
) -> Path | None:
    """Score what this rank's slice still lacks; whichever rank finds all samples scored writes the metrics.

    What is asked for beside the split itself (the validation split, other wordings) is scored before it, in the same
    way, each into a directory of its own.

    Args:
        config: Run configuration; ranks come from the launcher's environment.
        stop: Looked at between batches; None lets SIGTERM, SIGINT and SIGUSR2 stop the run.
        known_categories: See `open_evaluation`.
        tables: Files that were made from this evaluation's results among others. Where results of an earlier call are
            removed because they are not those of the ledgers, these go with them.

    Returns:
        `metrics.json`; None if other ranks still have samples to score.

    Raises:
        InputError, DataError: see `masp.errors`. StoppedEarly: a signal asked to stop; the ledger is kept.
    """
    directory = evaluate_dir(config)
    if config.evaluate.validation or config.evaluate.prompts == "all":
        with noting_failure(directory), plain_write_errors(directory):
            feed = open_feed(config)
            evaluation = open_evaluation(config, directory, feed, known_categories)
            wordings = _wordings(config, evaluation)
            for part, wording in other_evaluations(config, directory, wordings):
                if read_ranks().is_rank_0:
                    show(f"evaluate: {evaluate_dir(part).relative_to(directory)}")
                part_tables = [*tables, directory / PROMPTS] if wording != FIRST else tables
                _evaluate_one(part, stop, known_categories, part_tables, wording)
            metrics = _evaluate_one(config, stop, known_categories, tables)
            if wordings and write_table(directory, wordings) is None:
                metrics = None
    else:
        metrics = _evaluate_one(config, stop, known_categories, tables)
    if metrics is not None:
        _track(config, directory)
    return metrics


def _track(config: Config, directory: Path) -> None:
    """Tell the trackers of the run the final metrics; the rank that found all samples scored does."""
    if not set(config.logging.trackers) & set(REMOTE):
        return
    output_dir, found = Path(config.output_dir).resolve(), directory.resolve()
    part = found.relative_to(output_dir).as_posix() if found.is_relative_to(output_dir) else found.name
    metrics = read_metrics(directory / METRICS, [])
    with open_trackers(config, part, metrics.digests()) as trackers:
        trackers.summarize(metrics.numbers())


def _wordings(config: Config, evaluation: Evaluation) -> list[Wording]:
    """The wordings but the first, where they are asked for."""
    if config.evaluate.prompts == "first" or not isinstance(evaluation, TargetEvaluation):
        return []
    found = other_wordings(evaluation.questions, evaluation.categories)
    if read_ranks().is_rank_0:
        show(
            f"evaluate: {len(found) + 1} wordings of the question for {len(evaluation.images)} images: about "
            f"{len(found) + 1} times the time of one",
        )
    return found


def _evaluate_one(
    config: Config,
    stop: StopFlag | None,
    known_categories: Sequence[str],
    tables: Sequence[Path],
    wording: Wording = FIRST,
) -> Path | None:
    """Score one split with one wording; see `evaluate`."""
    ranks, directory = read_share(), evaluate_dir(config)
    with noting_failure(directory), plain_write_errors(directory), joined(config, directory):
        evaluation = open_evaluation(config, directory, open_feed(config), known_categories, wording)
        ledgers = Ledgers(
            directory / DIRECTORY,
            evaluation.images,
            evaluation.identity,
            problem=evaluation.problem,
            discard=lambda: _discard_results(directory, tables),
            keys_of=evaluation.keys_of,
        )
        record = evaluation.feed.record
        if ranks.is_rank_0:
            for note in evaluation.notes:
                LOG.info("%s", note)
            if record:
                log_findings(record.findings, LOG, again=True)
        with ledgers.begin(Slice(ranks.rank, ranks.size), evaluation.feed.live_machine) as scoring:
            if ranks.is_rank_0:
                save_config(config, directory / "config.yaml")
                if record:
                    save_findings(directory, record)
                if num_done := scoring.num_records - scoring.num_missing:
                    whose = " of this rank" if ranks.size > 1 else ""
                    show(f"evaluate: {num_done} of {scoring.num_records} {evaluation.what}{whose} are scored already")
            if on_any_rank(config, bool(scoring.missing)):
                _score_slice(config, evaluation, scoring, ranks, stop)
        metrics = ledgers.merge_if_complete(evaluation.finish, scoring)
        if metrics is None:
            show(f"evaluate: rank {ranks.rank} is done; other ranks still have samples to score")
        else:
            if config.evaluate.linear_probe:
                _probe(config, evaluation, directory)
            write_status(directory, RunState.FINISHED, 0, str(metrics))
    return metrics


def _probe(config: Config, evaluation: Evaluation, directory: Path) -> None:
    """Fit and test the linear probe, outside of the lock under which metrics are written: it may take long."""
    feed = evaluation.feed
    assert isinstance(feed, CachedFeed) and isinstance(evaluation, TargetEvaluation), "checked before"
    split, means = config.evaluate.split, evaluation.asked.means
    write_probe(feed.cache, config.seed, split, means, feed.data_digest, directory)


def _score_slice(config: Config, evaluation: Evaluation, scoring: Scoring, ranks: Ranks, stop: StopFlag | None) -> None:
    """Append the records that this rank's slice lacks to its ledger."""
    directory, missing = evaluate_dir(config), scoring.missing
    write_status(directory, RunState.RUNNING)
    with plain_memory_errors(_remedy(config, directory / DIRECTORY)):
        passes = _load(config, evaluation, ranks)
    pause_s = 0.1 if sys.stderr.isatty() else 30.0
    bar = tqdm(total=len(missing), desc="evaluate", unit="img", mininterval=pause_s, disable=not ranks.is_rank_0)
    batches = closing(evaluation.feed.batches(list(missing), config.evaluate.batch_size))
    flags = StopFlag() if stop is None else nullcontext(stop)
    with flags as flag, bar, batches as batches_of_items, passes.scoring(flag):
        for items in batches_of_items:
            with plain_memory_errors(_remedy(config, directory / DIRECTORY)):
                scoring.append(*evaluation.score(items, missing))
            bar.update(len(items))
            if flag or passes.is_stopping:
                raise StoppedEarly(
                    f"evaluate: stopped on request; {directory / DIRECTORY} keeps what is scored, "
                    "the same command scores the rest"
                )


def _discard_results(directory: Path, tables: Sequence[Path]) -> None:
    """Remove what an earlier merge wrote, so that nobody takes it for the result of the ledgers that are there now."""
    status = read_status(directory)
    names = [METRICS, RECORDS, DATASETS, PROMPTS, PROBE]
    names += [STATUS] if status and status.state == RunState.FINISHED else []
    for path in (*(directory / name for name in names), *tables):
        path.unlink(missing_ok=True)


def _load(config: Config, evaluation: Evaluation, ranks: Ranks) -> Passes:
    """Get the device and the VLM's language half."""
    if config.engine.num_threads:
        torch.set_num_threads(config.engine.num_threads)
    device = pick_device(config.engine.device, "engine.device")
    if device == "cuda":
        claim_gpu(ranks)
    passes = load_for_scoring(config, device)
    evaluation.load(device, passes.language)
    return passes


def _remedy(config: Config, ledgers: Path) -> str:
    divide = "divide the VLM over several ranks (evaluate.partition_vlm=true)"
    smaller = [] if config.evaluate.partition_vlm else [divide]
    smaller += [] if config.vlm.quantization == "int4" else ["give vlm.quantization=int4"]
    advice = ", or ".join([f"lower evaluate.batch_size, which is {config.evaluate.batch_size}", *smaller])
    return f"{advice}; {ledgers} keeps what is scored"


@contextmanager
def plain_write_errors(directory: Path) -> Iterator[None]:
    """Turn what the file system refuses in an evaluation's directory into one line; other errors are left alone."""
    try:
        yield
    except OSError as error:
        path = error.filename2 or error.filename  # of a rename, the name that was wanted
        if not isinstance(path, str | os.PathLike):
            raise
        if directory != Path(path) and directory not in Path(path).parents and Path(path) not in directory.parents:
            raise
        raise InputError(
            f"evaluate.output_dir: {path} cannot be written: {reason(error)}; what is scored is kept"
        ) from None
