"""Scores one split in one way, or several evaluations of it together: ledger -> records and metrics.

Ranks share nothing but files, so none waits for another, unless they share the language half
(`evaluate.partition_vlm`).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from masp.config import Config, save_config
from masp.data.findings import log_findings, save_findings
from masp.distributed.ranks import Ranks, claim_gpu, read_share
from masp.errors import DataError, InputError, MaspError, StoppedEarly
from masp.evaluation.feed import CachedFeed, Feed, Item, open_feed
from masp.evaluation.group.scorer import GroupScorer
from masp.evaluation.linear_probe import write_probe
from masp.evaluation.partitioned import joined, load_for_scoring, on_any_rank
from masp.evaluation.protocol import Evaluation
from masp.evaluation.scorers import TargetScorer
from masp.evaluation.target import TargetEvaluation
from masp.files.text import reason
from masp.results.aspect_records import DIRECTORY as STAGE1
from masp.results.explanations.explanations_file import FILE as EXPLANATIONS
from masp.results.ledger import DIRECTORY, Ledgers, Scoring
from masp.results.ledgers.slices import Slice
from masp.results.metrics_file import DATASETS, METRICS, PROBE, PROMPTS
from masp.results.records import FILE as RECORDS
from masp.runtime.devices import pick_device, plain_memory_errors
from masp.runtime.log import show
from masp.runtime.run_directory import STATUS_FILE as STATUS
from masp.runtime.run_directory import RunState, noting_failure, read_status, write_status
from masp.runtime.stop import StopFlag
from masp.vlm.language import LanguageHalf

LOG = logging.getLogger(__name__)


def evaluate_dir(config: Config) -> Path:
    """Where ledgers, records and metrics go."""
    name = "evaluate" if config.evaluate.stage == "stage2" else STAGE1
    return Path(config.evaluate.output_dir or Path(config.output_dir) / name)


@dataclass
class Part:
    """One split that is scored in one way."""

    config: Config
    """Configuration, whose `evaluate.output_dir` gets the results."""
    open: Callable[..., Evaluation]
    """Opens the evaluation, given the configuration, that directory and the images; in a group also `like`, the first
    member."""
    tables: Sequence[Path] = ()
    """See `masp.evaluation.run.evaluate`."""
    metrics: Path | None = None
    """What it wrote; None as long as other ranks still have samples to score."""
    error: MaspError | None = None
    """Why it failed, in a group whose other members went on."""

    @property
    def directory(self) -> Path:
        return evaluate_dir(self.config)


@dataclass
class _Opened:
    """A part whose slice is taken."""

    part: Part
    evaluation: Evaluation
    ledgers: Ledgers
    scoring: Scoring


@dataclass
class _Group:
    """Parts that are scored together; one alone is a group of one."""

    parts: Sequence[Part]
    ranks: Ranks = field(default_factory=read_share)

    @property
    def config(self) -> Config:
        """What the members have in common is read here."""
        return self.parts[0].config

    @contextmanager
    def own_errors(self, part: Part) -> Iterator[None]:
        """An error of one member is kept there, and the others go on; one alone just fails."""
        if len(self.parts) == 1:
            yield
            return
        try:
            with noting_failure(part.directory), plain_write_errors(part.directory):
                yield
        except (InputError, DataError) as error:
            part.error = error
            LOG.warning("%s: %s; the others go on", part.directory, error)


def score_parts(parts: Sequence[Part], stop: StopFlag | None) -> None:
    """Score what this rank's slice of each part still lacks; whichever rank finds all samples scored writes metrics.

    Several parts must share a prefix, see `masp.evaluation.group.members`.

    Args:
        parts: The parts; `metrics` and `error` are set.
        stop: See `masp.evaluation.run.evaluate`; also what is raised.
    """
    group = _Group(parts)
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(noting_failure(part.directory))
            stack.enter_context(plain_write_errors(part.directory))
        stack.enter_context(joined(group.config, [part.directory for part in parts]))
        feed = open_feed(group.config)
        with ExitStack() as slices:
            opened = _open(group, feed, slices)
            if on_any_rank(group.config, any(each.scoring.missing for each in opened)):
                _score_slices(group, opened, feed, stop)
        for each in opened:
            if each.part.error is None:
                with group.own_errors(each.part):
                    _finish(group, each)


def _open(group: _Group, feed: Feed, slices: ExitStack) -> list[_Opened]:
    """Open all parts and take this rank's slice of each."""
    opened: list[_Opened] = []
    for part in group.parts:
        with group.own_errors(part):
            like = {"like": opened[0].evaluation} if opened else {}
            evaluation = part.open(part.config, part.directory, feed, **like)
            opened.append(_begin(group, part, evaluation, slices))
    _announce(group, opened)
    return opened


