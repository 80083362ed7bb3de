"""What a dataset holds, and what about it the user should know: collected while it is listed, shown by every command.

A finding is a fact about files and labels, never about pixels: what was passed over, what seems misnamed, what is
missing, what is there twice.
"""

from __future__ import annotations

import difflib
import functools
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from masp.config.aspects import Aspect, Aspects
from masp.errors import one_line
from masp.files.atomic import write_bytes
from masp.files.fields import SplitOf
from masp.files.sealed import read_sealed, sealed
from masp.files.text import shortened, shown

Kind = Literal[
    "ignored",
    "names",
    "missing",
    "annotations",
    "aspects",
    "categories",
    "duplicates",
    "near duplicates",
    "labels",
    "subset",
    "training",
    "cache",
    "vlm",
]
Why = Literal["no category", "extension", "hidden", "no split", "not listed", "other file", "left out"]

MAX_EXAMPLES = 3
_MAX_EXAMPLE = 200
"""Characters of an example."""

_WORDS: dict[Why, str] = {
    "no category": "in a split but in none of its category directories",
    "extension": "whose extension is not that of an image",
    "hidden": "hidden (the name starts with a dot)",
    "no split": "outside the splits",
    "not listed": "that no index file lists",
    "other file": "other files, such as text",
    "left out": "that dataset.label_names leaves out",
}
_ORDER = {"train": 0, "val": 1, "test": 2}
"""Order of the splits in tables."""
_MIN_LENGTH = 5
"""Letters of a name from which a part of it, or a similar one, may be meant as it."""
_USUAL_KEYS = frozenset(("id", "image_id", "image", "file_name", "path", "split", "label", "category", "emotion"))
"""What annotations and tables say beside aspects; none of it is a misspelled aspect."""
_CLOSE = 0.75
"""Similarity from which one name is taken for a misspelling of another."""


@dataclass(frozen=True)
class Finding:
    """Something about a dataset that the user should know."""

    kind: Kind
    text: str
    """One line, without the examples."""
    count: int
    """How many files, images, keys or categories it is about."""
    examples: tuple[str, ...] = ()
    """The first of them."""
    serious: bool = False
    """Whether results are probably not what the user expects."""
    meant: str = ""
    """Of a name that is probably misspelled: what it should have been."""

    def __str__(self) -> str:
        return f"{self.text}: {', '.join(self.examples)}" if self.examples else self.text


@dataclass(frozen=True)
class Ignored:
    """Files that are not part of the dataset."""

    path: str
    """Relative to the root; a directory ends in a slash."""
    why: Why
    num_files: int = 1
    """Image files in it, where it is a directory."""
    split: str = ""
    """The split whose directory it is in; empty outside."""
    meant: str = ""
    """What it probably should have been called."""


WITHOUT_STAGE_1 = (
    "have the VLM annotate a cache (`masp annotate`), train stage 2 with checkpoint.aspect=none (aspects=[] for `masp "
    "study`), or with aspect modules that were trained elsewhere, checkpoint.aspect=FILE"
)
"""What to do where no image is annotated; whoever meets such a dataset says the same."""
NO_ANNOTATIONS = f"no image has an annotation: stage 1 has nothing to learn from; {WITHOUT_STAGE_1}"

FILE = "findings.json"
"""What is recorded of a dataset, beside a cache, an artifact or an evaluation."""


