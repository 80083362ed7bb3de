"""Evaluation: score a slice -> ledger -> records and metrics.

Ranks share nothing but files, so none waits for another, unless they share the language half
(`evaluate.partition_vlm`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from masp.config import Config
from masp.config.feature_source import evaluation_source
from masp.data.questions import questions_of
from masp.distributed.ranks import read_ranks
from masp.errors import DataError, InputError, MaspError
from masp.evaluation.aspects import AspectEvaluation
from masp.evaluation.explanations.evaluation import ExplainedEvaluation, explained_config, explains, why_not_explained
from masp.evaluation.feed import Feed, open_feed
from masp.evaluation.group.members import groups_of, why_alone
from masp.evaluation.group.parts import Part, plain_write_errors, score_parts
from masp.evaluation.group.parts import evaluate_dir as evaluate_dir
from masp.evaluation.prompts import FIRST, VALIDATION, Wording, other_evaluations, other_wordings, write_table
from masp.evaluation.protocol import Evaluation
from masp.evaluation.target import TargetEvaluation
from masp.files.text import shown
from masp.results.metrics_file import METRICS, PROMPTS, read_metrics
from masp.runtime.log import show
from masp.runtime.run_directory import noting_failure
from masp.runtime.stop import StopFlag
from masp.tracking.trackers import REMOTE, open_trackers, require_trackers
from masp.vlm.quantized.rounding import require_library

LOG = logging.getLogger(__name__)


def open_evaluation(
    config: Config,
    directory: Path,
    feed: Feed,
    known_categories: Sequence[str] = (),
    wording: Wording = FIRST,
    like: Evaluation | None = None,
) -> Evaluation:
    """What `evaluate.stage` asks for, checked; the VLM is not loaded yet.

    Args:
        config: Run configuration.
        directory: Directory of its results.
        feed: The images.
        known_categories: More that may stand in `evaluate.category_map`: those of other datasets.
        wording: How the target is asked for.
        like: Another evaluation of its group, see `TargetEvaluation`.

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
    assert like is None or isinstance(like, TargetEvaluation), "only these share anything"
    return TargetEvaluation(config, directory, feed, questions, known_categories, wording, like)


def _open_explained(
    config: Config, directory: Path, feed: Feed, known_categories: Sequence[str] = ()
) -> ExplainedEvaluation:
    """The explanations of an evaluation, checked; arguments and errors as of `open_evaluation`."""
    return ExplainedEvaluation(config, directory, feed, questions_of(config), known_categories)


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

    What is asked for beside the split itself (the validation split, other wordings, explanations) is scored before it,
    in the same way, each into a directory of its own.

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
    run = _Run(config, known_categories, tables)
    _evaluate_runs([run], stop)
    return _results([run])[0]


def evaluate_group(configs: Sequence[Config], stop: StopFlag | None = None) -> list[Path | None]:
    """Evaluate several soft prompts behind one pass of what their prompts have in common.

    Each gets the directory that `evaluate` alone gives it. One that fails does not keep the others from being scored.

    Args:
        configs: Configurations of one of the groups of `masp.evaluation.group.members.groups_of`.
        stop: See `evaluate`.

    Returns:
        Of each what `evaluate` returns.

    Raises:
        InputError, DataError, StoppedEarly: See `evaluate`; of several that fail, the error of the first, when the
            others are scored.
    """
    runs = [_Run(config) for config in configs]
    _evaluate_runs(runs, stop)
    return _results(runs)


def evaluate_together(configs: Sequence[Config], stop: StopFlag | None = None) -> list[Path | None]:
    """Evaluate runs, those that share a prefix as groups and the others alone; see `evaluate_group`.

    Args:
        configs: Configurations with different directories.
        stop: See `evaluate`.
    """
    groups = groups_of(configs)
    if read_ranks().is_rank_0 and len(configs) > 1:
        show(f"evaluate: {len(configs)} evaluations in groups of {' + '.join(str(len(group)) for group in groups)}")
        for group in groups:
            if why := why_alone(configs[group[0]]):
                show(f"  {evaluate_dir(configs[group[0]])}: alone, since {why}")
    runs = [_Run(config) for config in configs]
    for group in groups:
        try:
            _evaluate_runs([runs[number] for number in group], stop)
        except (InputError, DataError) as error:
            runs[group[0]].error = error
    return _results(runs)