def _begin(group: _Group, part: Part, evaluation: Evaluation, slices: ExitStack) -> _Opened:
    directory, ranks = part.directory, group.ranks
    ledgers = Ledgers(
        directory / DIRECTORY,
        evaluation.images,
        evaluation.identity,
        problem=evaluation.problem,
        discard=lambda: _discard_results(directory, part.tables),
        keys_of=evaluation.keys_of,
    )
    scoring = ledgers.begin(Slice(ranks.rank, ranks.size), evaluation.feed.live_machine)
    slices.enter_context(scoring)
    if ranks.is_rank_0:
        save_config(part.config, directory / "config.yaml")
        if evaluation.feed.record:
            save_findings(directory, evaluation.feed.record)
    return _Opened(part, evaluation, ledgers, scoring)


def _announce(group: _Group, opened: Sequence[_Opened]) -> None:
    """Say what is to be known of the data, each thing once, and what is scored already."""
    if not group.ranks.is_rank_0 or not opened:
        return
    for note in dict.fromkeys(note for each in opened for note in each.evaluation.notes):
        LOG.info("%s", note)
    record = opened[0].evaluation.feed.record
    if record:
        log_findings(record.findings, LOG, again=True)
    if (num_left := sum(bool(each.scoring.missing) for each in opened)) > 1:
        show(f"evaluate: {num_left} evaluations behind one pass of what their prompts have in common")
    whose = " of this rank" if group.ranks.size > 1 else ""
    for each in opened:
        scoring = each.scoring
        if num_done := scoring.num_records - scoring.num_missing:
            where = f": {each.part.directory}" if len(opened) > 1 else ""
            show(
                f"evaluate: {num_done} of {scoring.num_records} {each.evaluation.what}{whose} are scored already{where}"
            )


def _finish(group: _Group, each: _Opened) -> None:
    part = each.part
    metrics = each.ledgers.merge_if_complete(each.evaluation.finish, each.scoring)
    if metrics is None:
        show(f"evaluate: rank {group.ranks.rank} is done; other ranks still have samples to score")
        return
    if part.config.evaluate.linear_probe:
        _probe(part.config, each.evaluation, part.directory)
    write_status(part.directory, RunState.FINISHED, 0, str(metrics))
    part.metrics = metrics


def _probe(config: Config, evaluation: Evaluation, directory: Path) -> None:
    """Fit and test the linear probe, outside of the lock under which metrics are written: it may take long."""
    feed = evaluation.feed
    assert isinstance(feed, CachedFeed) and isinstance(evaluation, TargetEvaluation), "checked before"
    split, means = config.evaluate.split, evaluation.asked.means
    write_probe(feed.cache, config.seed, split, means, feed.data_digest, directory)


