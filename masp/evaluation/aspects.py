"""The evaluation of stage 1: every annotated aspect of every image, answered from its aspect tokens.

An aspect whose answers are a known few (a level, expressions) is closed: the likelihood of every answer is compared, as
for emotions. An aspect with lists or with more answers is open: the model writes its answer.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from masp.artifacts.trained import load_trained_aspects, quantization_notes
from masp.cache.fingerprint import fingerprint_digest, layout_notes
from masp.config import Config, load_aspects
from masp.config.aspects import Aspect
from masp.config.feature_source import evaluation_source
from masp.data.answer_table import AnswerTable
from masp.data.questions import Questions
from masp.errors import InputError
from masp.evaluation.feed import Feed, Item, digest_of_rows, machines_of, mixed_notes
from masp.evaluation.findings import cited
from masp.evaluation.protocol import Evaluation
from masp.evaluation.scorers import DECISION, AspectScorer, ScoreRequest
from masp.evaluation.target import length_notes, quantization_entry
from masp.files.text import shown
from masp.results.aspect_metrics import OpenMetrics, compute_aspect_metrics
from masp.results.aspect_records import write_aspect_records
from masp.results.breakdown import SplitCounts
from masp.results.ledger_format import Record, generated_problem, likelihood_problem
from masp.results.ledgers.table import RecordTable
from masp.results.metrics_file import METRICS, write_metrics
from masp.results.records import FILE
from masp.runtime.log import show
from masp.vlm.language import LanguageHalf
from masp.vlm.prompt import Prompt, load_prompt

MAX_CLOSED = 64
"""An aspect with more different answers than these is open."""


class AspectEvaluation(Evaluation):
    """The answers of aspect modules for a split.

    Args:
        config: Run configuration.
        directory: Directory of its results.
        feed: The images.
        questions: Questions; evaluation asks the first template of each aspect.

    Raises:
        InputError: there are no aspect modules, they do not fit, maps are asked for, or no image of the split is
            annotated.
    """

    what = "answers"

    def __init__(self, config: Config, directory: Path, feed: Feed, questions: Questions):
        if config.evaluate.attention:
            raise InputError(
                "evaluate.attention = true: only evaluations of stage 2 keep where aspects look; take "
                "evaluate.attention=false with evaluate.stage=stage1"
            )
        self.config, self.directory, self.feed, self.questions = config, directory, feed, questions
        modules, lineage = load_trained_aspects(config, feed.hidden_size, feed.model)
        if modules is None or lineage is None:
            raise InputError(
                "evaluate.stage = 'stage1': scores aspect modules, but aspects or checkpoint.aspect say none"
            )
        self.modules, self.lineage = modules, lineage
        self.layout = lineage.layout or config.stage1.layout
        annotations, seen = feed.annotations(), feed.different_answers()
        asked = annotations.has_any(config.aspects)
        self.images = list(itertools.compress(feed.keys, asked.tolist()))
        if not self.images:
            raise InputError(
                f"evaluate.split = {shown(config.evaluate.split)}: no image of it is annotated with any of "
                f"{', '.join(config.aspects)}; stage 1 cannot be evaluated there{'; '.join(['', *feed.aspect_notes])}"
            )
        defined = load_aspects(config.aspect_definitions)
        self.closed = {
            aspect: choices
            for aspect in config.aspects
            if (choices := closed_answers(defined[aspect], seen.get(aspect, set())))
        }
        """Aspect -> answers that are compared; the other aspects are open."""
        answers = {aspect: seen[aspect] for aspect in config.aspects if aspect in seen}
        self.longest = num_tokens_of_longest(load_prompt(config.vlm.path), answers)
        self.length_notes = [
            f"{aspect}: {note}"
            for aspect, choices in self.closed.items()
            for note in length_notes(config, self.layout, choices)
        ]
        self.layout_notes = [
            *layout_notes(self.layout, feed.model),
            *quantization_notes(config.vlm.quantization, [lineage]),
        ]
        self.notes = [*feed.notes(), *feed.aspect_notes, *self.length_notes, *self.layout_notes]
        self.identity = self._identity(annotations.take(np.flatnonzero(asked)))
        self.scorer: AspectScorer | None = None

    def keys_of(self, image: str) -> Sequence[str]:
        """A record for each of its annotated aspects. A sample key holds no `#`."""
        answers = self.feed.answers_of(image)
        return [f"{image}#{aspect}" for aspect in self.config.aspects if aspect in answers]

    def load(self, device: str, language: LanguageHalf) -> None:
        self.scorer = AspectScorer(
            self.config, self.modules, self.layout, self.questions, self.closed, self.longest, device, language
        )

    def score(
        self, items: Sequence[Item], missing: Mapping[str, Sequence[str]]
    ) -> tuple[list[Record], list[np.ndarray]]:
        assert self.scorer is not None, "load comes first"
        asked = [(item, key, key.rpartition("#")[2]) for item in items for key in missing[item.key]]
        requests = [ScoreRequest(item.features, item.layout, aspect=aspect, name=key) for item, key, aspect in asked]
        records = [
            Record(key, item.answers[aspect], **vars(score), source=item.source)
            for (item, key, aspect), score in zip(asked, self.scorer.score(requests), strict=True)
        ]
        return records, []

    def problem(self, record: Record) -> str | None:
        label = self.feed.answers_of(record.image_key)[record.aspect]
        if record.label != label:
            return f"has label {shown(record.label)}; the dataset says {shown(label)}"
        self.feed.check_unchanged(record.image_key, record.source)
        if record.aspect in self.closed:
            return likelihood_problem(record, self.closed[record.aspect])
        return generated_problem(record)

    def finish(self, records: RecordTable) -> Path:
        config = self.config
        machines = machines_of(self.feed, records)
        written = write_aspect_records(self.directory / FILE, records, self.closed)
        metrics = compute_aspect_metrics(records, config.aspects, self.closed, len(records), config.seed)
        # an image in quarantine could have had an answer to every aspect
        split = SplitCounts(len(self.images), self.feed.num_quarantined)
        results = {
            **metrics.to_json(),
            **split.to_json(),
            **split.shares(metrics.num_samples, metrics.num_correct, len(config.aspects)),
            "num_not_annotated": len(self.feed.keys) - len(self.images),
            "stage": "stage1",
            "dataset": config.dataset.name,
            "split": config.evaluate.split,
            "source": evaluation_source(config),
            "layout": self.layout,
            **quantization_entry(config),
            "notes": [
                *mixed_notes(machines),
                *self.feed.notes(),
                *self.feed.aspect_notes,
                *self.feed.warnings(),
                *self.length_notes,
                *self.layout_notes,
            ],
            "time": time.time(),
            "lineage": {
                "aspect": self.lineage.to_json(),
                **cited(config, self.feed, {name: self.questions.templates(name) for name in config.aspects}),
                "features": {"model": self.feed.model, "machine": machines[0], "other_machines": machines[1:]},
                "records": written,
            },
        }
        path = self.directory / METRICS
        write_metrics(path, results)
        for aspect, values in metrics.per_aspect.items():
            low, high = values.accuracy_ci95
            how = "of the likelihood"
            if isinstance(values, OpenMetrics):
                how = f"exact, token F1 {values.token_f1:.4f}"
            show(f"evaluate: {aspect}: {values.accuracy:.4f} ({low:.4f} to {high:.4f}) {how}")
        lost = ""
        if split.num_quarantined:
            lost = (
                f" ({split.num_quarantined} images in quarantine; at least {results['accuracy_of_split']:.4f} with "
                "all their answers counted as wrong)"
            )
        show(f"evaluate: stage 1: {metrics.accuracy:.4f} of {metrics.num_samples} answers right{lost}: {path}")
        return path

    def _identity(self, annotations: AnswerTable) -> dict[str, Any]:
        """Everything that a score depends on.

        Args:
            annotations: Answers of `images`.
        """
        config = self.config
        answers = zip(self.images, annotations.rows(), strict=True)
        identity = {
            "stage": "stage1",
            "model": fingerprint_digest(self.feed.model),
            "samples": self.feed.data_digest,
            "answers": digest_of_rows([key, *sorted(found.items())] for key, found in answers),
            "closed": {aspect: list(choices) for aspect, choices in self.closed.items()},
            "longest": self.longest,
            "split": config.evaluate.split,
            "questions": {aspect: self.questions.aspect_first(aspect) for aspect in config.aspects},
            "precision": config.engine.precision,
            "source": evaluation_source(config),
            "layout": self.layout,
            "aspects": list(config.aspects),
            "aspect_digest": self.lineage.digest,
        }
        if any(aspect not in self.closed for aspect in self.longest):
            identity["decision"] = DECISION
        return identity | quantization_entry(config)


def num_tokens_of_longest(prompt: Prompt, answers: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """Aspect -> how many tokens its longest answer has; which has the most letters is another question."""
    return {aspect: max(len(prompt.answer(text)) for text in texts) for aspect, texts in answers.items()}


def closed_answers(aspect: Aspect, seen: set[str]) -> tuple[str, ...]:
    """The answers that are compared for an aspect; none where it is open.

    A level has its words. A string has the different answers of the dataset, since these are what its modules learned:
    a vocabulary may have hundreds that no image of it shows. Where the dataset has only one answer, which says nothing
    of what else there might have been, the vocabulary and that answer are compared.

    Args:
        aspect: The aspect.
        seen: Its different answers in the dataset.
    """
    if aspect.kind == "level":
        return aspect.vocabulary
    if aspect.kind == "list" or not seen:
        return ()
    choices = seen if len(seen) > 1 else seen.union(aspect.vocabulary)
    return tuple(sorted(choices)) if 2 <= len(choices) <= MAX_CLOSED else ()