@dataclass(frozen=True)
class Holdings:
    """How many images of what a dataset has."""

    categories: dict[SplitOf, dict[str, int]]
    """Split -> category -> number of images."""
    aspects: dict[SplitOf, dict[str, int]]
    """Split -> aspect -> number of images annotated with it."""

    def num_images(self, split: str) -> int:
        """Images of a split."""
        return sum(self.categories.get(split, {}).values())

    def __post_init__(self) -> None:
        if self.categories.keys() != self.aspects.keys():
            raise ValueError("must count categories and aspects of the same splits")

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in the order of tables."""
        return tuple(sorted(self.categories, key=lambda split: (_ORDER.get(split, 9), split)))

    def table(self) -> list[str]:
        """Lines of a table: a row per category, and per aspect where there are annotations."""
        splits = self.splits
        rows = [("category", self.categories)]
        if any(self.aspects.values()):
            rows.append(("annotated", self.aspects))
        names = {title: list(dict.fromkeys(n for part in counts.values() for n in part)) for title, counts in rows}
        width = max([len(name) for found in names.values() for name in found] + [len("annotated")])
        lines = []
        for title, counts in rows:
            lines.append(f"{title:<{width}}" + "".join(f"{split:>10}" for split in splits))
            for name in sorted(names[title]):
                lines.append(f"{name:<{width}}" + "".join(f"{counts[split].get(name, 0):>10,}" for split in splits))
        lines.append(f"{'images':<{width}}" + "".join(f"{self.num_images(split):>10,}" for split in splits))
        return lines


def holdings_of(kinds: Mapping[tuple[str, str, tuple[str, ...]], int]) -> Holdings:
    """Count the samples of a dataset; `kinds` says how many there are of each split, category and annotated aspects.

    Samples whose category is "", which the target of a run gives no label, count for their aspects alone.
    """
    categories: dict[str, Counter[str]] = {}
    aspects: dict[str, Counter[str]] = {}
    for (split, category, names), count in kinds.items():
        of_split = categories.setdefault(split, Counter())
        if category:
            of_split[category] += count
        aspects.setdefault(split, Counter()).update(dict.fromkeys(names, count))
    return Holdings(
        *({split: dict(sorted(c.items())) for split, c in found.items()} for found in (categories, aspects))
    )


def examples(names: Iterable[str]) -> tuple[str, ...]:
    """The first few names, each as a message can repeat it."""
    chosen = [name for name, _ in zip(names, range(MAX_EXAMPLES), strict=False)]
    return tuple(shortened(name.encode("utf-8", "backslashreplace").decode(), _MAX_EXAMPLE) for name in chosen)


@functools.lru_cache(maxsize=4096)
def close_to(name: str, known: tuple[str, ...]) -> str:
    """The known name that a name is probably a spelling of; empty if there is none.

    Args:
        name: As somebody wrote it: in another case, width or number, with other separators, or a part of it.
        known: In lower case with underscores.
    """
    plain = _plain(name)
    if plain in known:
        return plain
    close = difflib.get_close_matches(plain, known, n=1, cutoff=_CLOSE)
    if close:
        return close[0]
    return next((k for k in known if len(plain) >= _MIN_LENGTH and (plain in k or k in plain)), "")


def _plain(name: str) -> str:
    """A name without differences of case, width, separators and invisible characters."""
    text = unicodedata.normalize("NFKC", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name))
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return re.sub(r"[\s_.-]+", "_", unicodedata.normalize("NFKC", text.casefold())).strip("_")


def look_alike(name: str, others: Iterable[str]) -> list[str]:
    """Those of some other names that read like this one: they differ in width or invisible characters."""
    return [other for other in others if other != name and _plain(other) == _plain(name)]


def ignored_findings(ignored: Sequence[Ignored], used: Mapping[str, int]) -> list[Finding]:
    """What was passed over.

    Args:
        ignored: Files and directories that are not part of the dataset.
        used: Split -> number of images that are.
    """
    found = []
    maybe = [each for each in ignored if each.why != "other file"]
    if maybe:
        by_why: Counter[Why] = Counter()
        by_split: Counter[str] = Counter()
        for each in maybe:
            by_why[each.why] += each.num_files
            by_split[each.split] += each.num_files
        num_ignored, num_used = sum(by_why.values()), sum(used.values())
        half = [s for s, count in by_split.items() if s and count > used.get(s, 0)]
        serious = bool(half) or num_ignored > num_used
        reasons = ", ".join(f"{count:,} {_WORDS[why]}" for why, count in by_why.items())
        text = f"{num_ignored:,} of {num_ignored + num_used:,} files are ignored, {num_used:,} are used ({reasons}"
        if half and len(used) > 1:
            parts = ", ".join(f"{by_split[s]:,} of {by_split[s] + used.get(s, 0):,} in {s}" for s in sorted(half))
            text += f"; {parts}"
        found.append(Finding("ignored", f"{text})", num_ignored, examples(e.path for e in maybe), serious))
    if others := [each for each in ignored if each.why == "other file"]:
        count = sum(each.num_files for each in others)
        what = "1 file is not an image by its" if count == 1 else f"{count:,} files are not images by their"
        text = f"{what} extension, and ignored"
        found.append(Finding("ignored", text, count, examples(e.path for e in others)))
    for each in ignored:
        if each.meant:
            text = f"{each.path} is ignored ({each.num_files:,} files): did you mean {each.meant}?"
            found.append(Finding("names", text, each.num_files, serious=True, meant=each.meant))
    return found


@functools.lru_cache(maxsize=4096)
def meant_aspect(name: str, aspects: tuple[str, ...]) -> str:
    """The aspect that a key or a column is probably a misspelling of; empty if there is none.

    Args:
        name: Key of an annotation, or name of a column, that is not itself the name of an aspect.
        aspects: Names of the aspects that are defined.
    """
    plain = _plain(name)
    by_plain = {_plain(aspect): aspect for aspect in aspects}
    if plain in by_plain or plain in _USUAL_KEYS:
        return by_plain.get(plain, "")
    # a short name is near to words that have nothing to do with it: `age` to `image`
    long = tuple(aspect for aspect in by_plain if len(aspect) >= _MIN_LENGTH)
    return by_plain.get(plain.removesuffix("s")) or by_plain.get(close_to(plain, long), "")


def key_findings(keys: Mapping[tuple[str, str], int]) -> list[Finding]:
    """Annotation keys that are not aspects but nearly.

    Args:
        keys: Key, and aspect that it is near to -> number of annotations that have the key and not the aspect itself.
    """
    found = []
    for (key, aspect), count in sorted(keys.items()):
        text = f"{count:,} annotations have the key {shown(key)}, which is ignored: did you mean {aspect}?"
        found.append(Finding("annotations", text, count, serious=True, meant=aspect))
    return found


def column_findings(columns: Iterable[str], aspects: tuple[str, ...]) -> list[Finding]:
    """Columns that nothing is read from, although their names are nearly those of aspects.

    Args:
        columns: Columns of a table that are not used.
        aspects: Aspects that are defined and have no column.
    """
    found = []
    for name in columns:
        if aspect := meant_aspect(name, aspects):
            text = (
                f"column {shown(name)} is ignored: did you mean {aspect}? dataset.columns.{aspect}={name} reads it as "
                "this aspect"
            )
            found.append(Finding("annotations", text, 1, serious=True, meant=aspect))
    return found


def vocabulary_findings(answers: Mapping[tuple[str, str], int], aspects: Aspects) -> list[Finding]:
    """Annotated answers that are not in the vocabulary of their aspect; they are kept.

    Args:
        answers: Aspect and answer -> number of images with it.
        aspects: The aspects.
    """
    images: Counter[str] = Counter()
    unknown: dict[str, Counter[str]] = {}
    vocabularies = {name: frozenset(aspect.vocabulary) for name, aspect in aspects.items() if aspect.vocabulary}
    for (name, answer), count in answers.items():
        if name in vocabularies and (parts := _parts(aspects[name], answer) - vocabularies[name]):
            images[name] += count
            unknown.setdefault(name, Counter()).update(dict.fromkeys(parts, count))
    found = []
    for name, counts in sorted(unknown.items()):
        text = (
            f"{images[name]:,} images are annotated with answers to {name} that are not in its vocabulary "
            f"({len(counts):,} different); they are kept"
        )
        often = sorted(counts, key=lambda part: (-counts[part], part))
        found.append(Finding("aspects", text, images[name], examples(map(shown, often))))
    return found


def _parts(aspect: Aspect, answer: str) -> frozenset[str]:
    """The entries of a list, or the answer itself. An entry with a comma of its own counts as several."""
    return frozenset(answer.split(", ")) if aspect.kind == "list" else frozenset((answer,))


def meant_by(aspect: str, findings: Iterable[Finding]) -> str:
    """What to add to an error about an aspect that no image has: the keys that were probably meant; may be empty."""
    near = [finding.text for finding in findings if finding.kind == "annotations" and finding.meant == aspect]
    return f" ({'; '.join(near)})" if near else ""


def coverage_findings(holdings: Holdings, categories: Sequence[str], aspects: Iterable[str]) -> list[Finding]:
    """Categories and aspects that are absent, or absent from one split.

    Args:
        holdings: How many images there are of what.
        categories: Categories of the dataset.
        aspects: Aspects that are defined.
    """
    found = []
    splits = holdings.categories
    present = set().union(*splits.values()) if splits else set()
    if absent := [category for category in categories if category not in present]:
        text = f"no image has {_of(absent, 'of the categories', 'category')}"
        found.append(Finding("categories", text, len(absent), examples(absent)))
    for split, counts in splits.items():
        lacking = sorted(present - counts.keys())
        if lacking and len(splits) > 1:
            trained = split == "train"  # what no training image shows is asked for all the same
            where = ", ".join(sorted({s for s, c in splits.items() if c.keys() & set(lacking)}))
            hint = "".join(f"; {a!r} reads like {b!r}" for a in lacking for b in look_alike(a, counts))
            text = f"{split} has no image of {_of(lacking, 'categories', 'category')} that {where} has{hint}"
            found.append(Finding("categories", text, len(lacking), examples(lacking), trained or bool(hint)))
    for name in sorted(present):
        if twins := [other for other in look_alike(name, present) if name < other]:
            text = f"category {name!r} and {', '.join(map(repr, twins))} read the same and are different categories"
            found.append(Finding("categories", text, 1 + len(twins), serious=True))
    annotated = set().union(*holdings.aspects.values()) if holdings.aspects else set()
    if annotated and (absent := [aspect for aspect in aspects if aspect not in annotated]):
        text = f"no image is annotated with {_of(absent, 'aspects', 'aspect')}"
        found.append(Finding("aspects", text, len(absent), tuple(absent)))
    if "train" in splits and (lacking := sorted(annotated - holdings.aspects["train"].keys())):
        text = f"no training image is annotated with {_of(lacking, 'aspects', 'aspect')} that other splits have"
        found.append(Finding("aspects", text, len(lacking), tuple(lacking), serious=True))
    return found


def _of(names: Sequence[str], plural: str, singular: str) -> str:
    return f"the {singular}" if len(names) == 1 else f"{len(names)} {plural}"


@dataclass(frozen=True)
class DatasetRecord:
    """The content of `findings.json`."""

    format_version: Literal[1]
    dataset: str
    """Digest of the dataset, as the cache's manifest has it; empty without a cache."""
    holdings: Holdings
    findings: tuple[Finding, ...]
    near_duplicates: bool = False
    """Whether images that look alike were searched for (`masp extract --near-duplicates`)."""