def _score_slices(group: _Group, opened: Sequence[_Opened], feed: Feed, stop: StopFlag | None) -> None:
    """Append the records that this rank's slices lack to their ledgers."""
    config = group.config
    left = [each for each in opened if each.scoring.missing]
    for each in left or opened:
        write_status(each.part.directory, RunState.RUNNING)
    missing = dict.fromkeys(image for each in left for image in each.scoring.missing)
    remedy = _remedy(config, group.parts[0].directory / DIRECTORY)
    with plain_memory_errors(remedy):
        device = _device(config, group.ranks)
        passes = load_for_scoring(config, device)
        scorer = _Scorer(left, device, passes.language) if left else None
    pause_s = 0.1 if sys.stderr.isatty() else 30.0
    bar = tqdm(total=len(missing), desc="evaluate", unit="img", mininterval=pause_s, disable=not group.ranks.is_rank_0)
    batches = closing(feed.batches(list(missing), config.evaluate.batch_size))
    flags = StopFlag() if stop is None else nullcontext(stop)
    with flags as flag, bar, batches as batches_of_items, passes.scoring(flag):
        for items in batches_of_items:
            assert scorer is not None, "without one, no image is missing"
            with plain_memory_errors(remedy):
                scorer.score(items, group)
            bar.update(len(items))
            if flag or passes.is_stopping:
                raise StoppedEarly(
                    f"evaluate: stopped on request; {group.parts[0].directory / DIRECTORY} keeps what is scored, "
                    "the same command scores the rest"
                )


class _Scorer:
    """Scores batches for the parts that lack records.

    Args:
        left: Those parts.
        device: `cpu` or `cuda`.
        language: The VLM's language half, there.
    """

    def __init__(self, left: Sequence[_Opened], device: str, language: LanguageHalf):
        self.left, self.evaluations = left, [each.evaluation for each in left]
        self.group: GroupScorer | None = None
        if len(left) == 1:
            self.evaluations[0].load(device, language)
            return
        scorers: list[TargetScorer] = []
        for evaluation in self.evaluations:
            assert isinstance(evaluation, TargetEvaluation), "only these share a prefix"
            scorers.append(evaluation.load(device, language, scorers[0].prompt if scorers else None))
        self.group = GroupScorer(scorers)

    def score(self, items: Sequence[Item], group: _Group) -> None:
        """Score a batch of images and append the records."""
        if self.group is None:
            (each,) = self.left
            each.scoring.append(*each.evaluation.score(items, each.scoring.missing))
            return
        members = {
            number: evaluation
            for number, (each, evaluation) in enumerate(zip(self.left, self.evaluations, strict=True))
            if isinstance(evaluation, TargetEvaluation)
            and each.part.error is None
            and any(item.key in each.scoring.missing for item in items)
        }
        if not members:
            return
        requests = next(iter(members.values())).requests(items)
        shows = any(evaluation.aspects_shown for evaluation in members.values())
        maps = self.group.first.attention(requests) if shows else []  # of the aspect modules, so the same for all
        for number, found in self.group.score(requests, [*members]).items():
            scoring, evaluation = self.left[number].scoring, members[number]
            with group.own_errors(self.left[number].part):
                if isinstance(found, InputError):
                    raise found
                records = evaluation.records(items, found)
                lacking = [n for n, record in enumerate(records) if record.sample_key in scoring.missing]
                own_maps = [maps[n] for n in lacking] if evaluation.aspects_shown else []
                scoring.append([records[n] for n in lacking], own_maps)


def _discard_results(directory: Path, tables: Sequence[Path]) -> None:
    """Remove what an earlier merge wrote, so that nobody takes it for the result of the ledgers that are there now."""
    status = read_status(directory)
    names = [METRICS, RECORDS, DATASETS, PROMPTS, PROBE, EXPLANATIONS]
    names += [STATUS] if status and status.state == RunState.FINISHED else []
    for path in (*(directory / name for name in names), *tables):
        path.unlink(missing_ok=True)


def _device(config: Config, ranks: Ranks) -> str:
    """Get the device."""
    if config.engine.num_threads:
        torch.set_num_threads(config.engine.num_threads)
    device = pick_device(config.engine.device, "engine.device")
    if device == "cuda":
        claim_gpu(ranks)
    return device


def _remedy(config: Config, ledgers: Path) -> str:
    divide = "divide the VLM over several ranks (evaluate.partition_vlm=true)"
    size = config.evaluate.batch_size
    smaller = [f"lower evaluate.batch_size, which is {size}"] if size > 1 else []
    smaller += [] if config.evaluate.partition_vlm else [divide]
    smaller += [] if config.vlm.quantization == "int4" else ["give vlm.quantization=int4"]
    return f"{', or '.join(smaller) or 'take a smaller VLM'}; {ledgers} keeps what is scored"


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
