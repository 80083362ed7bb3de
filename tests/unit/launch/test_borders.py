"""Whatever is in the place of a file that `launch` reads, the user gets one line and exit code 2 or 3."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launch.cli import main
from launch.submission.record import JOBS, read_record, write_record
from masp.errors import MaspError
from tests.unit.launch.borders import BORDERS, FAILURE, RECORD, STATUS, LaunchBorder

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "not UTF-8": lambda data: data.replace(b"a", b"\xff", 1),
    "NaN": lambda _: b'{"time": NaN}',
    "infinite": lambda data: b'{"time": 1e999}',
    "a huge number": lambda _: b'{"time": ' + b"9" * 5000 + b"}",
    "deep": lambda _: b"[" * 200_000,
    "deep and whole": lambda _: b'{"time": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "null": lambda _: b"null",
    "a list": lambda _: b"[]",
    "a string": lambda _: b'"running"',
    "another object": lambda _: b'{"a": 1}',
    "a key twice": lambda data: (
        b"train: {nodes: 1}\n" + data if data[:1] != b"{" else data.replace(b"{", b'{"time": 1, "time": 2, ', 1)
    ),
    "zeros": lambda data: bytes(len(data)),
}


def put(path: Path, kind: str) -> None:
    """Make what is not a regular file."""
    path.unlink(missing_ok=True)
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path.name)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("border", BORDERS, ids=lambda border: border.name)
def test_a_damaged_file_is_one_line(border: LaunchBorder, damage: str, tmp_path):
    path = tmp_path / border.file
    data = DAMAGES[damage](border.content)
    if border.form == "yaml" and damage == "cut off":
        data = data[: data.rindex(b"\n") + 1]  # inside a line it may not be YAML any more
    path.write_bytes(data)
    if border.form == "yaml" and damage in ("empty", "null", "cut off"):
        assert border.read(path)  # fewer settings: the others have their defaults
        return
    with pytest.raises(MaspError) as error:
        border.read(path)
    text = str(error.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 700, text
    assert error.value.exit_code == (2 if border.form == "yaml" else 3)


@pytest.mark.parametrize("kind", ["directory", "fifo", "loop"])
@pytest.mark.parametrize("border", BORDERS, ids=lambda border: border.name)
def test_what_is_not_a_file_is_one_line(border: LaunchBorder, kind: str, tmp_path):
    path = tmp_path / border.file
    put(path, kind)
    with pytest.raises(MaspError) as error:
        border.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("border", BORDERS, ids=lambda border: border.name)
def test_a_file_that_may_not_be_read_is_one_line(border: LaunchBorder, tmp_path, monkeypatch):
    path = tmp_path / border.file
    path.write_bytes(border.content)
    opened = os.open

    def refuse(name, *arguments, **more):  # root may read everything
        if Path(os.fsdecode(name)) == path:
            raise PermissionError(13, "Permission denied", str(name))
        return opened(name, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)
    if border.form == "yaml":
        monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(MaspError, match="Permission denied") as error:
        border.read(path)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("border", BORDERS, ids=lambda border: border.name)
def test_a_name_that_is_too_long_is_one_line(border: LaunchBorder, tmp_path):
    with pytest.raises(MaspError, match="File name too long|name too long") as error:
        border.read(tmp_path / ("x" * 300) / border.file)
    assert error.value.exit_code == 2 and "\n" not in str(error.value)


def changed(value: object) -> list[object]:
    """The value with one part of it replaced by one of another type, in every place."""
    found: list[object] = [{} if value is None or isinstance(value, str | bool | int | float) else "odd"]
    if isinstance(value, dict):
        for key, item in value.items():
            found += [{**value, key: other} for other in changed(item)]
            found.append({name: item for name, item in value.items() if name != key})
    if isinstance(value, list):
        for index, item in enumerate(value):
            found += [[*value[:index], other, *value[index + 1 :]] for other in changed(item)]
    return found


@pytest.mark.parametrize("border", [b for b in BORDERS if b.form == "json"], ids=lambda border: border.name)
def test_a_value_of_another_type_is_named_wherever_it_is(border: LaunchBorder, tmp_path):
    path = tmp_path / border.file
    path.write_bytes(border.content)
    whole = border.read(path)
    values = changed(json.loads(border.content))
    assert len(values) > 4
    for value in values:
        path.write_text(json.dumps(value))
        try:
            found = border.read(path)
        except MaspError as error:
            assert error.exit_code == 3 and "\n" not in str(error) and str(error).startswith(f"{path}: ")
        else:  # a key that has a default was left out
            assert type(found) is type(whole) and isinstance(value, dict)


@pytest.fixture
def local(directory) -> Path:
    """A local submission whose only file that is missing is its status."""
    write_record(directory, replace(read_record(directory), executor="local"))
    return directory


COMMANDS = (["status"], ["logs"], ["cancel"], ["resume"])


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("submission.json", "[]", 3),
        ("submission.json", json.dumps(RECORD | {"executor": "pbs"}), 3),
        ("status.json", json.dumps(STATUS | {"parts": []}), 3),
        ("status.json", '{"state": "runn', 3),
        ("config.yaml", "output_dir: [", 2),
        ("submission.json", None, 2),
        ("status.json", None, 2),
        ("config.yaml", None, 2),
    ],
)
def test_every_command_ends_with_one_line(file, content, code, arguments, local, capsys):
    path = local / file
    if content is None:
        put(path, "fifo" if file != "submission.json" else "loop")
    else:
        path.write_text(content)
    assert main([*arguments, str(local)]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    if file != "submission.json" or content is not None:
        assert str(path) in printed.err


def test_a_damaged_note_of_a_failure_is_one_line(directory, slurm, capsys):
    slurm("7|1|FAILED|None|0:06|node1|0|\n")
    (directory / JOBS / "7_1_0_log.out").touch()
    path = directory / JOBS / "7_1_0_failure.json"
    for content in (json.dumps(FAILURE | {"kind": "other"}), '{"kind": "cause"}', "{" * 5000):
        path.write_text(content)
        assert main(["status", str(directory)]) == 3
        error = capsys.readouterr().err
        assert error.startswith(f"error: {path}: ") and error.count("\n") == 1


def test_one_damaged_submission_is_named_before_another_is_made(directory, slurm, tmp_path, capsys):
    (directory / "submission.json").write_text('{"command": "ext')
    assert main(["status", str(tmp_path / "run")]) == 3
    assert str(directory / "submission.json") in capsys.readouterr().err