def save_findings(directory: Path, record: DatasetRecord) -> None:
    """Write `findings.json`.

    Raises:
        OSError: It cannot be written.
    """
    write_bytes(directory / FILE, sealed(record))


def load_findings(directory: Path) -> DatasetRecord | None:
    """Read `findings.json`; None if there is none.

    Raises:
        DataError: Damaged.
        InputError: It may not be read.
    """
    return read_sealed(DatasetRecord, directory / FILE)


@dataclass(frozen=True)
class Contents:
    """Image files by the digests of their bytes, in columns."""

    digests: np.ndarray
    """`[N, 32]` uint8: SHA-256; zeros of a file that could not be read, which is like no other."""
    splits: np.ndarray
    """`[N]` uint8, into `split_names`."""
    categories: np.ndarray
    """`[N]` integers: equal where the category is."""
    split_names: Sequence[str]
    key: Callable[[int], str]
    """From a place to its sample key."""


def content_findings(contents: Contents) -> list[Finding]:
    """The same bytes in more than one place: in two splits, under two categories, or twice in a split."""
    order, starts = _equal_rows(contents.digests)
    if not len(starts):
        return []
    sizes = np.diff(np.append(starts, len(order)))
    bits = np.bitwise_or.reduceat(np.int64(1) << contents.splits[order].astype(np.int64), starts)
    is_across = bits & (bits - 1) != 0
    categories = contents.categories[order]
    is_torn = np.minimum.reduceat(categories, starts) != np.maximum.reduceat(categories, starts)

    def shown(chosen: np.ndarray) -> tuple[str, ...]:
        first = np.flatnonzero(chosen)[:MAX_EXAMPLES]
        groups = [order[starts[group] : starts[group] + sizes[group]].tolist() for group in first]
        return examples(" = ".join(sorted(map(contents.key, group))[:3]) for group in groups)

    found = []
    if count := int(is_across.sum()):
        pairs = {
            "+".join(sorted(name for bit, name in enumerate(contents.split_names) if mask >> bit & 1)): number
            for mask, number in zip(*(a.tolist() for a in np.unique(bits[is_across], return_counts=True)), strict=True)
        }
        parts = ", ".join(f"{number:,} in {pair.replace('+', ' and ')}" for pair, number in sorted(pairs.items()))
        text = f"{count:,} images are in more than one split, byte for byte ({parts}): evaluated after training"
        found.append(Finding("duplicates", text, count, shown(is_across), serious=True))
    if count := int(is_torn.sum()):
        text = f"{count:,} images have more than one category, byte for byte the same file"
        found.append(Finding("labels", text, count, shown(is_torn), serious=True))
    is_within = ~is_across & ~is_torn
    if is_within.any():
        count = int((sizes[is_within] - 1).sum())
        text = f"{count:,} images repeat another one of their split and category, byte for byte"
        found.append(Finding("duplicates", text, count, shown(is_within)))
    return found


