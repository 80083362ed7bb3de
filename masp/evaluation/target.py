"""The evaluation of the target: which categories are asked, one record per image.

A soft prompt was trained to name certain categories. On a dataset that sorts its images into others, nothing says what
a right answer is; so each of its categories must be one that was trained, or be in `evaluate.category_map`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from masp.artifacts.trained import Trained, load_trained
from masp.cache.fingerprint import differences, fingerprint_digest, layout_notes
from masp.config import Config
from masp.config.aspects import VISION_FEATURES
from masp.config.feature_source import evaluation_source
from masp.data.questions import EMOTION, Questions
from masp.errors import InputError
from masp.evaluation.feed import Feed, Item, machines_of, mixed_notes
from masp.evaluation.findings import cited, count_split, left_out_notes, summary_lines, target_findings
from masp.evaluation.prompts import FIRST, Wording
from masp.evaluation.protocol import Evaluation
from masp.evaluation.scorers import DECISION, Score, ScoreRequest, TargetScorer
from masp.files.text import MAX_REASON, listed_apart, shortened, shown
from masp.models.likelihood import cut_short
from masp.results.attention_maps import read_attention
from masp.results.ledger import DIRECTORY, itself
from masp.results.ledger_format import Record, generated_problem, likelihood_problem
from masp.results.ledgers.table import RecordTable
from masp.results.metrics import compute_metrics
from masp.results.metrics_file import METRICS, write_metrics
from masp.results.probabilities.distributions import asked_distributions
from masp.results.records import FILE, write_target_records
from masp.runtime.log import show
from masp.taxonomy import normalize_category
from masp.vlm.language import LanguageHalf
from masp.vlm.preprocessor import load_token_grid
from masp.vlm.prompt import Prompt, load_prompt

_KEY = "evaluate.category_map"


@dataclass(frozen=True)
class Asked:
    """What a dataset's categories mean in an evaluation."""

    means: dict[str, str]
    """Category of the dataset -> category that is asked. One that is not here is left out."""
    categories: tuple[str, ...]
    """Those that are asked, in the order of the question."""
    is_mapped: bool
    """Whether that is anything but the dataset's own categories, or some of these were not trained."""

    def shown(self) -> dict[str, str]:
        """The map for the record; empty where there is none."""
        return dict(self.means) if self.is_mapped else {}


