"""Settings on the command line: where they may be, what is a path, and what an unknown option may have meant."""

import pytest

from masp.cli.parser import Parser
from masp.cli.settings import add_settings, is_setting, parse_arguments, separate_settings, setting_names


@pytest.fixture
def parser():
    """A parser with one command that takes settings, one that takes images too, and one that takes neither."""
    parser = Parser(prog="masp")
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train")
    train.add_argument("--stage")
    add_settings(train, "c.yaml")
    predict = commands.add_parser("predict")
    predict.add_argument("images", nargs="+")
    predict.add_argument("--json", action="store_true")
    commands.add_parser("report").add_argument("run_dir")
    return parser


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "a=1", "b=2", "--stage", "stage1", "--config", "d"],
        ["train", "a=1", "--stage", "stage1", "b=2", "--config", "d"],
        ["train", "--stage", "stage1", "--config", "d", "a=1", "b=2"],
    ],
)
def test_settings_may_be_anywhere(parser, argv):
    found = parse_arguments(parser, argv)
    assert (found.stage, found.config, found.overrides) == ("stage1", "d", ["a=1", "b=2"])


def test_without_settings(parser):
    found = parse_arguments(parser, ["train"])
    assert (found.config, found.overrides) == ("c.yaml", [])
    assert parse_arguments(parser, ["predict", "a.png", "seed=1"]).images == ["a.png", "seed=1"]
    assert parse_arguments(parser, ["predict", "a.png", "--json", "-"]).images == ["a.png", "-"]  # standard input


def test_arguments_of_the_process(parser, monkeypatch):
    monkeypatch.setattr("sys.argv", ["masp", "train", "seed=3"])
    assert parse_arguments(parser, None).overrides == ["seed=3"]


def test_a_configuration_before_the_command(parser, capsys):
    for argv in (["--config", "c.yaml", "train", "--stage", "stage1"], ["--config=c.yaml", "train"]):
        assert "--config comes after the command" in refusal(parser, argv, capsys)


def refusal(parser, argv, capsys, **names) -> str:
    with pytest.raises(SystemExit) as end:
        parse_arguments(parser, argv, **names)
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == "" and printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize(
    ("argv", "suggestion"),
    [
        ("train --stage stage1 --learning_rate 1e-4", "stage1.learning_rate=1e-4"),
        ("train --stage stage2 --learning-rate=1e-4", "stage2.learning_rate=1e-4"),
        ("train --learning_rate 1e-4", "stage1.learning_rate=1e-4 or stage2.learning_rate=1e-4"),
        ("train --stage2.num-epochs 3", "stage2.num_epochs=3"),
        ("train --seed 3", "seed=3"),
        ("train --stage stage1 --learning_rat 3", "stage1.learning_rate=3"),
        ("train --seed", "seed=…"),
        ("train --seed --stage stage1", "seed=…"),
        ("train --seed output_dir=x", "seed=…"),
        ("predict a.png --scoring generate", "evaluate.scoring=generate"),
    ],
)
def test_an_option_that_looks_like_a_setting(parser, capsys, argv, suggestion):
    line = refusal(parser, argv.split(), capsys)
    assert f"; a setting is given as key=value, without dashes: {suggestion}; see `masp --help`" in line


@pytest.mark.parametrize("argv", ["train --nothing-like-it 3", "report run --seed 3", "train -q"])
def test_an_option_that_is_nothing_we_know(parser, capsys, argv):
    line = refusal(parser, argv.split(), capsys)
    assert line.startswith("error: unrecognized arguments: -") and "key=value" not in line


def test_a_command_that_takes_no_settings_refuses_them(parser, capsys):
    assert refusal(parser, ["report", "run", "seed=3"], capsys).startswith("error: unrecognized arguments: seed=3;")


def test_names_of_other_settings_may_be_suggested(parser, capsys):
    line = refusal(parser, ["train", "--partition", "gpu"], capsys, names=lambda: ["cluster.partition"])
    assert "cluster.partition=gpu" in line


def test_names_of_settings():
    names = setting_names()
    assert {"seed", "stage1.learning_rate", "cache.dir"} < set(names) and len(names) == len(set(names)) > 60


def test_a_setting_beside_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed=1").write_bytes(b"")
    arguments = ["a.png", "vlm.path=x.png", "b=c.png", "seed=1", "nothing=1", "+dataset.root=d.png"]
    assert separate_settings(arguments) == (
        ["a.png", "b=c.png", "seed=1"],
        ["vlm.path=x.png", "nothing=1", "+dataset.root=d.png"],
    )


@pytest.mark.parametrize("argument", [f"seed={'x' * 5000}", "seed=a\0b", "stage1.learning_rate=1"])
def test_what_no_file_system_can_hold_is_a_setting(argument):
    assert is_setting(argument)


def test_a_path_that_may_not_be_examined_is_a_path(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.stat", refuse)
    assert not is_setting("a/b=c.png") and is_setting("seed=1")
