"""`masp report --latex`: all files, which fit together, the same every time, whatever names are in them."""

import re
import shutil
import subprocess

import pytest

from masp.errors import InputError
from masp.report.page import write_report
from tests.unit.report.paper.runs import INJECTION, check_latex, explain, make_cited_run

HOSTILE = (INJECTION, "$x$ %", "恐怖")
"""Categories of the explanations."""


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """Run with hostile names of categories, files and dataset, and what was written for a paper."""
    directory = tmp_path_factory.mktemp("paper")
    run = make_cited_run(directory)
    explain(run, categories=HOSTILE)
    write_report(run, latex=directory / "paper")
    return run, directory / "paper"


def test_main_inputs_every_table_and_figure_and_all_of_them_exist(paper):
    _, directory = paper
    text = (directory / "main.tex").read_text()
    inputs = re.findall(r"\\(?:fitted|input)\{([^#{}]+)\}", text) + re.findall(
        r"\\includegraphics\[.*?\]\{(.+?)\}", text
    )
    files = {directory / (name if "." in name else f"{name}.tex") for name in inputs}
    assert all(file.is_file() for file in files)
    written = {path for part in ("tables", "figures") for path in (directory / part).iterdir()}
    assert {path for path in written if path.suffix in (".tex", ".pdf")} | {directory / "methods.tex"} == files
    assert {path.with_suffix(".csv") for path in written if path.suffix == ".tex"} == set(
        directory.glob("tables/*.csv")
    )
    assert {path.with_suffix(".svg") for path in written if path.suffix == ".pdf"} == set(
        directory.glob("figures/*.svg")
    )
    assert {"metrics.tex", "confusion.tex", "lineage.tex", "digests.tex", "training.tex", "variants.tex"} <= {
        path.name for path in written
    }
    assert {f"contributions{by}.pdf" for by in ("", "-by-prediction", "-by-label")} <= {path.name for path in written}
    index = (directory / "README.md").read_text()
    assert all(path.name.split(".")[0] in index.replace("\\", "") for path in written)


def test_every_latex_file_is_well_formed_whatever_is_in_it(paper):
    _, directory = paper
    for path in [*directory.glob("*.tex"), *directory.glob("tables/*.tex")]:
        check_latex(path.read_text(encoding="utf-8"))


def test_columns_of_every_row_are_those_of_the_table(paper):
    _, directory = paper
    for path in directory.glob("tables/*.tex"):
        text = path.read_text(encoding="utf-8")
        columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1]
        rows = [line for line in text.splitlines() if line.endswith(r" \\")]
        assert rows and all(len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1 for row in rows), path


def test_the_same_run_gives_the_same_bytes(paper, tmp_path):
    run, directory = paper
    write_report(run, tmp_path / "page.html", latex=tmp_path / "paper")
    for path in directory.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "paper" / path.relative_to(directory)).read_bytes(), path


def test_it_compiles(paper, tmp_path):
    _, directory = paper
    program = shutil.which("lualatex") or shutil.which("xelatex")
    if program is None:
        pytest.skip("needs lualatex or xelatex")
    shutil.copytree(directory, tmp_path / "paper")
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path / "paper", capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "paper" / "main.pdf").is_file(), done.stdout[-3000:]


def test_a_place_that_cannot_be_written_is_one_line(paper, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "paper"):
        with pytest.raises(InputError, match=f"^--latex {place}.*: cannot be written: .*") as error:
            write_report(paper[0], tmp_path / "page.html", latex=place)
        assert "\n" not in str(error.value)
