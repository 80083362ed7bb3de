"""Names come from anywhere; no text that MASP prints commands the terminal, changes its direction or adds a line."""

import ast
import json
import sys

import pytest
from PIL import Image

from masp.cli.main import main
from masp.runtime.log import say, say_error, setup, show
from masp.runtime.run_directory import RunState, noting_failure, read_status, write_status
from tests.tiny import make_vlm
from tests.unit.test_architecture import REPOSITORY

HOSTILE = {
    "title of the window": "\x1b]0;evil\x07joy",
    "color": "\x1b[31mjoy",
    "C1": "\x9b2Jjoy",
    "direction": "\u202ejoy\u202c",
    "isolate": "\u2066joy\u2069",
    "zero width": "jo\u200by\ufeff",
    "line": "joy\nerror: forged",
    "return": "joy\rerror: forged",
    "separators": "joy\u2028error\u2029forged\x85x\x0bx\x0cx",
    "backspace": "joy\b\b\bfear",
    "tab": "joy\tfear",
    "surrogate": "joy\udcff",
    "language tag": "joy\U000e0041",
}
NAME = "".join(HOSTILE.values())


def harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n")) and "\nerror: forged" not in text


@pytest.mark.parametrize("name", HOSTILE)
def test_every_way_to_the_screen_escapes(name, capsys):
    setup(0)
    show(f"a {HOSTILE[name]}", "b")
    say(f"a {HOSTILE[name]}")
    show(f"a {HOSTILE[name]}", to=sys.stderr)
    say_error(f"a {HOSTILE[name]}")
    found = capsys.readouterr()
    assert harmless(found.out) and harmless(found.err)
    assert len(found.out.splitlines()) == 3 and len(found.err.splitlines()) == 2
    assert "joy" in found.out or "jo\\u200by" in found.out


def test_what_is_printable_stays_as_it_is(capsys):
    show("émotion 喜び — größer, 100 % …")
    assert capsys.readouterr().out == "émotion 喜び — größer, 100 % …\n"


ALLOWED = {
    "masp/runtime/log.py": 2,  # `show` and `say_error`
    "launch/watch.py": 1,  # the sequence that moves the cursor up, with a number in it
}


WRITES = ("print", "sys.stdout.write", "sys.stderr.write", "tqdm.write", "warnings.warn", "pprint")


def test_nothing_prints_but_through_them():
    found: dict[str, int] = {}
    for path in [*(REPOSITORY / "masp").rglob("*.py"), *(REPOSITORY / "launch").rglob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in WRITES:
                name = str(path.relative_to(REPOSITORY))
                found[name] = found.get(name, 0) + 1
    assert found == ALLOWED


def test_no_progress_bar_is_named_after_something_from_outside():
    for path in [*(REPOSITORY / "masp").rglob("*.py"), *(REPOSITORY / "launch").rglob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call):
                continue
            name = ast.unparse(call.func)
            assert not name.endswith(("set_description", "set_description_str")), path
            for keyword in call.keywords if name.endswith("tqdm") else ():
                if keyword.arg == "desc":
                    assert isinstance(keyword.value, ast.Constant) or ast.unparse(keyword.value) == "stage", path


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return make_vlm(tmp_path_factory.mktemp("shown") / "vlm")


def make_dataset(root):
    """A dataset whose categories and files have hostile names; categories may not hold every character."""
    for split in ("train", "test"):
        for number, text in enumerate(("\x1b]0;evil\x07joy\u202e\x9b2J\u200b", "fear")):
            directory = root / split / text
            directory.mkdir(parents=True)
            Image.new("RGB", (32, 32), (number * 99, 9, 9)).save(
                directory / f"1\x1b[2J\u202e\nerror: forged{number}.png"
            )
    (root / "train" / "fear" / "broken\x1b[2J\nerror: forged.png").write_bytes(b"not an image")
    (root / "tset\x1b[2J\nerror: forged").mkdir()
    return root


COMMANDS = (
    ["doctor"],
    ["plan"],
    ["plan", "--json"],
    ["extract"],
    ["cache", "verify", "CACHE"],
    ["cache", "info", "CACHE"],
    ["train", "--stage", "stage1"],
    ["evaluate"],
    ["predict", "\x1b[2J\nerror: forged.png"],
    ["report", "\x1b[2J\nerror: forged"],
    ["compare", "\x1b[2J\nerror: forged", "\x1b[3J"],
    ["study", "--list"],
)


def test_a_dataset_with_hostile_names_is_shown_harmlessly(vlm, tmp_path, capsys):
    root, cache = make_dataset(tmp_path / "d\x1b]0;evil\x07"), f"{tmp_path}/c\x1b[2J\u202e"
    settings = [f"dataset.root={root}", "dataset.name=folder", f"output_dir={tmp_path}/out\x1b[2J", f"vlm.path={vlm}"]
    (tmp_path / "config.yaml").write_text(json.dumps({"cache": {"dir": cache}, "extract": {"max_bad_fraction": 0.9}}))
    out = ""
    for command in COMMANDS:
        words = [cache if word == "CACHE" else word for word in command]
        if command[0] not in ("cache", "report", "compare"):
            words += ["--config", str(tmp_path / "config.yaml"), *settings]
        code = main(words)
        found = capsys.readouterr()
        assert harmless(found.out), (command, found.out)
        assert harmless(found.err.replace("\r", "\n")), (command, found.err)  # a progress bar returns
        assert command[0] in ("train", "evaluate", "predict", "report", "compare") or code == 0, found.err
        out += found.out
    assert out.count("\\x1b]0;evil\\x07joy\\u202e") >= 4, out


@pytest.mark.parametrize("name", sorted(set(HOSTILE) - {"surrogate"}))  # which JSON escapes
def test_a_status_holds_one_line(name, tmp_path):
    write_status(tmp_path, RunState.FAILED, 1, HOSTILE[name])
    assert read_status(tmp_path).message.isprintable()
    with pytest.raises(ZeroDivisionError), noting_failure(tmp_path):
        raise ZeroDivisionError(HOSTILE[name])
    assert json.loads((tmp_path / "status.json").read_text())["message"].isprintable()