class TargetEvaluation(Evaluation):
    """The target, by default the emotion, of every image of a split.

    Args:
        config: Run configuration.
        directory: Directory of its results.
        feed: The images.
        questions: Questions.
        known_categories: Categories of other datasets that are evaluated with the same `evaluate.category_map`.
        wording: How the target is asked for.
        like: Evaluation of another soft prompt on the same images, with the same aspect modules, which this one takes
            over; None loads them.

    Raises:
        InputError: aspect modules or soft prompt are missing or do not fit, or the categories were not trained and no
            map says what to do.
    """

    what = "samples"
    keys_of = staticmethod(itself)

    def __init__(
        self,
        config: Config,
        directory: Path,
        feed: Feed,
        questions: Questions,
        known_categories: Sequence[str] = (),
        wording: Wording = FIRST,
        like: TargetEvaluation | None = None,
    ):
        self.config, self.directory, self.feed, self.questions = config, directory, feed, questions
        held = None if like is None else (like.trained.aspects, like.trained.aspect_lineage)
        self.trained: Trained = load_trained(config, feed.hidden_size, feed.model, held)
        lineage = self.trained.soft_prompt_lineage
        self.asked = map_categories(
            feed.categories,
            lineage.categories if lineage else (),
            parse_map(config.evaluate.category_map),
            f"{config.dataset.name} in {config.dataset.root}",
            known_categories,
        )
        self.categories = self.asked.categories
        self.question = wording.question(questions, self.categories)
        if like is not None and like.asked.means == self.asked.means:
            self.label_of: dict[str, str] = like.label_of  # of millions of images, kept once
        else:
            self.label_of = {
                key: self.asked.means[label]
                for key, label in zip(feed.keys, feed.labels, strict=True)
                if label in self.asked.means
            }
        self.images = list(self.label_of)
        self.split = count_split(feed, self.asked.means)
        check_lengths(config, self.categories)
        self.length_notes = length_notes(config, self.trained.layout, self.categories)
        layout = layout_notes(self.trained.layout, feed.model)
        quantization = self.trained.quantization_notes(config)
        self.data_notes = [*feed.notes(), *left_out_notes(self.split), *self.length_notes, *layout, *quantization]
        self.data_notes += self.trained.subset_notes()
        self.notes = [*machine_notes(self.trained, feed.machine), *self.data_notes]
        self.without = _left_out(config, self.trained)
        self.aspects_shown = list(config.aspects) if config.evaluate.attention and self.trained.aspects else []
        if self.aspects_shown:
            load_token_grid(config.vlm, "evaluate.attention = true")  # before anything large is loaded
        self.identity = self._identity()
        self.scorer: TargetScorer | None = None

    def load(self, device: str, language: LanguageHalf, prompt: Prompt | None = None) -> TargetScorer:
        self.scorer = TargetScorer(
            self.config, self.trained, self.questions, self.categories, device, self.question, language, prompt
        )
        return self.scorer

    def score(
        self, items: Sequence[Item], missing: Mapping[str, Sequence[str]]
    ) -> tuple[list[Record], list[np.ndarray]]:
        assert self.scorer is not None, "load comes first"
        requests = self.requests(items)
        records = self.records(items, self.scorer.score(requests))
        return records, self.scorer.attention(requests) if self.aspects_shown else []

    def requests(self, items: Sequence[Item]) -> list[ScoreRequest]:
        """The question about each image."""
        return [
            ScoreRequest(item.features, item.layout, item.aspect_tokens, name=item.key, without=self.without)
            for item in items
        ]

    def records(self, items: Sequence[Item], scores: Sequence[Score]) -> list[Record]:
        """The record of each image."""
        return [
            Record(item.key, self.label_of[item.key], **vars(score), source=item.source)
            for item, score in zip(items, scores, strict=True)
        ]

    def problem(self, record: Record) -> str | None:
        label = self.label_of[record.sample_key]
        if record.label != label:
            return f"has label {shown(record.label)}; the dataset says {shown(label)}"
        self.feed.check_unchanged(record.sample_key, record.source)
        if self.aspects_shown and (record.attention is None or record.attention.shape[0] != len(self.aspects_shown)):
            return f"has no attention maps of {len(self.aspects_shown)} aspects"
        if self.config.evaluate.scoring == "likelihood":
            return likelihood_problem(record, self.categories)
        if record.prediction is not None and record.prediction not in self.categories:
            valid = shortened(", ".join(self.categories), MAX_REASON)
            return f"predicts {shown(record.prediction)}, which is none of {valid}"
        return generated_problem(record)

    def finish(self, records: RecordTable) -> Path:
        config, ledgers = self.config, self.directory / DIRECTORY
        machines = machines_of(self.feed, records)
        notes = dict.fromkeys(note for machine in machines for note in machine_notes(self.trained, machine))
        distributions = self.distributions()
        metrics = compute_metrics(records, self.categories, len(self.images), config.seed, distributions)
        shown = records if self.aspects_shown else ()
        maps = (read_attention(ledgers, record.attention) for record in shown if record.attention)
        digests = self.feed.digests()
        path = self.directory / FILE
        written = write_target_records(path, records, self.categories, self.aspects_shown, maps, digests, distributions)
        results = {
            **metrics.to_json(),
            **target_findings(
                self.feed,
                self.directory,
                self.identity,
                config.evaluate.split,
                self.split,
                self.asked.means,
                metrics,
                records,
            ),
            "stage": "stage2",
            **target_entry(config),
            "question": self.question,
            "dataset": config.dataset.name,
            "split": config.evaluate.split,
            "scoring": config.evaluate.scoring,
            "source": evaluation_source(config),
            "layout": self.trained.layout,
            "vision_features": self.trained.vision_features,
            **({"without": sorted(self.without)} if self.without else {}),
            **quantization_entry(config),
            "category_map": self.asked.shown(),
            "notes": [*notes, *mixed_notes(machines), *self.data_notes, *self.feed.warnings()],
            "time": time.time(),
            "lineage": {
                **self.trained.lineage(),
                **cited(config, self.feed, {self.questions.target: self.questions.target_templates}),
                "features": {"model": self.feed.model, "machine": machines[0], "other_machines": machines[1:]},
                "records": written,
                "data": vars(digests),
            },
        }
        path = self.directory / METRICS
        write_metrics(path, results)
        show(*summary_lines(results, path))
        return path

    def distributions(self) -> np.ndarray | None:
        """`[N, C]`: the distribution of each image over the categories that are asked, zeros where it has none."""
        found = self.feed.distributions
        if found is None:
            return None
        kept = np.array([label in self.asked.means for label in self.feed.labels])
        found = found if kept.all() else found[kept]
        found = asked_distributions(found, self.feed.categories, self.asked.means, self.categories)
        return found if found.any() else None

    def _identity(self) -> dict[str, Any]:
        """Everything that a score depends on; ranks and batch size do not belong to it."""
        config, trained = self.config, self.trained
        identity: dict[str, Any] = {
            "model": fingerprint_digest(self.feed.model),
            "samples": self.feed.data_digest,
            "split": config.evaluate.split,
            "categories": list(self.categories),
            "question": self.question,
            "scoring": config.evaluate.scoring,
            "max_new_tokens": config.evaluate.max_new_tokens if config.evaluate.scoring == "generate" else None,
            "precision": config.engine.precision,
            "source": evaluation_source(config),
            "layout": trained.layout,
            "aspects": list(config.aspects) if trained.aspects is not None else [],
            "aspect_digest": trained.aspect_lineage.digest if trained.aspect_lineage else None,
            "soft_prompt_digest": trained.soft_prompt_lineage.digest if trained.soft_prompt_lineage else None,
        }
        # said only where they are asked for, so that ledgers from before there was such a choice go on
        if config.evaluate.scoring == "generate":
            identity["decision"] = DECISION
        if self.asked.is_mapped:
            identity["category_map"] = self.asked.shown()
        if self.aspects_shown:
            identity["attention"] = True
        if not trained.vision_features:
            identity["vision_features"] = False
        if self.without:
            identity["without"] = sorted(self.without)
        return identity | target_entry(config) | quantization_entry(config)


