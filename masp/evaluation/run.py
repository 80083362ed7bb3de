"""Evaluation: score a slice -> ledger -> records and metrics.

Ranks share nothing but files, so none waits for another.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Container, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from masp.config import Config, save_config
from masp.data.questions import load_questions
from masp.distributed.ranks import claim_gpu, read_ranks
from masp.distributed.task_share import array_share
from masp.errors import InputError, StoppedEarly
from masp.evaluation.aspects import AspectEvaluation
from masp.evaluation.emotions import EmotionEvaluation
from masp.evaluation.sources import open_feed
from masp.files.text import reason
from masp.results.attention_maps import AttentionFile
from masp.results.ledger import FOLDER, Ledger, begin, merge_if_complete, missing_keys, slice_keys
from masp.runtime.devices import pick_device, plain_memory_errors
from masp.runtime.status import RunState, noting_failure, read_status, write_status
from masp.runtime.stop import StopFlag

if TYPE_CHECKING:
    from masp.distributed.ranks import Ranks
    from masp.evaluation.aspects import AspectEvaluation
    from masp.evaluation.emotions import EmotionEvaluation
    from masp.evaluation.feed import Feed, Item
    from masp.results.attention_maps import AttentionFile
    from masp.results.ledger import Ledger


TABLE = "datasets.json"
"""In the directory of a run's own evaluation: the table over it and those on other datasets."""


def evaluate_dir(config: Config) -> Path:
    """Where ledgers, records and metrics go."""
    name = "evaluate" if config.evaluate.stage == "stage2" else "evaluate-stage1"
    return Path(config.evaluate.output_dir or Path(config.output_dir) / name)


def evaluate(
    config: Config,
    stop: StopFlag | None = None,
    known_categories: Sequence[str] = (),
    tables: Sequence[Path] = (),
) -> Path | None:
    """Score what this rank's slice still lacks; whichever rank finds all samples scored writes the metrics.

    Args:
        config: of the run; ranks come from the launcher's environment.
        stop: looked at between batches; None lets SIGTERM, SIGINT and SIGUSR2 stop the run.
        known_categories: more that may stand in `evaluate.category_map`, those of other datasets.
        tables: files that were made from this evaluation's results among others. Where results of an earlier call are
            removed because they are not those of the ledgers, these go with them.

    Returns:
        `metrics.json`; None if other ranks still have samples to score.

    Raises:
        InputError, DataError: see `masp.errors`. StoppedEarly: a signal asked to stop; the ledger is kept.
    """
    ranks = _read_share()
    folder = evaluate_dir(config)
    with noting_failure(folder), _plain_write_errors(folder):
        metrics = _evaluate(config, folder, ranks, stop, known_categories, tables)
        if metrics:
            write_status(folder, RunState.FINISHED, 0, str(metrics))
    return metrics


