r"""What a paper needs of a run, in one directory: tables, figures, the methods paragraph, and a document with all.

    main.tex                 a document that holds everything, to look at and to copy from
    methods.tex, methods.md  the methods paragraph (`masp.report.paper.methods`)
    tables/<name>.csv, .tex  every table of the report, and `digests`
    figures/<name>.svg, .pdf every figure of the report
    README.md                which file is what

The same run gives the same bytes with the same versions of matplotlib and Pillow.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from masp.errors import InputError
from masp.files.atomic import write_bytes
from masp.files.text import reason
from masp.report.content import Content
from masp.report.export import Table, latex_escaped, markdown_escaped, markdown_table, visible, write_tables
from masp.report.paper.drawing import saved, style
from masp.report.paper.facts import gather_facts
from masp.report.paper.figures import PaperFigure, figures_of
from masp.report.paper.methods import as_latex, as_markdown, digest_table, methods
from masp.report.paper.run_tables import run_tables

LOG = logging.getLogger(__name__)

KEY = "--latex"
TABLES, FIGURES = "tables", "figures"
_FLOATS = 8
"""Tables or figures after which the document puts out what has no place yet: LaTeX keeps only so many."""
_PREAMBLE = r"""\documentclass[10pt]{article}
\usepackage{iftex}
\ifPDFTeX
  \usepackage[T1]{fontenc}
  \usepackage[utf8]{inputenc}
\else
  \usepackage{fontspec} % LuaLaTeX and XeLaTeX take names in other alphabets; choose a font that has them
\fi
\usepackage{textcomp}
\usepackage[margin=2.5cm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage{adjustbox}
% A table no larger than the page.
\newcommand{\fitted}[1]{%
  \begin{adjustbox}{max width=\linewidth, max totalheight=0.85\textheight}\input{#1}\end{adjustbox}}
\begin{document}
"""


def write_paper(directory: Path, content: Content) -> list[Path]:
    """Write everything that a paper needs of a run.

    Args:
        directory: Made if it is missing; files of an earlier report that are not written again stay.
        content: What the report shows.

    Returns:
        The files.

    Raises:
        InputError: They cannot be written.
    """
    facts = gather_facts(content)
    digests = digest_table(facts)
    tables = [*run_tables(content), *([digests] if digests.rows else [])]
    figures = figures_of(content)
    sentences = methods(facts)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / FIGURES).mkdir(exist_ok=True)
        written = write_tables(directory / TABLES, tables, KEY)
        for figure in figures:
            written += _write_figure(directory / FIGURES, figure)
        for name, text in (
            ("methods.tex", as_latex(sentences)),
            ("methods.md", as_markdown(sentences)),
            ("main.tex", _document(content, tables, figures)),
            ("README.md", _index(content, tables, figures)),
        ):
            write_bytes(directory / name, text.encode("utf-8", "backslashreplace"))
            written.append(directory / name)
    except OSError as error:
        raise InputError(f"{KEY} {directory}: cannot be written: {reason(error)}") from None
    return written


def _write_figure(directory: Path, figure: PaperFigure) -> list[Path]:
    with style():
        drawn = saved(figure.draw())
    if drawn.missing:
        LOG.info("%s: the font has no %s, drawn as boxes", directory / figure.name, visible(drawn.missing))
    paths = [directory / f"{figure.name}.svg", directory / f"{figure.name}.pdf"]
    for path, data in zip(paths, (drawn.svg, drawn.pdf), strict=True):
        write_bytes(path, data)
    return paths


def _document(content: Content, tables: Sequence[Table], figures: Sequence[PaperFigure]) -> str:
    """A document that inputs every file."""
    lines = [
        _PREAMBLE,
        rf"\section*{{{latex_escaped(content.name)}}}",
        r"\subsection*{Methods}",
        r"\input{methods}",
        "",
    ]
    for number, table in enumerate(tables, 1):
        lines += [
            r"\clearpage" if number % _FLOATS == 0 else "",
            r"\begin{table}[p]",
            r"  \centering",
            rf"  \caption{{{latex_escaped(table.title)}.}}",
            rf"  \label{{tab:{table.name}}}",
            rf"  \fitted{{{TABLES}/{table.name}}}",
            r"\end{table}",
        ]
    for number, figure in enumerate(figures):
        lines += [
            r"\clearpage" if number % _FLOATS == 0 else "",
            r"\begin{figure}[p]",
            r"  \centering",
            rf"  \includegraphics[width={'' if figure.is_wide else '0.6'}\linewidth]{{{FIGURES}/{figure.name}.pdf}}",
            rf"  \caption{{{latex_escaped(figure.caption)}}}",
            rf"  \label{{fig:{figure.name}}}",
            r"\end{figure}",
        ]
    return "\n".join([*(line for line in lines if line), r"\end{document}"]) + "\n"


def _index(content: Content, tables: Sequence[Table], figures: Sequence[PaperFigure]) -> str:
    """Which file is what."""
    files = [
        (
            "methods.tex, methods.md",
            "the methods of this run, stated from its files alone; what they do not say is left out",
        ),
        ("main.tex", "a document with all of this; LuaLaTeX or XeLaTeX where names are in other alphabets"),
        *((f"{TABLES}/{table.name}.tex, .csv", table.title) for table in tables),
        *((f"{FIGURES}/{figure.name}.pdf, .svg", figure.caption) for figure in figures),
    ]
    return "\n".join(
        [
            f"# {markdown_escaped(content.name)}",
            "",
            "Tables need the package booktabs, `main.tex` also adjustbox. Figures are as wide as a column (8.5 cm),",
            "or, with many categories or images, as a page of two columns (17.5 cm).",
            "",
            *markdown_table(Table("index", "", ("file", "what it is"), files)),
            "",
        ]
    )