def _equal_rows(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of rows that occur more than once, sorted by row, and where each group of equal ones starts."""
    first = _as_words(digests[:, :8])[:, 0]
    order = np.argsort(first, kind="stable")
    first = first[order]
    is_next = np.append(first[1:] == first[:-1], False)
    order = order[is_next | np.roll(is_next, 1)]  # few, as most images are there once
    words = _as_words(digests[order])
    is_known = words.any(1)
    order, words = order[is_known], words[is_known]
    by_words = np.lexsort(words.T[::-1])
    order, found = order[by_words], words[by_words]
    is_start = np.append(True, (found[1:] != found[:-1]).any(1))[: len(order)]
    starts = np.flatnonzero(is_start)
    sizes = np.diff(np.append(starts, len(order)))
    several = np.repeat(sizes > 1, sizes)  # words may be equal where rows are not
    order, is_start = order[several], is_start[several]
    return order, np.flatnonzero(is_start)


def _as_words(rows: np.ndarray) -> np.ndarray:
    """Rows of bytes as numbers of eight of them, uint64, which sort as the bytes do."""
    return np.ascontiguousarray(rows).view(">u8").astype(np.uint64)


def finding_lines(findings: Iterable[Finding]) -> list[str]:
    """The findings for a table on stdout, a line each; the serious ones last."""
    return [
        f"{'warning' if finding.serious else 'note'}: {one_line(str(finding))}"
        for finding in sorted(findings, key=lambda f: f.serious)
    ]


_COVERAGE: tuple[Kind, ...] = ("annotations", "aspects", "categories")


def log_findings(findings: Iterable[Finding], log: logging.Logger, *, again: bool = False) -> None:
    """Say the findings: the serious ones last, each a warning of its own, the others in one line.

    Args:
        findings: What to say.
        log: Logger of the caller.
        again: Whether extraction has said it already: what is merely incomplete is then left out.
    """
    chosen = [f for f in findings if f.serious or not (again and f.kind in _COVERAGE)]
    if minor := [str(finding) for finding in chosen if not finding.serious]:
        log.info("dataset: %s", "; ".join(minor))
    for finding in chosen:
        if finding.serious:
            log.warning("dataset: %s", finding)
