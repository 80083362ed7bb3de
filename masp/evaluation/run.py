"""Evaluation: score a slice -> ledger -> records and metrics.

Ranks share nothing but files, so none waits for another.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Container, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from masp.config import Config, save_config
from masp.data.findings import log_findings, save_findings
from masp.data.questions import load_questions
from masp.distributed.ranks import Ranks, array_share, claim_gpu, read_ranks
from masp.errors import InputError, StoppedEarly
from masp.evaluation.aspects import AspectEvaluation
from masp.evaluation.emotions import EmotionEvaluation
from masp.evaluation.feed import Feed, Item, open_feed
from masp.evaluation.protocol import Evaluation
from masp.files.text import reason
from masp.results.ledger import DIRECTORY, Ledgers, slice_keys
from masp.results.ledger_file import Ledger
from masp.results.metrics_file import DATASETS, METRICS
from masp.results.records import FILE as RECORDS
from masp.runtime.devices import pick_device, plain_memory_errors
from masp.runtime.run_directory import STATUS_FILE as STATUS
from masp.runtime.run_directory import RunState, noting_failure, read_status, write_status
from masp.runtime.stop import StopFlag

LOG = logging.getLogger(__name__)


def evaluate_dir(config: Config) -> Path:
    """Where ledgers, records and metrics go."""
    name = "evaluate" if config.evaluate.stage == "stage2" else "evaluate-stage1"
    return Path(config.evaluate.output_dir or Path(config.output_dir) / name)


def open_evaluation(config: Config, directory: Path, feed: Feed, known_categories: Sequence[str] = ()) -> Evaluation:
    """What `evaluate.stage` asks for, checked; the VLM is not loaded yet.

    Args:
        config: Run configuration.
        directory: Directory of its results.
        feed: The images.
        known_categories: More that may stand in `evaluate.category_map`: those of other datasets.

    Raises:
        InputError: what was trained is missing or does not fit, or nothing can be asked of these images.
    """
    questions = load_questions(config.questions)
    if config.evaluate.stage == "stage1":
        return AspectEvaluation(config, directory, feed, questions)
    return EmotionEvaluation(config, directory, feed, questions, known_categories)


def evaluate(
    config: Config,
    stop: StopFlag | None = None,
    known_categories: Sequence[str] = (),
    tables: Sequence[Path] = (),
) -> Path | None:
    """Score what this rank's slice still lacks; whichever rank finds all samples scored writes the metrics.

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
    ranks, directory = _read_share(), evaluate_dir(config)
    with noting_failure(directory), plain_write_errors(directory):
        evaluation = open_evaluation(config, directory, open_feed(config), known_categories)
        ledgers = Ledgers(
            directory / DIRECTORY,
            evaluation.keys,
            evaluation.identity,
            problem=evaluation.problem,
            discard=lambda: _discard_results(directory, tables),
        )
        record = evaluation.feed.record
        if ranks.is_rank_0:
            for note in evaluation.notes:
                LOG.info("%s", note)
            if record:
                log_findings(record.findings, LOG, again=True)
        missing = set(ledgers.begin())
        if ranks.is_rank_0:
            save_config(config, directory / "config.yaml")
            if record:
                save_findings(directory, record)
            if num_done := len(evaluation.keys) - len(missing):
                print(f"evaluate: {num_done} of {len(evaluation.keys)} {evaluation.what} are scored already")
        if _left(evaluation, ranks, missing):
            _score_slice(config, evaluation, ledgers, ranks, stop)
        metrics = ledgers.merge_if_complete(evaluation.finish)
        if metrics is None:
            print(f"evaluate: rank {ranks.rank} is done; other ranks still have samples to score")
        else:
            write_status(directory, RunState.FINISHED, 0, str(metrics))
    return metrics


def _score_slice(config: Config, evaluation: Evaluation, ledgers: Ledgers, ranks: Ranks, stop: StopFlag | None) -> None:
    """Append the records that this rank's slice lacks to its ledger.

    What is missing is asked again once the ledger is locked, since the same command may have finished meanwhile, and
    for every batch, since ranks of another call may have cut the samples differently.
    """
    with ledgers.open(f"rank-{ranks.rank}", evaluation.feed.live_machine) as ledger:
        mine = _left(evaluation, ranks, set(ledgers.missing()))
        if not mine:
            return
        write_status(ledgers.directory.parent, RunState.RUNNING)
        _load(config, evaluation, ranks)
        pause_s = 0.1 if sys.stderr.isatty() else 30.0
        bar = tqdm(total=len(mine), desc="evaluate", unit="img", mininterval=pause_s, disable=not ranks.is_rank_0)
        batches = closing(evaluation.feed.batches(list(mine), config.evaluate.batch_size))
        with StopFlag() if stop is None else nullcontext(stop) as flag, bar, batches as batches_of_items:
            for items in batches_of_items:
                with plain_memory_errors(_remedy(config, ledgers.directory)):
                    _score_batch(evaluation, items, mine, ledger)
                bar.update(len(items))
                if flag:
                    raise StoppedEarly(
                        f"evaluate: stopped on request; {ledgers.directory} keeps what is scored, "
                        "the same command scores the rest"
                    )


def _score_batch(evaluation: Evaluation, items: Sequence[Item], mine: dict[str, list[str]], ledger: Ledger) -> None:
    """Score what no ledger has yet of a batch of images.

    Args:
        mine: Image -> the records of it that were missing in the beginning.
    """
    taken = ledger.recorded()
    left = {item.key: [key for key in mine[item.key] if key not in taken] for item in items}
    if items := [item for item in items if left[item.key]]:
        ledger.append_missing(*evaluation.score(items, left))


def _left(evaluation: Evaluation, ranks: Ranks, missing: Container[str]) -> dict[str, list[str]]:
    """This rank's images of which records are missing -> those records."""
    return {
        image: left
        for image in slice_keys(list(evaluation.keys_of), ranks.rank, ranks.size)
        if (left := [key for key in evaluation.keys_of[image] if key in missing])
    }


def _read_share() -> Ranks:
    """Which slice this process scores: the launcher's ranks, times the elements of a Slurm array.

    Nothing joins here, so ranks may be processes that never run at the same time.
    """
    ranks = read_ranks()
    if ranks.launcher == "torchrun":
        return ranks
    count, index = array_share(os.environ)
    return replace(ranks, rank=index * ranks.size + ranks.rank, size=count * ranks.size)


def _discard_results(directory: Path, tables: Sequence[Path]) -> None:
    """Remove what an earlier merge wrote, so that nobody takes it for the result of the ledgers that are there now."""
    status = read_status(directory)
    names = [METRICS, RECORDS, DATASETS, *([STATUS] if status and status.state == RunState.FINISHED else [])]
    for path in (*(directory / name for name in names), *tables):
        path.unlink(missing_ok=True)


def _load(config: Config, evaluation: Evaluation, ranks: Ranks) -> None:
    """Get the device and the VLM."""
    if config.engine.num_threads:
        torch.set_num_threads(config.engine.num_threads)
    device = pick_device(config.engine.device, "engine.device")
    if device == "cuda":
        claim_gpu(ranks)
    evaluation.load(device)


def _remedy(config: Config, ledgers: Path) -> str:
    return f"lower evaluate.batch_size, which is {config.evaluate.batch_size}; {ledgers} keeps what is scored"


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
