"""Tables as files: what other programs read is what the table holds, and nothing in it is taken for a command."""

import csv
import io
import re

import pytest

from masp.errors import InputError
from masp.report.export import (
    Interval,
    Signed,
    Table,
    csv_text,
    file_name,
    latex_escaped,
    latex_text,
    markdown_table,
    spreadsheet_text,
    write_tables,
)

NASTY = ["=1+1", "+1", "-1", "@x", "\tx", "\r=1", "\n=1", "＝1", 'a"b', "a,b", "a\nb", "$x_1$", "a & b \\\\ %", "​x"]

TABLE = Table(
    "t", "A & B", ("name", "share", "range", "gain", "count"),
    [("joy", 0.123456789, Interval((0.1, 0.25)), Signed(-0.5), 1234), ("=x", None, Interval(None), Signed(None), 0)],
)  # fmt: skip


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def test_csv_has_full_precision_and_two_columns_for_an_interval():
    assert read(csv_text(TABLE)) == [
        ["name", "share", "range low", "range high", "gain", "count"],
        ["joy", "0.123456789", "0.1", "0.25", "-0.5", "1234"],
        ["'=x", "", "", "", "", "0"],
    ]


@pytest.mark.parametrize("text", NASTY)
def test_no_text_is_a_formula_or_breaks_a_line(text):
    (cell,) = read(csv_text(Table("t", "", ("a",), [(text,)])))[1]
    assert cell == spreadsheet_text(text) and "\n" not in cell and "\r" not in cell
    assert not cell.startswith(("=", "+", "-", "@", "\t", "＝"))
    assert csv_text(Table("t", "", (text,), [])).count("\n") == 1


def test_harmless_text_stays_as_it_is():
    for text in ("joy", "a-b", "1=2", "Ärger", "悲しみ", "'tis", ""):
        assert spreadsheet_text(text) == text


def test_latex_escapes_whatever_is_a_command():
    assert latex_escaped(r"50% of $x_1$ & {a}\b#~^") == (
        r"50\% of \$x\_1\$ \& \{a\}\textbackslash{}b\#\textasciitilde{}\textasciicircum{}"
    )
    # after a line break these would be its argument
    assert latex_escaped("[2cm] *") == "{[}2cm{]} {*}"
    text = latex_text(TABLE)
    assert "% A & B. Needs" in text.splitlines()[0] and text.count(r"\\") == 3
    assert r"joy & 0.123 & 0.100 to 0.250 & {-}0.500 & 1,234 \\" in text
    for nasty in NASTY:
        row = latex_text(Table("t", "", ("a", "b"), [(nasty, 1)])).splitlines()[5]
        assert row.endswith(r" & 1 \\") and len(re.findall(r"(?<!\\)&", row)) == 1, row


def test_a_small_p_value_is_not_shown_as_zero():
    assert "| 3.0e-07 |" in "\n".join(markdown_table(Table("t", "", ("p",), [(3e-7,)])))
    assert "| 0.000 |" in "\n".join(markdown_table(Table("t", "", ("p",), [(0.0,)])))


def test_markdown_escapes_names():
    assert markdown_table(Table("t", "", ("a|b",), [("<b>",)])) == ["| a\\|b |", "|---|", "| \\<b\\> |"]


def test_files_are_the_same_every_time_and_errors_name_the_directory(tmp_path):
    first = write_tables(tmp_path / "a", [TABLE, Table("empty", "", ("x",), [])], "--tables")
    assert [path.name for path in first] == ["t.csv", "t.tex", "empty.csv", "empty.tex"]
    again = write_tables(tmp_path / "b", [TABLE], "--tables")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in first[:2]]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"^--tables {tmp_path / 'file'}: cannot be written: "):
        write_tables(tmp_path / "file", [TABLE], "--tables")


def test_names_of_files_are_plain_and_those_of_other_alphabets_stay_apart():
    assert file_name("human action/\\..") == "human-action" and file_name("A" * 300) == "a" * 50
    names = {file_name(text) for text in ("表情", "場所", "é", "e", "../../x", "..")}
    assert len(names) == 6 and all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)
