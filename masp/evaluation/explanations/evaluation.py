"""Explanations of a split: for each of its images, or a sample of them, the scores of every prompt that leaves a part
out, and the answer to every aspect.

A record is one prompt of one image: `KEY#whole` is what is explained, `KEY#without:scene` and so on leave parts out,
and `KEY#answer:scene` asks about an aspect. Images are asked one at a time, so that the numbers of an image depend on
neither the others nor the number of ranks.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from masp.artifacts.trained import prompt_aspects
from masp.config import Config
from masp.data.keys import in_order_of_digests
from masp.data.questions import Questions
from masp.errors import InputError
from masp.evaluation.explain import Explainer, Found, answering, explanation, left_out, why_no_attention
from masp.evaluation.feed import Feed, Item, digest_of_rows, machines_of, mixed_notes
from masp.evaluation.protocol import Evaluation
from masp.evaluation.scorers import DECISION, Score, ScoreRequest, TargetScorer, written_answer
from masp.evaluation.target import TargetEvaluation, machine_notes
from masp.files.text import shown
from masp.files.typed import as_json
from masp.results.attention_maps import read_attention
from masp.results.explanations.averages import averages_of
from masp.results.explanations.explanations_file import (
    DIRECTORY,
    FILE,
    NUM_SAMPLE,
    VERSION,
    ExplanationsFile,
    image_entry,
    write_explanations,
)
from masp.results.ledger import DIRECTORY as LEDGERS
from masp.results.ledger_format import Record, likelihood_problem
from masp.results.ledgers.table import RecordTable
from masp.results.records import FILE as RECORDS
from masp.results.records import write_target_records
from masp.runtime.log import show
from masp.vlm.language import LanguageHalf

_WHOLE = "whole"
_WITHOUT = "without:"
_ANSWER = "answer:"


def why_not_explained(config: Config) -> str | None:
    """Why `evaluate.explain` explains nothing, where it asks for something."""
    if config.evaluate.explain == "none":
        return None
    asked = f"evaluate.explain = {shown(config.evaluate.explain)}: nothing is explained"
    if config.evaluate.stage != "stage2":
        return f"{asked}; only evaluations of stage 2 have predictions to explain"
    if not prompt_aspects(config):
        return f"{asked}; there are no aspect modules to explain predictions with"
    return None


def explains(config: Config) -> bool:
    """Whether predictions are explained beside the scores."""
    return config.evaluate.explain != "none" and why_not_explained(config) is None


def explained_config(config: Config, directory: Path) -> Config:
    """The configuration of the explanations of an evaluation.

    Args:
        config: Configuration of the evaluation.
        directory: Its directory.

    Raises:
        InputError: Parts are left out of all prompts already.
    """
    if config.evaluate.without:
        raise InputError(
            f"evaluate.explain = {shown(config.evaluate.explain)}: explanations leave out each part of the prompt, and "
            f"evaluate.without = {shown(config.evaluate.without)} some parts of every prompt; give one of the two"
        )
    part = copy.deepcopy(config)
    asked = part.evaluate
    asked.validation = asked.linear_probe = asked.attention = False
    asked.prompts, asked.scoring, asked.batch_size = "first", "likelihood", 1
    asked.output_dir = str(directory / DIRECTORY)
    return part


def chosen_images(images: Sequence[str], which: Literal["sample", "all"]) -> list[str]:
    """The images that are explained, in their order: a pure function of the sample keys.

    Args:
        images: Sample keys of those that are scored.
        which: `sample`: up to `NUM_SAMPLE` of them; `all`.
    """
    if which == "all" or len(images) <= NUM_SAMPLE:
        return list(images)
    chosen = set(in_order_of_digests(images)[:NUM_SAMPLE])
    return [image for image in images if image in chosen]


class ExplainedEvaluation(Evaluation):
    """Explanations of predictions for images of a split.

    Args:
        config: Configuration, see `explained_config`.
        directory: Directory of its results.
        feed: The images.
        questions: Questions.
        known_categories: See `TargetEvaluation`.

    Raises:
        InputError: See `TargetEvaluation`.
    """

    what = "prompts"

    def __init__(
        self, config: Config, directory: Path, feed: Feed, questions: Questions, known_categories: Sequence[str] = ()
    ):
        self.config, self.directory, self.feed, self.questions = config, directory, feed, questions
        self.target = TargetEvaluation(config, directory, feed, questions, known_categories)
        modules = self.target.trained.aspects
        assert modules is not None, "explains() comes first"
        self.aspects, self.categories = list(modules.aspects), self.target.categories
        self.which: Literal["sample", "all"] = "sample" if config.evaluate.explain == "sample" else "all"
        self.images = chosen_images(self.target.images, self.which)
        parts = left_out(self.aspects, self.target.trained.vision_features)
        self.parts = {_WITHOUT + "+".join(sorted(part)) if part else _WHOLE: part for part in parts}
        """What follows the key of an image -> what is left out of its prompt."""
        self.asked = {_ANSWER + aspect: aspect for aspect in self.aspects}
        """What follows the key of an image -> the aspect that is asked about."""
        self.how = answering(config, feed.different_answers())
        self.why_no_attention = why_no_attention(config)
        self.notes = [*self.target.notes, *feed.aspect_notes, *self._attention_notes()]
        self.identity = self._identity()
        self.explainer: Explainer | None = None

    def keys_of(self, image: str) -> Sequence[str]:
        """A record for each of its prompts, then one for each aspect. A sample key holds no `#`."""
        return [f"{image}#{end}" for end in (*self.parts, *self.asked)]

    def load(self, device: str, language: LanguageHalf) -> None:
        trained, question = self.target.trained, self.target.question
        scorer = TargetScorer(self.config, trained, self.questions, self.categories, device, question, language)
        self.explainer = Explainer(self.config, trained, self.questions, scorer, language, self.how)

    def score(
        self, items: Sequence[Item], missing: Mapping[str, Sequence[str]]
    ) -> tuple[list[Record], Sequence[np.ndarray | None]]:
        assert self.explainer is not None, "load comes first"
        records: list[Record] = []
        maps: list[np.ndarray | None] = []
        for item in items:
            request = ScoreRequest(item.features, item.layout, item.aspect_tokens, name=item.key)
            # all of an image, of which a kill may have left a part: it is asked in one batch
            (found,) = self.explainer.find([request])
            for key in missing[item.key]:
                _, end = key.split("#")
                score = found.answers[self.asked[end]] if end in self.asked else found.scores[self.parts[end]]
                records.append(Record(key, self._label(item.key, end), **vars(score), source=item.source))
                maps.append(found.attention if end == _WHOLE else None)
        return records, [] if self.why_no_attention else maps

    def _label(self, image: str, end: str) -> str:
        """The right category; of an aspect the annotated answer, empty where there is none."""
        if end in self.asked:
            return self.feed.answers_of(image).get(self.asked[end], "")
        return self.target.label_of[image]

    def problem(self, record: Record) -> str | None:
        end, label = record.aspect, self._label(record.image_key, record.aspect)
        if record.label != label:
            return f"has label {shown(record.label)}; the dataset says {shown(label)}"
        self.feed.check_unchanged(record.image_key, record.source)
        has_maps = end == _WHOLE and not self.why_no_attention
        if has_maps and (record.attention is None or record.attention.shape[0] != len(self.aspects)):
            return f"has no attention maps of {len(self.aspects)} aspects"
        if end in self.parts:
            return likelihood_problem(record, self.categories)
        if self.asked[end] in self.how.closed:
            return likelihood_problem(record, self.how.closed[self.asked[end]])
        if record.scores is None or len(record.scores) != 1 or record.mean_scores is not None or record.text is None:
            return "is not that of a written answer, which has a text and its log-likelihood"
        if record.prediction != written_answer(record.text):
            return f"answers {shown(record.prediction)}, which is not what {shown(record.text)} says"
        return None

    def finish(self, records: RecordTable) -> Path:
        explanations, annotated, whole = [], [], []
        for image, of_image in self._by_image(records):
            explanations.append(explanation(image, self.categories, self._found(of_image)))
            annotated.append([of_image[end].label or None for end in self.asked])
            whole.append(replace(of_image[_WHOLE], sample_key=image, source=None))
        labels = [record.label for record in whole]
        averages = averages_of(explanations, labels, self.aspects, self.categories, self.config.seed)
        shows = [] if self.why_no_attention else self.aspects
        maps = (read_attention(self.directory / LEDGERS, r.attention) for r in whole if r.attention)
        written = write_target_records(self.directory / RECORDS, whole, self.categories, shows, maps)
        trained, machines = self.target.trained, machines_of(self.feed, records)
        of_machines = dict.fromkeys(note for machine in machines for note in machine_notes(trained, machine))
        data_notes = [*self.target.data_notes, *self.feed.warnings(), *self.feed.aspect_notes]
        features = {"model": self.feed.model, "machine": machines[0], "other_machines": machines[1:]}
        content = ExplanationsFile(
            version=VERSION,
            categories=tuple(self.categories),
            aspects=tuple(self.aspects),
            explained=self.which,
            num_images=len(self.images),
            num_scored=len(self.target.images),
            split=self.config.evaluate.split,
            averages=averages,
            images=tuple(map(image_entry, explanations, labels, annotated)),
            records=written,
            has_attention=bool(shows),
            notes=(*of_machines, *mixed_notes(machines), *data_notes, *self._attention_notes()),
            lineage=as_json({**trained.lineage(), "features": features}),
        )
        path = self.directory / FILE
        write_explanations(path, content)
        show(*_summary(content, path))
        return path

    def _by_image(self, records: RecordTable) -> Iterator[tuple[str, dict[str, Record]]]:
        """Key of an image -> its records by what follows that key."""
        rows, ends = iter(records), [*self.parts, *self.asked]
        for image in self.images:
            yield image, dict(zip(ends, itertools.islice(rows, len(ends)), strict=True))

    def _found(self, of_image: Mapping[str, Record]) -> Found:
        """What the model said, from the records of an image; without attention."""
        return Found(
            {part: _score(of_image[end]) for end, part in self.parts.items()},
            {aspect: _score(of_image[end]) for end, aspect in self.asked.items()},
            None,
        )

    def _attention_notes(self) -> list[str]:
        return [f"where aspects look is not known: {self.why_no_attention}"] if self.why_no_attention else []

    def _identity(self) -> dict[str, Any]:
        """Everything that a record depends on."""
        annotated = ([image, *sorted(self.feed.answers_of(image).items())] for image in self.images)
        return self.target.identity | {
            "explain": self.which,
            "explained": digest_of_rows(annotated),
            "closed": {aspect: list(choices) for aspect, choices in self.how.closed.items()},
            "longest": dict(self.how.longest),
            "questions": {aspect: self.questions.aspect_first(aspect) for aspect in self.aspects},
            "decision": DECISION,
            "attention": not self.why_no_attention,
        }


def _score(record: Record) -> Score:
    return Score(record.prediction, record.scores, record.mean_scores, record.text)


def _summary(found: ExplanationsFile, path: Path) -> Iterator[str]:
    """What the parts did on average, in lines of text."""
    for name, mean in found.averages.signed.parts(found.aspects):
        if mean is not None:
            interval = "" if mean.ci95 is None else " ({:+.2f} to {:+.2f})".format(*mean.ci95)
            yield f"evaluate: {name.replace('_', ' ')}: {mean.mean:+.2f}{interval}, mean contribution in nats"
    yield f"evaluate: {found.num_images:,} images explained: {path}"
