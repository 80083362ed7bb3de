"""The evaluation of emotions: one record per image."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from masp.artifacts.trained import Trained, load_trained
from masp.cache.fingerprint import differences, fingerprint_digest
from masp.config import Config
from masp.data.questions import Questions
from masp.evaluation.category_map import map_categories, parse_map
from masp.evaluation.feed import Feed, Item, machines_of, mixed_notes
from masp.evaluation.protocol import Evaluation
from masp.evaluation.scorers import EmotionScorer, ScoreRequest
from masp.files.atomic import write_bytes
from masp.files.text import MAX_REASON, shortened, shown
from masp.models.likelihood import cut_short
from masp.results.attention_maps import read_attention
from masp.results.ledger import DIRECTORY
from masp.results.ledger_format import Record, generated_problem, likelihood_problem
from masp.results.metrics import compute_metrics
from masp.results.metrics_file import METRICS
from masp.results.records import FILE, write_emotion_records
from masp.vlm.prompt import load_prompt


class EmotionEvaluation(Evaluation):
    """The emotion of every image of a split.

    Args:
        config: Run configuration.
        directory: Directory of its results.
        feed: The images.
        questions: Questions; evaluation asks the first emotion template.
        known_categories: Categories of other datasets that are evaluated with the same `evaluate.category_map`.

    Raises:
        InputError: aspect modules or soft prompt are missing or do not fit, or the categories were not trained and no
            map says what to do.
    """

    what = "samples"

    def __init__(
        self, config: Config, directory: Path, feed: Feed, questions: Questions, known_categories: Sequence[str] = ()
    ):
        self.config, self.directory, self.feed, self.questions = config, directory, feed, questions
        self.trained = load_trained(config, feed.hidden_size, feed.model)
        lineage = self.trained.soft_prompt_lineage
        self.asked = map_categories(
            feed.categories,
            lineage.categories if lineage else (),
            parse_map(config.evaluate.category_map),
            f"{config.dataset.name} in {config.dataset.root}",
            known_categories,
        )
        self.categories = self.asked.categories
        self.label_of = {
            key: self.asked.means[label]
            for key, label in zip(feed.keys, feed.labels, strict=True)
            if label in self.asked.means
        }
        self.keys = list(self.label_of)
        self.keys_of = {key: [key] for key in self.keys}
        self.length_notes = length_notes(config, self.trained.layout, self.categories)
        self.notes = [*machine_notes(self.trained, feed.machine), *feed.notes(), *self.length_notes]
        self.aspects_shown = list(config.aspects) if config.evaluate.attention and self.trained.aspects else []
        self.identity = self._identity()
        self.scorer: EmotionScorer | None = None

    def load(self, device: str) -> None:
        self.scorer = EmotionScorer(self.config, self.trained, self.questions, self.categories, device)

    def score(
        self, items: Sequence[Item], missing: Mapping[str, Sequence[str]]
    ) -> tuple[list[Record], list[np.ndarray]]:
        assert self.scorer is not None, "load comes first"
        requests = [ScoreRequest(item.features, item.grid, item.aspect_tokens) for item in items]
        records = [
            Record(item.key, self.label_of[item.key], **vars(score), source=item.source)
            for item, score in zip(items, self.scorer.score(requests), strict=True)
        ]
        return records, self.scorer.attention(requests) if self.aspects_shown else []

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

    def finish(self, records: Sequence[Record]) -> Path:
        config, ledgers = self.config, self.directory / DIRECTORY
        machines = machines_of(self.feed, ledgers)
        notes = dict.fromkeys(note for machine in machines for note in machine_notes(self.trained, machine))
        metrics = compute_metrics(records, self.categories, len(self.keys), config.seed)
        maps = (read_attention(ledgers, record.attention) for record in records if record.attention)
        digests = self.feed.digests()
        write_emotion_records(self.directory / FILE, records, self.categories, self.aspects_shown, maps, digests)
        results = {
            **metrics.to_json(),
            "stage": "stage2",
            "dataset": config.dataset.name,
            "split": config.evaluate.split,
            "scoring": config.evaluate.scoring,
            "source": config.evaluate.source,
            "layout": self.trained.layout,
            "vision_features": self.trained.vision_features,
            "category_map": self.asked.shown(),
            "notes": [*notes, *mixed_notes(machines), *self.feed.notes(), *self.length_notes],
            "time": time.time(),
            "lineage": {
                **self.trained.lineage(),
                "features": {"model": self.feed.model, "machine": machines[0], "other_machines": machines[1:]},
                "data": vars(digests),
            },
        }
        path = self.directory / METRICS
        write_bytes(path, json.dumps(results, indent=1).encode() + b"\n")
        low, high = metrics.accuracy_ci95
        print(
            f"evaluate: accuracy {metrics.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f}) "
            f"on {metrics.num_samples} images: {path}"
        )
        return path

    def _identity(self) -> dict[str, Any]:
        """Everything that a score depends on; ranks and batch size do not belong to it."""
        config, trained = self.config, self.trained
        identity: dict[str, Any] = {
            "model": fingerprint_digest(self.feed.model),
            "samples": self.feed.data_digest,
            "split": config.evaluate.split,
            "categories": list(self.categories),
            "question": self.questions.emotion_first(self.categories),
            "scoring": config.evaluate.scoring,
            "max_new_tokens": config.evaluate.max_new_tokens if config.evaluate.scoring == "generate" else None,
            "precision": config.engine.precision,
            "source": config.evaluate.source,
            "layout": trained.layout,
            "aspects": list(config.aspects) if trained.aspects is not None else [],
            "aspect_digest": trained.aspect_lineage.digest if trained.aspect_lineage else None,
            "soft_prompt_digest": trained.soft_prompt_lineage.digest if trained.soft_prompt_lineage else None,
        }
        # said only where they are asked for, so that ledgers from before there was such a choice go on
        if self.asked.is_mapped:
            identity["category_map"] = self.asked.shown()
        if self.aspects_shown:
            identity["attention"] = True
        if not trained.vision_features:
            identity["vision_features"] = False
        return identity


def length_notes(config: Config, layout: str, answers: Sequence[str]) -> list[str]:
    """Which answers can never win, since another begins them and the layout counts no end token."""
    if layout != "released" or config.evaluate.scoring != "likelihood":
        return []
    prompt = load_prompt(config.vlm.path)
    return [
        f"layout 'released' counts no end token: {answers[long]!r} never scores above its beginning, {answers[short]!r}"
        for short, long in cut_short([prompt.ids(answer) for answer in answers])
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
