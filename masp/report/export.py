r"""Tables as files for other programs: CSV for spreadsheets and scripts, LaTeX for papers, and Markdown.

CSV: UTF-8, comma-separated, one line of names, numbers in full precision and without thousands separators; an interval
is two columns, `low` and `high`; what is not known is empty. A text that a spreadsheet would take for a formula (it
begins with =, +, -, @, a tab or a line end, or with their full-width forms) has an apostrophe before it.

LaTeX: a `tabular` with the rules of the package booktabs, to be `\input`. Whatever LaTeX would take for a command is
escaped; other alphabets need a document that can print them.
"""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from masp.errors import InputError, one_line
from masp.files.atomic import write_bytes
from masp.files.sealed import digest_of
from masp.files.text import reason

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
    # a row that begins with these would be an argument of the line break before it; two dashes would become one
    "[": "{[}", "]": "{]}", "*": "{*}", "-": "{-}",
}  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A cell: the ends of an interval, or nothing."""

    ends: tuple[float, float] | None


@dataclass(frozen=True)
class Signed:
    """A cell: a difference, shown with its sign."""

    value: float | None


Cell = str | int | float | Interval | Signed | None


@dataclass(frozen=True)
class Table:
    """A table to be written."""

    name: str
    """Of its files, without suffix."""
    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    digits: int = 3
    """Digits behind the point, except in CSV."""


def file_name(text: str) -> str:
    """A name of a run as part of a file's name: letters, digits and dashes, at most 60; of a name in another alphabet
    also a part of its digest, so that two of them stay two files."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()[:50]
    return plain if plain and text.isascii() else f"{plain}-{digest_of(text)[:8]}".strip("-")


def write_tables(directory: Path, tables: Iterable[Table], key: str) -> list[Path]:
    """Write `<name>.csv` and `<name>.tex` of every table.

    Args:
        directory: Made if it is missing.
        tables: Tables; those without rows are written too, so that a set of files is always the same.
        key: What named the directory, for errors.

    Raises:
        InputError: it cannot be written.
    """
    written = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for table in tables:
            for suffix, text in ((".csv", csv_text(table)), (".tex", latex_text(table))):
                path = directory / (table.name + suffix)
                write_bytes(path, text.encode("utf-8", "backslashreplace"))
                written.append(path)
    except OSError as error:
        raise InputError(f"{key} {directory}: cannot be written: {reason(error)}") from None
    return written


def csv_text(table: Table) -> str:
    """A table as CSV."""
    wide = [any(isinstance(row[place], Interval) for row in table.rows) for place in range(len(table.columns))]
    with io.StringIO(newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        names: list[str] = []
        for column, is_wide in zip(table.columns, wide, strict=True):
            names += [f"{column} low", f"{column} high"] if is_wide else [column]
        writer.writerow([spreadsheet_text(name) for name in names])
        for row in table.rows:
            cells: list[str] = []
            for cell, is_wide in zip(row, wide, strict=True):
                ends = cell.ends if isinstance(cell, Interval) else None
                cells += [_exact(end) for end in ends or (None, None)] if is_wide else [_exact(cell)]
            writer.writerow(cells)
        return file.getvalue()


def spreadsheet_text(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    plain = visible(text)
    return f"'{plain}" if text.startswith(_FORMULA) else plain


def _exact(cell: Cell) -> str:
    if isinstance(cell, Signed):
        cell = cell.value
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    return spreadsheet_text(cell) if isinstance(cell, str) else repr(cell) if isinstance(cell, float) else str(cell)


def latex_text(table: Table) -> str:
    """A table as LaTeX."""
    is_text = [any(isinstance(row[place], str) for row in table.rows) for place in range(len(table.columns))]
    lines = [
        f"% {visible(table.title)}. Needs \\usepackage{{booktabs}}.",
        f"\\begin{{tabular}}{{{''.join('l' if text else 'r' for text in is_text)}}}",
        "\\toprule",
        " & ".join(map(latex_escaped, table.columns)) + r" \\",
        "\\midrule",
        *(" & ".join(latex_escaped(shown(cell, table.digits)) for cell in row) + r" \\" for row in table.rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def latex_escaped(text: str) -> str:
    """A text as LaTeX prints it, whatever is in it."""
    return "".join(_LATEX.get(character, character) for character in visible(text))


def markdown_table(table: Table) -> list[str]:
    """A table as lines of Markdown."""
    lines = [f"| {' | '.join(map(markdown_escaped, table.columns))} |", f"|{'---|' * len(table.columns)}"]
    lines += [f"| {' | '.join(markdown_escaped(shown(cell, table.digits)) for cell in row)} |" for row in table.rows]
    return lines


def markdown_escaped(text: str) -> str:
    """A name as text of a Markdown table, whatever is in it."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in one_line(text))


def shown(cell: Cell, digits: int) -> str:
    """A cell as people read it."""
    if isinstance(cell, Interval):
        return "" if cell.ends is None else " to ".join(_number(end, digits) for end in cell.ends)
    if isinstance(cell, Signed):
        return "" if cell.value is None else f"{cell.value:+.{digits}f}"
    if cell is None:
        return ""
    if isinstance(cell, float):
        return _number(cell, digits)
    return f"{cell:,}" if isinstance(cell, int) else cell


def _number(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return ""
    text = f"{value:.{digits}f}"
    # a p-value of 0.000 would be a claim
    return f"{value:.1e}" if value and not float(text) else text


def visible(text: str) -> str:
    """Text on one line, with control and direction-changing characters spelled out."""
    return "".join(
        character.encode("unicode_escape", "backslashreplace").decode("ascii")
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else character
        for character in text
    )
