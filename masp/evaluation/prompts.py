"""How much an accuracy depends on the wording of the question: every template, and other orders of the categories.

`evaluate.prompts: all` scores a split once per wording. The first wording is the evaluation itself; each of the others
has a directory, ledgers and metrics of its own in `prompts/`, so the call resumes anywhere and on any number of ranks.
`prompts.json` holds the table over all of them.
"""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from masp.config import Config
from masp.data.questions import Questions
from masp.errors import DataError
from masp.results.metrics_file import (
    METRICS,
    PROMPTS,
    PromptRow,
    PromptTable,
    check_written_with,
    read_metrics,
    write_object,
)
from masp.results.records import FILE, read_records_file
from masp.runtime.log import show

NUM_ORDERS = 3
"""Orders of the categories beside their own: the reverse one, and random ones."""

_MAX_TRIED = 20
"""Orders that are tried, of which those that are different count."""

DIRECTORY = "prompts"
"""Name of the directory, in that of the evaluation, that holds the other wordings."""


@dataclass(frozen=True)
class Wording:
    """One way to ask for the target."""

    template: int = 0
    """Number of the template in the questions file."""
    order: int = 0
    """0: the categories in their own order; 1: reversed; n: a random order with the seed n."""

    @property
    def name(self) -> str:
        """For directories and tables; numbers begin at 1, as people count."""
        if self == FIRST:
            return "first"
        return f"template-{self.template + 1}" if self.order == 0 else f"order-{self.order + 1}"

    def question(self, questions: Questions, categories: Sequence[str]) -> str:
        """The question that is asked."""
        only = replace(questions, target_templates=(questions.target_templates[self.template],))
        return only.target_first(ordered(categories, self.order))


VALIDATION: Literal["val"] = "val"
"""The validation split, and the name of the directory of its evaluation in that of another split's."""

FIRST = Wording()
"""What is asked unless other wordings are asked for."""


def ordered(categories: Sequence[str], order: int) -> list[str]:
    """The categories in one of the orders, see `Wording.order`."""
    if order == 0:
        return list(categories)
    if order == 1:
        return list(categories)[::-1]
    return [categories[place] for place in np.random.default_rng(order).permutation(len(categories))]


def other_wordings(questions: Questions, categories: Sequence[str]) -> list[Wording]:
    """Every template with the categories in their own order, then the first template with other orders.

    Wordings that give a question which an earlier one gives are left out: two categories have two orders.
    """
    templates = [FIRST, *(Wording(template=n) for n in range(1, len(questions.target_templates)))]
    orders = [Wording(order=n) for n in range(1, _MAX_TRIED)]
    unique: dict[str, Wording] = {}
    for wording in (*templates, *orders):
        unique.setdefault(wording.question(questions, categories), wording)
    others = [wording for wording in unique.values() if wording.order]
    return [*(w for w in unique.values() if w != FIRST and not w.order), *others[:NUM_ORDERS]]


def other_evaluations(config: Config, directory: Path, wordings: Sequence[Wording]) -> Iterator[tuple[Config, Wording]]:
    """What is scored beside a split itself: the validation split, then other wordings.

    Args:
        config: Configuration of the evaluation.
        directory: Its directory; each of the others has one in it.
        wordings: The other wordings.
    """
    part = copy.deepcopy(config)
    part.evaluate.validation = part.evaluate.linear_probe = part.evaluate.attention = False
    part.evaluate.prompts, part.evaluate.explain = "first", "none"
    if config.evaluate.validation and config.evaluate.split != VALIDATION:
        held_out = copy.deepcopy(part)
        held_out.evaluate.split, held_out.evaluate.output_dir = VALIDATION, str(directory / VALIDATION)
        yield held_out, FIRST
    for wording in wordings:
        other = copy.deepcopy(part)
        other.evaluate.output_dir = str(directory / DIRECTORY / wording.name)
        yield other, wording


def write_table(directory: Path, wordings: Sequence[Wording]) -> Path | None:
    """Write `prompts.json` and print it, if every wording has been scored.

    Args:
        directory: Directory of the evaluation.
        wordings: The wordings but the first.

    Returns:
        `prompts.json`; None if some wordings still have samples to score.

    Raises:
        DataError: metrics or records are damaged.
    """
    places = {FIRST: directory} | {wording: directory / DIRECTORY / wording.name for wording in wordings}
    if not all((place / METRICS).is_file() for place in places.values()):
        return None
    table = _table(places)
    path = directory / PROMPTS
    write_object(path, table)
    show(*_as_text(table))
    show(f"evaluate: {len(places)} wordings: {path}")
    return path


def _table(places: dict[Wording, Path]) -> PromptTable:
    rows, answers = {}, []
    keys: list[str] = []
    for wording, place in places.items():
        problems: list[str] = []
        metrics = read_metrics(place / METRICS, problems)
        if problems or metrics.accuracy is None or metrics.accuracy_ci95 is None:
            what = problems[0] if problems else f"{place / METRICS}: holds no accuracy"
            raise DataError(f"{what}; run `masp evaluate` again")
        records = read_records_file(place / FILE)
        check_written_with(place / FILE, records.digest)
        keys = keys or records.keys
        if records.keys != keys:
            raise DataError(f"{place / FILE}: not the samples of {places[FIRST] / FILE}; run `masp evaluate` again")
        number = {None: -1} | {category: i for i, category in enumerate(records.categories)}
        answers.append(np.array([number[prediction] for prediction in records.predictions], dtype=np.int32))
        rows[wording.name] = PromptRow(
            template=wording.template + 1,
            order=wording.order + 1,
            question=metrics.question or "",
            accuracy=metrics.accuracy,
            accuracy_ci95=metrics.accuracy_ci95,
            macro_f1=metrics.macro_f1,
            nll=metrics.nll,
            agreement=float((answers[-1] == answers[0]).mean()),
        )
    accuracies = [row.accuracy for row in rows.values()]
    pairs = [float((a == b).mean()) for a, b in itertools.combinations(answers, 2)]
    return PromptTable(
        num_samples=len(keys),
        rows=rows,
        mean=statistics.mean(accuracies),
        spread=statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        lowest=min(accuracies),
        highest=max(accuracies),
        agreement_of_pairs=statistics.mean(pairs) if pairs else 1.0,
        agreement_of_all=float(np.all([row == answers[0] for row in answers], axis=0).mean()),
    )


def _as_text(table: PromptTable) -> list[str]:
    """The wordings in lines of text."""
    width = max(10, *map(len, table.rows))
    lines = [f"{'wording':<{width}} {'accuracy':>9}  {'95 % interval':<16} {'same as first':>13}  question"]
    for name, row in table.rows.items():
        low, high = row.accuracy_ci95
        interval = f"{low:.4f} to {high:.4f}"
        lines.append(f"{name:<{width}} {row.accuracy:>9.4f}  {interval:<16} {row.agreement:>13.4f}  {row.question}")
    lines.append(
        f"mean {table.mean:.4f}, standard deviation {table.spread:.4f}, from {table.lowest:.4f} to {table.highest:.4f}"
        f"; two wordings agree on {table.agreement_of_pairs:.4f} of the images, all on {table.agreement_of_all:.4f}"
    )
    return lines
