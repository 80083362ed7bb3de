"""Compute the accuracy of every category from the records of an evaluation. Imports no torch.

    python examples/accuracy_from_records.py DIR

DIR is what `masp evaluate` wrote, such as `outputs/run/evaluate`: it holds `records.h5` and `metrics.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from masp.errors import DataError, InputError, MaspError, one_line
from masp.results.records import FILE, Records, read_records_file


def counts_by_category(records: Records) -> dict[str, tuple[int, int]]:
    """Category -> number of correct predictions and number of samples, for categories that occur as a label."""
    total, correct = Counter(records.labels), Counter()
    for label, prediction in zip(records.labels, records.predictions, strict=True):
        correct[label] += label == prediction  # a prediction is None where the generated line named no category
    return {category: (correct[category], total[category]) for category in records.categories if total[category]}


def counts_in_metrics(path: Path) -> tuple[int, int]:
    """Number of correct predictions and number of samples that `metrics.json` states."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        return metrics["num_correct"], metrics["num_samples"]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give the directory of an evaluation") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged: it must hold num_correct and num_samples") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", metavar="DIR", type=Path, help="the output directory of an evaluation")
    arguments = parser.parse_args(argv)
    counts = counts_by_category(read_records_file(arguments.dir / FILE))
    for category, (num_correct, num_samples) in counts.items():
        print(f"{category:<20} {num_correct:>6} of {num_samples:>6} {num_correct / num_samples:>7.1%}")
    num_correct, num_samples = (sum(column) for column in zip(*counts.values(), strict=True))
    print(f"{'all':<20} {num_correct:>6} of {num_samples:>6} {num_correct / num_samples:>7.1%}")
    path = arguments.dir / "metrics.json"
    if (stated := counts_in_metrics(path)) != (num_correct, num_samples):
        raise DataError(f"{path} counts {stated[0]} correct of {stated[1]}, the records {num_correct} of {num_samples}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MaspError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