def _left_out(config: Config, trained: Trained) -> frozenset[str]:
    """What `evaluate.without` leaves out of every prompt.

    Raises:
        InputError: The prompt has no such part, or would have nothing of the image.
    """
    without = config.evaluate.without
    parts = [] if trained.aspects is None else list(trained.aspects.aspects)
    parts += [VISION_FEATURES] if trained.vision_features else []
    for name in without:
        if name not in parts:
            raise InputError(
                f"evaluate.without = {shown(without)}: {shown(name)} is not in the prompt, which has {', '.join(parts)}"
            )
    if without and len(without) == len(parts):
        raise InputError(f"evaluate.without = {shown(without)}: nothing of the image would be in the prompt")
    return frozenset(without)


def target_entry(config: Config) -> dict[str, str]:
    """The target, for identity and metrics; empty for the emotion, as it was before there were others."""
    return {} if config.target.name == EMOTION else {"target": config.target.name}


def quantization_entry(config: Config) -> dict[str, str]:
    """How the language half is quantized, for identity and metrics; empty where it is not, as it was before."""
    return {} if config.vlm.quantization == "none" else {"quantization": config.vlm.quantization}


def check_lengths(config: Config, categories: Sequence[str]) -> None:
    """Refuse to let the model write a category for which it has too few tokens: that could never be right.

    Raises:
        InputError: Names the longest category and how many tokens it has.
    """
    if config.evaluate.scoring != "generate":
        return
    prompt = load_prompt(config.vlm.path)
    longest = max(categories, key=lambda category: len(prompt.answer(category)))
    num_tokens = len(prompt.answer(longest))
    if num_tokens > config.evaluate.max_new_tokens:
        raise InputError(
            f"evaluate.max_new_tokens = {config.evaluate.max_new_tokens}: the category {shown(longest)} has "
            f"{num_tokens} tokens and could never be written; must be at least {num_tokens}"
        )


