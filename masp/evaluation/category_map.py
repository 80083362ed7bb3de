"""From a dataset's categories to those that are asked: explicitly, or not at all.

A soft prompt was trained to name certain emotions. On a dataset that sorts its images into others, nothing says what
a right answer is; so each of its categories must be one that was trained, or be in `evaluate.category_map`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from masp.errors import InputError
from masp.files.text import MAX_REASON, shortened, shown
from masp.taxonomy import normalize_category

KEY = "evaluate.category_map"


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
                f"{KEY}: {shown(entry)} must be THEIRS=OURS, such as content=contentment, or THEIRS= to leave out"
            )
        if name in found:
            raise InputError(f"{KEY}: {shown(name)} is on the left of two entries; each category means one thing")
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
        raise InputError(f"{KEY}: {shown(foreign[0])} is not a category of {dataset}; it has {_list(own)}")
    unmapped = [c for c in own if trained and c not in trained and c not in mapping]
    if unmapped:
        raise InputError(
            f"{KEY}: {dataset} has categories that the soft prompt was not trained on: {_list(unmapped)} (trained: "
            f"{_list(trained)}); say what each means, such as {unmapped[0]}={trained[0]}, "
            f"{unmapped[0]}={unmapped[0]} to ask for it nevertheless, or {unmapped[0]}= to leave its images out"
        )
    means = {c: target for c in own if (target := mapping.get(c, c)) is not None}
    for theirs, target in means.items():
        if trained and target not in trained and target != theirs:
            raise InputError(
                f"{KEY}: {theirs}={shortened(target)}: the soft prompt was not trained on {shown(target)}; it was "
                f"on {_list(trained)}"
            )
    if not means:
        raise InputError(f"{KEY}: leaves out every category of {dataset}")
    if tuple(means) == own and all(theirs == ours for theirs, ours in means.items()):
        return Asked(means, own, is_mapped=not set(own) <= set(trained) if trained else False)
    # as trained, then the dataset's own, then what only the map names; each once, at its first place
    order = dict.fromkeys([*trained, *own, *mapping.values()])
    asked = set(means.values())
    return Asked(means, tuple(category for category in order if category in asked), is_mapped=True)


def _list(names: Iterable[str]) -> str:
    return shortened(", ".join(names), MAX_REASON)