@dataclass
class _Run:
    """An evaluation with what is asked for beside it."""

    config: Config
    known_categories: Sequence[str] = ()
    tables: Sequence[Path] = ()
    wordings: list[Wording] = field(default_factory=list)
    """Those but the first."""
    before: list[Part] = field(default_factory=list)
    """What is scored before anything else: the validation split."""
    worded: list[Part] = field(default_factory=list)
    """The split in other wordings."""
    explained: list[Part] = field(default_factory=list)
    is_whole: bool = False
    """Whether everything is scored, on all ranks."""
    error: MaspError | None = None
    """Why it failed, where others went on."""

    def __post_init__(self) -> None:
        self.open = partial(open_evaluation, known_categories=self.known_categories)
        self.whole = Part(self.config, self.open, self.tables)

    @property
    def directory(self) -> Path:
        return self.whole.directory

    @property
    def has_parts(self) -> bool:
        asked = self.config.evaluate
        return asked.validation or asked.prompts == "all" or explains(self.config)

    def find_parts(self, feed: Feed, like: Evaluation | None, is_shared: bool) -> Evaluation:
        """Find what is scored beside the split; returns its evaluation, opened and checked."""
        evaluation = self.open(self.config, self.directory, feed, like=like)
        self.wordings = _wordings(self.config, evaluation, is_shared)
        for part, wording in other_evaluations(self.config, self.directory, self.wordings):
            if wording == FIRST:
                self.before.append(Part(part, self.open, self.tables))
            else:
                tables = [*self.tables, self.directory / PROMPTS]
                self.worded.append(Part(part, partial(self.open, wording=wording), tables))
        if explains(self.config):
            open_explained = partial(_open_explained, known_categories=self.known_categories)
            self.explained = [Part(explained_config(self.config, self.directory), open_explained, self.tables)]
        return evaluation

    def fail(self, error: MaspError, directory: Path) -> None:
        """Note an error in one of its parts, in whose directory it stands already."""
        self.error = self.error or error
        if directory != self.directory:
            with suppress(MaspError), noting_failure(self.directory):
                raise error


def _evaluate_runs(runs: Sequence[_Run], stop: StopFlag | None) -> None:
    """Score what is asked for beside the split of each, then the split; the runs share a prefix, or there is one."""
    for run in runs:
        if read_ranks().is_rank_0 and (why := why_not_explained(run.config)):
            LOG.info("%s", why)
    with_parts = [run for run in runs if run.has_parts]
    with ExitStack() as stack:
        for run in with_parts:
            stack.enter_context(noting_failure(run.directory))
            stack.enter_context(plain_write_errors(run.directory))
        is_shared = bool(with_parts) and why_alone(runs[0].config) is None
        _find_parts(runs, with_parts, is_shared)
        _score([(run, part) for run in runs for part in run.before], stop)
        worded = [(run, part) for run in runs for part in run.worded]
        alone = [(run, part) for run in runs for part in run.explained]
        wholes = [(run, run.whole) for run in runs]
        for one in [*([] if is_shared else worded), *alone]:
            _score([one], stop)
        _score([*(worded if is_shared else []), *wholes], stop)
        for run in runs:
            if run.error is None and run.whole.metrics is not None:
                run.is_whole = not run.wordings or write_table(run.directory, run.wordings) is not None
    for run in runs:
        if run.is_whole:
            _track(run.config, run.directory)


def _find_parts(runs: Sequence[_Run], with_parts: Sequence[_Run], is_shared: bool) -> None:
    if not with_parts:
        return
    feed, like = open_feed(runs[0].config), None
    for run in with_parts:
        try:
            found = run.find_parts(feed, like, is_shared)
            like = like or found
        except (InputError, DataError) as error:
            if len(runs) == 1:
                raise
            run.fail(error, run.directory)


def _score(parts: Sequence[tuple[_Run, Part]], stop: StopFlag | None) -> None:
    """Score parts of runs that have not failed, together."""
    parts = [(run, part) for run, part in parts if run.error is None]
    if not parts:
        return
    if read_ranks().is_rank_0:
        is_one = all(run is parts[0][0] for run, _ in parts)
        for run, part in parts:
            if part is not run.whole:
                show(f"evaluate: {part.directory.relative_to(run.directory) if is_one else part.directory}")
    score_parts([part for _, part in parts], stop)
    for run, part in parts:
        if part.error is not None:
            run.fail(part.error, part.directory)


def _results(runs: Sequence[_Run]) -> list[Path | None]:
    """What each wrote, unless one has failed."""
    for run in runs:
        if run.error is not None:
            raise run.error
    return [run.whole.metrics if run.is_whole else None for run in runs]


def _track(config: Config, directory: Path) -> None:
    """Tell the trackers of the run the final metrics; the rank that found all samples scored does."""
    if not set(config.logging.trackers) & set(REMOTE):
        return
    output_dir, found = Path(config.output_dir).resolve(), directory.resolve()
    part = found.relative_to(output_dir).as_posix() if found.is_relative_to(output_dir) else found.name
    metrics = read_metrics(directory / METRICS, [])
    with open_trackers(config, part, metrics.digests()) as trackers:
        trackers.summarize(metrics.numbers())


def _wordings(config: Config, evaluation: Evaluation, is_shared: bool) -> list[Wording]:
    """The wordings but the first, where they are asked for."""
    if config.evaluate.prompts == "first" or not isinstance(evaluation, TargetEvaluation):
        return []
    found = other_wordings(evaluation.questions, evaluation.categories)
    if read_ranks().is_rank_0:
        time = "behind one pass of the prefix" if is_shared else f"about {len(found) + 1} times the time of one"
        show(f"evaluate: {len(found) + 1} wordings of the question for {len(evaluation.images)} images: {time}")
    return found