@contextmanager
def _plain_write_errors(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses in an evaluation's folder into one line; other errors are left alone."""
    try:
        yield
    except OSError as error:
        path = error.filename2 or error.filename  # of a rename, the name that was wanted
        if not isinstance(path, str | os.PathLike):
            raise
        if folder != Path(path) and folder not in Path(path).parents and Path(path) not in folder.parents:
            raise
        raise InputError(
            f"evaluate.output_dir: {path} cannot be written: {reason(error)}; what is scored is kept"
        ) from None


def _read_share() -> Ranks:
    """Which slice this process scores: the launcher's ranks, times the elements of a Slurm array.

    Nothing joins here, so ranks may be processes that never run at the same time.
    """
    ranks = read_ranks()
    if ranks.launcher == "torchrun":
        return ranks
    count, index = array_share(os.environ)
    return replace(ranks, rank=index * ranks.size + ranks.rank, size=count * ranks.size)


def _evaluate(
    config: Config,
    folder: Path,
    ranks: Ranks,
    stop: StopFlag | None,
    known_categories: Sequence[str],
    tables: Sequence[Path],
) -> Path | None:
    feed = open_feed(config)
    evaluation = open_evaluation(config, folder, feed, known_categories)
    if ranks.is_lead:
        for note in evaluation.notes:
            print(f"note: {note}", file=sys.stderr)
    ledgers = folder / FOLDER

    def discard() -> None:
        _discard_results(folder, tables)

    missing = set(begin(ledgers, evaluation.keys, evaluation.identity, discard, evaluation.problem))
    if ranks.is_lead:
        save_config(config, folder / "config.yaml")
    if len(missing) < len(evaluation.keys) and ranks.is_lead:
        done, total = len(evaluation.keys) - len(missing), len(evaluation.keys)
        print(f"evaluate: {done} of {total} {evaluation.what} are scored already")
    if _left(evaluation, ranks, missing):
        _score(config, evaluation, feed, ledgers, ranks, stop)
    path = merge_if_complete(
        ledgers, evaluation.keys, evaluation.identity, evaluation.finish, discard, evaluation.problem
    )
    if path is None:
        print(f"evaluate: rank {ranks.rank} is done; other ranks still have samples to score")
    return path


def _discard_results(folder: Path, tables: Sequence[Path]) -> None:
    """Remove what an earlier merge wrote, so that nobody takes it for the result of the ledgers that are there now."""
    from masp.results.records import FILE as RECORDS
    from masp.runtime.status import FILE as STATUS

    status = read_status(folder)
    names = ["metrics.json", RECORDS, TABLE, *([STATUS] if status and status["state"] == RunState.FINISHED else [])]
    for path in (*(folder / name for name in names), *tables):
        path.unlink(missing_ok=True)


def _left(
    evaluation: EmotionEvaluation | AspectEvaluation, ranks: Ranks, missing: Container[str]
) -> dict[str, list[str]]:
    """This rank's images of which records are missing -> those records."""
    return {
        image: left
        for image in slice_keys(list(evaluation.keys_of), ranks.rank, ranks.size)
        if (left := [key for key in evaluation.keys_of[image] if key in missing])
    }


def open_evaluation(
    config: Config, folder: Path, feed: Feed, known_categories: Sequence[str] = ()
) -> EmotionEvaluation | AspectEvaluation:
    """What `evaluate.stage` asks for, checked; the VLM is not loaded yet."""
    questions = load_questions(config.questions)
    if config.evaluate.stage == "stage1":
        return AspectEvaluation(config, folder, feed, questions, known_categories)
    return EmotionEvaluation(config, folder, feed, questions, known_categories)


def _score(
    config: Config,
    evaluation: EmotionEvaluation | AspectEvaluation,
    feed: Feed,
    ledgers: Path,
    ranks: Ranks,
    stop: StopFlag | None,
) -> None:
    """Append the records that this rank's slice lacks to its ledger.

    What is missing is asked again once the ledger is locked, since the same command may have finished meanwhile, and
    for every batch, since ranks of another call may have cut the samples differently.
    """
    name = f"rank-{ranks.rank}"
    with Ledger(ledgers, name, evaluation.identity, feed.live_machine) as ledger:
        missing = missing_keys(ledgers, evaluation.keys, evaluation.identity, evaluation.problem)
        mine = _left(evaluation, ranks, set(missing))
        if not mine:
            return
        write_status(ledgers.parent, RunState.RUNNING)
        _load(config, evaluation, ranks)
        pause_s = 0.1 if sys.stderr.isatty() else 30.0
        bar = tqdm(total=len(mine), desc="evaluate", unit="img", mininterval=pause_s, disable=not ranks.is_lead)
        flag = StopFlag() if stop is None else nullcontext(stop)
        keeping = AttentionFile(ledgers, name) if evaluation.aspects_shown else nullcontext()
        batches = closing(feed.batches(list(mine), config.evaluate.batch_size))
        with flag as stop, bar, keeping as maps, batches as parts:
            for items in parts:
                with plain_memory_errors(_remedy(config, ledgers)):
                    _score_batch(evaluation, items, mine, ledger, maps)
                bar.update(len(items))
                if stop:
                    raise StoppedEarly(
                        f"evaluate: stopped on request; {ledgers} keeps what is scored, "
                        "the same command scores the rest"
                    )


def _load(config: Config, evaluation: EmotionEvaluation | AspectEvaluation, ranks: Ranks) -> None:
    """Get the device and the VLM."""
    if config.engine.num_threads:
        torch.set_num_threads(config.engine.num_threads)
    device = pick_device(config.engine.device, "engine.device")
    if device == "cuda":
        claim_gpu(ranks)
    evaluation.load(device)


def _remedy(config: Config, ledgers: Path) -> str:
    return f"lower evaluate.batch_size, which is {config.evaluate.batch_size}; {ledgers} keeps what is scored"


def _score_batch(
    evaluation: EmotionEvaluation | AspectEvaluation,
    items: Sequence[Item],
    mine: dict[str, list[str]],
    ledger: Ledger,
    maps: AttentionFile | None,
) -> None:
    """Score what no ledger has yet of a batch of images.

    Args:
        mine: image -> the records of it that were missing in the beginning.
    """
    taken = ledger.recorded()
    left = {item.key: [key for key in mine[item.key] if key not in taken] for item in items}
    items = [item for item in items if left[item.key]]
    if not items:
        return
    records = evaluation.score(items, left)
    if maps:
        assert isinstance(evaluation, EmotionEvaluation)  # the other refuses to keep maps
        looks = evaluation.looks(items)
        where = {item.key: maps.append(look) for item, look in zip(items, looks, strict=True)}
        records = [record | {"attention": where[record["sample_key"]]} for record in records]
    ledger.append_missing(records)
