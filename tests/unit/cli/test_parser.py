"""The parsers of the commands: what each accepts, and what its help shows."""

import argparse

import pytest

from masp.cli import commands as commands_module
from masp.cli.commands import build_parser
from masp.cli.parser import Parser, add_command, add_local_rank

COMMANDS = (
    "demo make-demo-data datasets init run plan extract annotate train evaluate predict app serve export push report "
    "compare study sweep doctor cache quantization"
).split()
CACHE_ACTIONS = "info verify extend aspects precision push pull".split()


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return action.choices


def parse(*argv: str) -> argparse.Namespace:
    return build_parser().parse_args(argv)


def test_commands_in_their_order():
    commands = subparsers(build_parser())
    assert list(commands) == COMMANDS
    assert list(subparsers(commands["cache"])) == CACHE_ACTIONS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command, capsys):
    with pytest.raises(SystemExit) as end:
        parse(command, "--help")
    assert end.value.code == 0
    assert f"\n  masp {command} " in capsys.readouterr().out or command in ("demo", "doctor")


def test_every_line_of_help_fits_a_terminal_of_120_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    parser = build_parser()
    parsers = [parser, *subparsers(parser).values(), *subparsers(subparsers(parser)["cache"]).values()]
    for one in parsers:
        assert all(len(line) <= 120 for line in one.format_help().splitlines()), one.prog


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["demo"], {"config": "configs/demo.yaml", "overrides": [], "num_train": None, "num_test": None}),
        (["demo", "--num-train", "3", "seed=1"], {"num_train": 3, "overrides": ["seed=1"]}),
        (
            ["make-demo-data", "d", "--num-train", "3", "--num-test", "2"],
            {"dir": "d", "num_train": 3, "num_val": 0, "num_test": 2, "seed": 0},
        ),
        (["plan"], {"config": None, "json": False, "tflops": None, "utilization": None, "measure": None}),
        (["plan", "--utilisation", "0.5"], {"utilization": 0.5}),
        (["plan", "--utilization", "0.5", "--measure"], {"utilization": 0.5, "measure": 4}),
        (["plan", "--measure", "7", "--rate-from", "r"], {"measure": 7, "rate_from": "r"}),
        (["extract", "--num-tasks", "4", "--task-index", "1"], {"num_tasks": 4, "task_index": 1, "finalize": False}),
        (["extract", "--finalize", "--config", "c"], {"finalize": True, "config": "c"}),
        (["train", "--stage", "stage2", "--profile"], {"stage": "stage2", "profile": True, "local_rank": None}),
        (["evaluate", "--on", "a", "--on", "b"], {"on": ["a", "b"]}),
        (["predict", "a.png", "b.png", "--config", "c"], {"images": ["a.png", "b.png"], "json": False}),
        (
            ["predict", "--model", "r", "-0", "-", "seed=1", "--output", "o.csv"],
            {"images": ["-", "seed=1"], "null": True, "config": None, "output": "o.csv"},
        ),
        (["report", "run", "--output", "page"], {"run_dir": "run", "output": "page"}),
        (["compare", "a", "b"], {"runs": ["a", "b"], "output": "outputs/compare"}),
        (["study", "--seeds", "1,2", "--only", "x", "--list"], {"seeds": "1,2", "only": "x", "list": True}),
        (["doctor"], {"config": None, "overrides": []}),
        (["cache", "info", "c"], {"dir": "c"}),
        (["cache", "verify", "--repair", "--config", "c"], {"dir": None, "repair": True, "config": "c"}),
        (["cache", "extend", "--num-tasks", "2"], {"num_tasks": 2, "task_index": None}),
        (["cache", "aspects", "--config", "c"], {"config": "c"}),
        (["cache", "precision", "--dtype", "int8"], {"dtype": ["int8"], "num_images": 256, "json": False}),
    ],
)
def test_what_a_command_accepts(argv, expected):
    found = vars(parse(*argv))
    assert {name: found[name] for name in expected} == expected
    assert callable(found["run"])


@pytest.mark.parametrize(
    "argv",
    [
        ["train"],
        ["train", "--stage", "stage3"],
        ["predict", "a.png"],
        ["compare"],
        ["make-demo-data", "d", "--num-train", "1"],
        ["cache"],
        ["plan", "--tflops", "many"],
        ["nothing"],
        [],
    ],
)
def test_what_a_command_lacks_is_one_line(argv, capsys):
    with pytest.raises(SystemExit) as end:
        parse(*argv)
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.endswith("--help`\n") and printed.err.count("\n") == 1


def test_an_error_shows_control_characters_as_text(capsys):
    with pytest.raises(SystemExit):
        Parser(prog="masp").error("a\nb\x1b[31m")
    assert capsys.readouterr().err == "error: a\\nb\\x1b[31m; see `masp --help`\n"


def test_details_keep_their_line_breaks():
    commands = Parser(prog="masp").add_subparsers()
    parser = add_command(commands, "look", "look around", "One.\n\n  masp look")
    add_local_rank(parser)
    text = parser.format_help()
    assert "look around.\n\nOne.\n\n  masp look\n" in text and "local" not in text
    assert parser.parse_args(["--local-rank=3"]).local_rank == 3


def test_every_command_module_is_registered():
    assert [module.__name__.rpartition(".")[2] for module in commands_module.COMMANDS] == [
        command for command in COMMANDS if command != "make-demo-data"
    ]


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["trian", "--stage", "stage1"], "'trian' is not valid; did you mean train? See `masp --help`"),
        (["cache", "inof", "c"], "'inof' is not valid; did you mean info? See `masp cache --help`"),
        (["train", "--stage", "stage_2"], "'stage_2' is not valid; did you mean stage2? See `masp train --help`"),
    ],
)
def test_what_a_misspelled_word_may_mean(argv, meant, capsys):
    with pytest.raises(SystemExit) as end:
        parse(*argv)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.endswith(f"{meant}\n") and error.count("\n") == 1


def test_the_order_of_work_begins_with_the_dataset():
    steps = [line.split()[1] for line in build_parser().format_help().splitlines() if line.startswith("  masp ")]
    assert steps == [
        *("init", "run"),
        *("datasets", "plan", "extract", "annotate", "train", "train", "evaluate", "report", "app", "export"),
    ]