def length_notes(config: Config, layout: str, answers: Sequence[str]) -> list[str]:
    """Which answers can never win, since another begins them and the layout counts no end token."""
    if layout != "released" or config.evaluate.scoring != "likelihood":
        return []
    prompt = load_prompt(config.vlm.path)
    return [
        f"layout 'released' counts no end token: {answers[long]!r} never scores above its beginning, {answers[short]!r}"
        for short, long in cut_short([prompt.answer(answer) for answer in answers])
    ]


def machine_notes(trained: Trained, machine: dict[str, Any]) -> list[str]:
    """How the machine that makes the features differs from the one that made those the soft prompt was trained on."""
    lineage = trained.soft_prompt_lineage or trained.aspect_lineage
    if lineage is None or lineage.machine is None:
        return []
    return [
        f"features come from another machine than those of training: {name} was {old!r}, is {new!r}"
        for name, old, new in differences(lineage.machine, machine)
    ]


def parse_map(entries: Iterable[str] | None) -> dict[str, str | None]:
    """`["content=contentment", "surprise="]` as a dictionary; None stands for leaving a category out.

    Raises:
        InputError: an entry is not valid, or a category has two.
    """
    found: dict[str, str | None] = {}
    for entry in entries or ():
        theirs, equals, ours = entry.partition("=")
        name = normalize_category(theirs)
        if not equals or not name:
            raise InputError(
                f"{_KEY}: {shown(entry)} must be THEIRS=OURS, such as content=contentment, or THEIRS= to leave out"
            )
        if name in found:
            raise InputError(f"{_KEY}: {shown(name)} is on the left of two entries; each category means one thing")
        found[name] = normalize_category(ours) or None
    return found


def map_categories(
    own: Sequence[str],
    trained: Sequence[str],
    mapping: dict[str, str | None],
    dataset: str,
    known: Iterable[str] = (),
) -> Asked:
    """Decide what is asked.

    Args:
        own: Categories of the dataset.
        trained: Categories that the soft prompt was trained on; empty where it does not say or there is none.
        mapping: See `parse_map`.
        dataset: What to call the dataset in errors.
        known: More categories that may be in the map: those of other datasets in the same call.

    Raises:
        InputError: a category was not trained and is in no entry, an entry names nothing, or leads to a category
            that was not trained.
    """
    own = tuple(own)
    foreign = sorted(set(mapping) - set(own) - set(known))
    if foreign:
        name, has = listed_apart(foreign[:1], own)
        raise InputError(f"{_KEY}: '{name}' is not a category of {dataset}; it has {has}")
    unmapped = [c for c in own if trained and c not in trained and c not in mapping]
    if unmapped:
        names, known = listed_apart(unmapped, trained)
        raise InputError(
            f"{_KEY}: {dataset} has categories that the soft prompt was not trained on: {names} (trained: "
            f"{known}); say what each means, such as {unmapped[0]}={trained[0]}, "
            f"{unmapped[0]}={unmapped[0]} to ask for it nevertheless, or {unmapped[0]}= to leave its images out"
        )
    means = {c: target for c in own if (target := mapping.get(c, c)) is not None}
    for theirs, target in means.items():
        if trained and target not in trained and target != theirs:
            name, known = listed_apart([target], trained)
            raise InputError(
                f"{_KEY}: {theirs}={shortened(target)}: the soft prompt was not trained on '{name}'; it was on {known}"
            )
    if not means:
        raise InputError(f"{_KEY}: leaves out every category of {dataset}")
    if tuple(means) == own and all(theirs == ours for theirs, ours in means.items()):
        return Asked(means, own, is_mapped=not set(own) <= set(trained) if trained else False)
    # as trained, then the dataset's own, then what only the map names; each once, at its first place
    order = dict.fromkeys([*trained, *own, *mapping.values()])
    asked = set(means.values())
    return Asked(means, tuple(category for category in order if category in asked), is_mapped=True)
