"""What an evaluation of stage 1 consists of: every annotated aspect of every image, answered from its aspect tokens.

An aspect whose answers are a known few (levels of brightness, expressions) is closed: the likelihood of every answer is
compared, as for emotions. An aspect with lists or with more answers is open: the model writes its answer.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from masp.artifacts.trained import load_trained_aspects
from masp.cache.fingerprint import fingerprint_digest
from masp.config import Config
from masp.data.answers import LEVEL_ASPECTS, LEVELS, LIST_ASPECTS
from masp.data.questions import Questions
from masp.errors import InputError
from masp.evaluation.aspect_scorer import AspectScorer
from masp.evaluation.emotions import length_notes
from masp.evaluation.feed import Feed, Item, machines_of, mixed_notes, source_of
from masp.files.atomic import write_bytes
from masp.files.sealed import digest_of
from masp.results.aspect_metrics import compute_aspect_metrics
from masp.results.ledger import FOLDER
from masp.results.ledger_file import generated_problem, likelihood_problem
from masp.results.records import FILE, write_aspect_records
from masp.vlm.prompt import Prompt, load_prompt

MAX_CLOSED = 64
"""An aspect with more different answers than these is open."""


class AspectEvaluation:
    """The answers of aspect modules for a split; the same interface as `EmotionEvaluation`.

    Raises:
        InputError: there are no aspect modules, they do not fit, maps are asked for, or no image of the split is
            annotated.
    """

    what = "answers"

    def __init__(
        self, config: Config, folder: Path, feed: Feed, questions: Questions, known_categories: Sequence[str] = ()
    ):
        if config.evaluate.attention:
            raise InputError(
                "evaluate.attention = true: only evaluations of emotions keep where aspects look; take "
                "evaluate.attention=false with evaluate.stage=stage1"
            )
        self.config, self.folder, self.feed, self.questions = config, folder, feed, questions
        modules, lineage = load_trained_aspects(config, feed.hidden_size, feed.model)
        if modules is None or lineage is None:
            raise InputError(
                "evaluate.stage = 'stage1': scores aspect modules, but aspects or checkpoint.aspect say none"
            )
        self.modules, self.lineage = modules, lineage
        self.layout = lineage.layout or config.stage1.layout
        self.answers, seen = self._read_answers()
        self.keys_of = {
            key: [f"{key}#{aspect}" for aspect in config.aspects if aspect in self.answers[key]]
            for key in feed.keys
            if any(aspect in self.answers[key] for aspect in config.aspects)
        }
        """Image -> a record for each of its annotated aspects. A sample key holds no `#`."""
        self.keys = [key for keys in self.keys_of.values() for key in keys]
        if not self.keys:
            raise InputError(
                f"evaluate.split = {config.evaluate.split!r}: no image of it is annotated with any of "
                f"{', '.join(config.aspects)}; stage 1 cannot be evaluated there"
            )
        self.closed = {
            aspect: choices for aspect in config.aspects if (choices := closed_answers(aspect, seen[aspect]))
        }
        """Aspect -> answers that are compared; the other aspects are open."""
        asked = {aspect: seen[aspect] for aspect in config.aspects if seen[aspect]}
        self.longest = num_tokens_of_longest(load_prompt(config.vlm.path), asked)
        self.length_notes = [
            f"{aspect}: {note}"
            for aspect, choices in self.closed.items()
            for note in length_notes(config, self.layout, choices)
        ]
        self.notes = [*feed.notes(), *self.length_notes]
        self.aspects_shown: list[str] = []
        self.identity = self._identity()
        self.scorer: Any = None

    def _read_answers(self) -> tuple[dict[str, dict[str, str]], dict[str, set[str]]]:
        """Answers of every image of the split, and the different answers of each aspect in the whole dataset."""
        wanted, seen = set(self.feed.keys), defaultdict(set)
        found: dict[str, dict[str, str]] = {}
        for key, _, answers in self.feed.answers():
            for aspect, answer in answers.items():
                seen[aspect].add(answer)
            if key in wanted:
                found[key] = answers
        return found, seen

    def load(self, device: str) -> None:
        """Get ready to score: loads the VLM's language half."""
        self.scorer = AspectScorer(
            self.config, self.modules, self.layout, self.questions, self.closed, self.longest, device
        )

    def score(self, items: Sequence[Item], missing: dict[str, list[str]]) -> list[dict[str, Any]]:
        """The missing records of a batch of images."""
        asked = [(i, key.rpartition("#")[2], key) for i, item in enumerate(items) for key in missing[item.key]]
        scores = self.scorer.score([i.features for i in items], [(i, aspect) for i, aspect, _ in asked])
        return [
            {"sample_key": key, "label": items[i].answers[aspect], **vars(score), **source_of(items[i])}
            for (i, aspect, key), score in zip(asked, scores, strict=True)
        ]

    def problem(self, record: dict[str, Any]) -> str | None:
        """Why a record of an expected answer cannot be one of this evaluation, as the end of a sentence."""
        key, _, aspect = record["sample_key"].rpartition("#")
        label = self.answers[key][aspect]
        if record["label"] != label:
            return f"has label {record['label']!r}; the dataset says {label!r}"
        self.feed.check_unchanged(key, record.get("source"))
        if aspect in self.closed:
            return likelihood_problem(record, self.closed[aspect])
        return generated_problem(record)

    def finish(self, records: Sequence[dict[str, Any]]) -> Path:
        """Write `records.h5`, then `metrics.json`; returns the latter."""
        config = self.config
        machines = machines_of(self.feed, self.folder / FOLDER)
        records = [
            {**record, "key": key, "aspect": aspect}
            for record in records
            for key, _, aspect in [record["sample_key"].rpartition("#")]
        ]
        write_aspect_records(self.folder / FILE, records, self.closed)
        metrics = compute_aspect_metrics(records, config.aspects, self.closed, len(self.keys), config.seed)
        metrics |= {
            "stage": "stage1",
            "dataset": config.dataset.name,
            "split": config.evaluate.split,
            "source": config.evaluate.source,
            "layout": self.layout,
            "notes": [*mixed_notes(machines), *self.feed.notes(), *self.length_notes],
            "time": time.time(),
            "lineage": {
                "aspect": asdict(self.lineage),
                "features": {"model": self.feed.model, "machine": machines[0], "other_machines": machines[1:]},
            },
        }
        path = self.folder / "metrics.json"
        write_bytes(path, json.dumps(metrics, indent=1).encode() + b"\n")
        for aspect, values in metrics["per_aspect"].items():
            low, high = values["accuracy_ci95"]
            how = "of the likelihood" if aspect in self.closed else f"exact, token F1 {values['token_f1']:.4f}"
            print(f"evaluate: {aspect}: {values['accuracy']:.4f} ({low:.4f} to {high:.4f}) {how}")
        print(f"evaluate: stage 1: {metrics['accuracy']:.4f} of {metrics['num_samples']} answers right: {path}")
        return path

    def _identity(self) -> dict[str, Any]:
        config = self.config
        return {
            "stage": "stage1",
            "model": fingerprint_digest(self.feed.model),
            "samples": self.feed.data_digest,
            "answers": digest_of([[key, *sorted(self.answers[key].items())] for key in self.keys_of]),
            "closed": {aspect: list(choices) for aspect, choices in self.closed.items()},
            "longest": self.longest,
            "split": config.evaluate.split,
            "questions": {aspect: self.questions.aspect_first(aspect) for aspect in config.aspects},
            "precision": config.engine.precision,
            "source": config.evaluate.source,
            "layout": self.layout,
            "aspects": list(config.aspects),
            "aspect_digest": self.lineage.digest,
        }


def num_tokens_of_longest(prompt: Prompt, answers: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """Aspect -> how many tokens its longest answer has; which has the most letters is another question."""
    return {aspect: max(len(prompt.ids(text)) for text in texts) for aspect, texts in answers.items()}


def closed_answers(aspect: str, seen: set[str]) -> tuple[str, ...]:
    """The answers that are compared for an aspect; none where it is open.

    Args:
        seen: its different answers in the dataset.
    """
    if aspect in LEVEL_ASPECTS:
        return LEVELS
    if aspect in LIST_ASPECTS or not 2 <= len(seen) <= MAX_CLOSED:
        return ()
    return tuple(sorted(seen))
