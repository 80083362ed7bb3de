"""The report: one HTML file that shows an evaluation and opens anywhere, without a network.

What it shows is gathered by `masp.report.content`. Names, labels and texts are data: the template escapes them, and the
page's content security policy forbids scripts and addresses altogether.
"""

from __future__ import annotations

from pathlib import Path

from masp.errors import InputError
from masp.files.atomic import write_bytes
from masp.files.regular import is_directory
from masp.files.text import reason
from masp.report.content import gather
from masp.report.html import environment
from masp.report.paper.bundle import write_paper
from masp.report.paper.run_tables import write_run_tables


def write_report(
    run_dir: str | Path,
    output: str | Path | None = None,
    tables: str | Path | None = None,
    latex: str | Path | None = None,
) -> Path:
    """Write the report of a run.

    Args:
        run_dir: Run directory, or the directory of one evaluation (the one with `metrics.json`).
        output: HTML file; None: `report.html` in `run_dir`.
        tables: Directory for the tables as CSV and LaTeX, and for a line per image; None: they are not written.
        latex: Directory for what a paper needs, see `masp.report.paper.bundle`; None: it is not written.

    Returns:
        The file that was written.

    Raises:
        InputError: The directory does not exist, or nothing was evaluated there; the message says what to run.
        DataError: `metrics.json` or `summary.json` is damaged.
    """
    run_dir = Path(run_dir)
    content = gather(run_dir)
    html = environment().get_template("report.html.j2").render(vars(content))
    output = run_dir / "report.html" if output is None else Path(output)
    if is_directory(output):
        raise InputError(f"{output}: is a directory; name the HTML file to write")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # A file name that is not UTF-8 reaches us as lone surrogates, which no HTML file can hold.
        write_bytes(output, html.encode("utf-8", errors="backslashreplace"))
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {reason(error)}; give --output another file") from None
    if tables is not None:
        write_run_tables(Path(tables), content)
    if latex is not None:
        write_paper(Path(latex), content)
    return output
