"""The documentation is true: links and paths exist, commands and settings are accepted by the real parsers.

Nothing that a document says is run. A placeholder (`C`, `DIR`, `…`, `[--json]`) stands for any valid value.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import functools
import io
import re
import shlex
import signal
import tomllib
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import masp
from launch.cli import build_parser as launch_parser
from launch.job.config import ClusterConfig, load_cluster
from masp.cli.commands import build_parser as masp_parser
from masp.config import Config, load_config
from masp.errors import DataError, InputError, MaspError, StoppedEarly
from masp.sweep.axes import members_of, read_axes

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *(name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/README.md")),
    *(str(path.relative_to(REPOSITORY)) for path in sorted((REPOSITORY / "docs").rglob("*.md"))),
    *(str(path.relative_to(REPOSITORY)) for path in sorted((REPOSITORY / "examples").glob("*.py"))),
]

TOP = "masp launch tests tools configs docs benchmarks examples .ci".split()
ROOT_FILES = {path.name for path in REPOSITORY.iterdir() if path.is_file()} | {"CONTRIBUTING.md", "CHANGELOG.md"}
NEEDED = ["vlm.path=model", "dataset.root=images", "cache.dir=cache"]
LAUNCHERS = ("torchrun", "deepspeed", "srun")
PROGRAMS = ("masp", "python", "make", *LAUNCHERS)


def text_of(document: str) -> str:
    """A document's text; of a script its docstring."""
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "") if document.endswith(".py") else text


def cut(document: str) -> tuple[str, list[list[str]]]:
    """A document's prose, and its fenced and indented blocks as lines."""
    prose: list[str] = []
    blocks: list[list[str]] = []
    fenced, indented, before = False, False, ""
    for line in text_of(document).splitlines():
        fence = line.lstrip().startswith("```")
        if fence or fenced:
            if fence and not fenced:
                blocks.append([])
            elif not fence:
                blocks[-1].append(line)
            fenced = fenced != fence
        elif line.startswith("    ") and (indented or not before.strip()):
            if not indented:
                blocks.append([])
            indented = True
            blocks[-1].append(line[4:])
        else:
            indented = indented and not line.strip()
            prose.append(line)
        before = line
    return "\n".join(prose), blocks


def spans(document: str) -> list[str]:
    """What stands between backticks in a document's prose, on one line each."""
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", cut(document)[0])]


def lines_of(block: list[str]) -> list[str]:
    """The lines of a block, continued ones joined, without comments and without explanations behind a wide gap."""
    joined = re.sub(r"\\\n\s*", " ", "\n".join(block)).splitlines()
    return [re.split(r"\s#\s" if re.search(r"\s#\s", line) else r"\s{4,}", line)[0].strip() for line in joined]


def unquoted(line: str) -> str:
    """A line with a placeholder for everything in quotes."""
    return re.sub(r"'[^']*'|\"[^\"]*\"", "_", line)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that a document shows."""

    words: tuple[str, ...]
    is_partial: bool
    """Whether required arguments may be missing: it is named in passing, or ends in an ellipsis."""


def commands(document: str) -> Iterator[Command]:
    """The commands of a document, in blocks and between backticks."""
    for block in cut(document)[1]:
        variables: dict[str, str] = {}
        for line in lines_of(block):
            if found := re.fullmatch(r"(\w+)=(?:\"([^\"]*)\"|\((.*)\))", line):
                variables[found[1]] = found[2] or found[3]
            yield from _command(line, variables, "…" in line)
    for span in spans(document):
        yield from _command(span, {}, True)


def _command(line: str, variables: dict[str, str], is_partial: bool) -> Iterator[Command]:
    for name, value in variables.items():
        line = re.sub(rf'"\$\{{{name}\[@\]\}}"|\$\{{?{name}\b\}}?', value, line)
    line = re.split(r"\\?\|(?=\s)|&&|;\s", line)[0]
    line = re.sub(r"(?<=\s)\[(?:key=value …|(-[^\]]+))\]", lambda found: found[1] or "", line)
    if line.split(maxsplit=1)[:1] and line.split()[0] in PROGRAMS:
        words = shlex.split(line)
        for i, word in enumerate(words):
            if word == "…":
                words[i] = "FILE" if words[i - 1].startswith("--") else ""
            elif re.fullmatch("[A-Z]", word):
                words[i] = "1"
        yield Command(tuple(word for word in words if word), is_partial)


@functools.cache
def keys_of(root: type, prefix: str = "") -> frozenset[str]:
    """The dotted keys of a tree of settings."""
    found: set[str] = set()
    for name, kind in typing.get_type_hints(root).items():
        if dataclasses.is_dataclass(kind):
            found |= keys_of(kind, f"{prefix}{name}.")
        else:
            found.add(prefix + name)
    return frozenset(found)


def parsed(
    build: Callable[[], argparse.ArgumentParser], words: list[str], is_partial: bool
) -> argparse.Namespace | None:
    """What a command's own parser makes of it, settings anywhere; None if it lacks arguments and may.

    Raises:
        ValueError: what the parser objects to.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            arguments, rest = build().parse_known_args(words)
    except SystemExit as stopped:
        lacks_something = re.search("arguments are required|expected one argument", errors.getvalue())
        if not stopped.code or (is_partial and lacks_something):
            return None
        raise ValueError(errors.getvalue().strip()) from None
    takes = next((name for name in ("overrides", "images") if hasattr(arguments, name)), None)
    if unknown := [word for word in rest if word.startswith("-") or takes is None]:
        raise ValueError(f"unrecognized arguments: {' '.join(unknown)}")
    if takes:
        getattr(arguments, takes).extend(rest)
    return arguments


def check_settings(settings: list[str], path: str | None, is_cluster: bool = False) -> None:
    """Raise ValueError unless the configuration has these settings and takes their values, if spelled out."""
    keys = keys_of(ClusterConfig if is_cluster else Config)
    for setting in settings:
        if setting.partition("=")[0] not in keys:
            raise ValueError(f"no such setting: {setting}")
    given = [setting for setting in settings if not re.search(r"[…$]|=[A-Z]+$", setting)]
    known = path if path and (REPOSITORY / path).is_file() else None
    with contextlib.chdir(REPOSITORY):
        try:
            if is_cluster:
                load_cluster(known or "configs/cluster/slurm.yaml", given)
            else:
                load_config(known, [*NEEDED, *given])
        except InputError as error:
            raise ValueError(str(error)) from None


def one_of_each(settings: list[str]) -> list[str]:
    """The settings of a member of a sweep over some axes."""
    asked = read_axes(None, settings)
    members = members_of(asked, 1 if asked.ranges else None, 0)
    return [*asked.fixed, *members[0].overrides]


def check_masp(words: list[str], is_partial: bool) -> None:
    arguments = parsed(masp_parser, words, is_partial)
    texts = getattr(arguments, "overrides", None) or getattr(arguments, "images", None) or []
    settings = [text for text in texts if "=" in text and text.lower() != "key=value"]
    if words[:1] == ["sweep"]:
        settings = one_of_each(settings)
    check_settings(settings, getattr(arguments, "config", None))


def check_launch(words: list[str], is_partial: bool) -> None:
    arguments = parsed(launch_parser, words, is_partial)
    settings = [text for text in getattr(arguments, "overrides", None) or [] if text.lower() != "key=value"]
    ours = [text for text in settings if not text.startswith("cluster.")]
    if words[:1] == ["sweep"]:
        ours = one_of_each(ours)
    check_settings(ours, getattr(arguments, "config", None))
    theirs = [text.removeprefix("cluster.") for text in settings if text.startswith("cluster.")]
    check_settings(theirs, getattr(arguments, "cluster", None), is_cluster=True)


def check_script(path: str, words: list[str], is_partial: bool) -> None:
    if not (REPOSITORY / path).is_file():
        raise ValueError(f"there is no {path}")
    if path == "tools/extract_features.py":
        check_masp(["extract", *words], is_partial)
        return
    source = (REPOSITORY / path).read_text(encoding="utf-8")
    for module in re.findall(r"from (benchmarks\.\w+) import [^\n]*\badd_options\b", source):
        source += (REPOSITORY / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    for option in (word for word in words if word.startswith("--")):
        # some are made from a table of names, in which they have underscores
        name = option.removeprefix("--")
        if not re.search(rf"[\"']({option}|{name}|{name.replace('-', '_')})[\"']|\b{name.replace('-', '_')}=", source):
            raise ValueError(f"{path} has no option {option}")


def check_command(command: Command) -> None:
    """Raise ValueError unless the command could be given."""
    program, *words = command.words
    if absent := [word for word in words if re.match(r"configs/\S+\.yaml$", word) and is_missing(word)]:
        raise ValueError(f"there is no {absent[0]}")
    if program in LAUNCHERS:
        at = next((i for i, word in enumerate(words) if word in ("masp", "masp.cli")), None)
        if at is not None:
            check_masp(words[at + 1 :], command.is_partial)
    elif program == "make":
        if unknown := [word for word in words if "=" not in word and word not in make_targets()]:
            raise ValueError(f"the Makefile has no target {unknown[0]}")
    elif program == "masp":
        for first in (words[0] if words else "").split("|"):
            if first:
                check_masp([first, *words[1:]], command.is_partial)
    elif words[:2] == ["-m", "launch"] and len(words) > 2:
        for first in words[2].split("|"):
            check_launch([first, *words[3:]], command.is_partial)
    elif words[:1] == ["-m"] and words[1:2] in (["masp"], ["masp.cli"]):
        check_masp(words[2:], command.is_partial)
    elif words and words[0].endswith(".py"):
        check_script(words[0], words[1:], command.is_partial)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def alternatives(path: str) -> list[str]:
    """`a/{b,c}` as `a/b` and `a/c`."""
    found = re.search(r"\{([^{}]*)\}", path)
    return [path.replace(found[0], one) for one in found[1].split(",")] if found else [path]


@functools.cache
def file_names() -> frozenset[str]:
    return (
        frozenset(path.name for name in TOP for path in (REPOSITORY / name).rglob("*") if path.is_file()) | ROOT_FILES
    )


def module_exists(name: str) -> bool:
    """Whether a dotted name is a module, or something at the top level of one."""
    path = REPOSITORY / name.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    module = path.parent / "__init__.py" if path.parent.is_dir() else path.parent.with_suffix(".py")
    return module.is_file() and bool(
        re.search(rf"^(?:def |class )?{path.name}\b|import .*\b{path.name}\b", module.read_text(encoding="utf-8"), re.M)
    )


def is_missing(span: str) -> bool:
    """Whether a span names a place of the repository, and wrongly."""
    span = span.partition("::")[0]
    if re.fullmatch(rf"({'|'.join(map(re.escape, TOP))})/[\w./*{{}},-]*", span):
        return not all(any(REPOSITORY.glob(one.rstrip("/"))) for one in alternatives(span))
    if re.fullmatch(r"(masp|launch|tests|tools)(\.\w+)+", span):
        return span.removeprefix("masp.") not in masp.__all__ and not module_exists(span)
    if re.fullmatch(r"[\w-]+\.(py|j2)", span) or span in ROOT_FILES:
        return span not in file_names() or (span in ROOT_FILES and not (REPOSITORY / span).is_file())
    return False


def slugs(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_is_something_to_check():
    assert all((REPOSITORY / document).is_file() for document in DOCUMENTS)
    assert len(DOCUMENTS) > 15
    found = [command for document in DOCUMENTS for command in commands(document)]
    assert len(found) > 100 and sum(not command.is_partial for command in found) > 25


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", cut(document)[0]):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / document).parent / path if path else REPOSITORY / document
        if not file.exists() or (anchor and anchor not in slugs(file)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_exist(document):
    missing = [span for span in spans(document) if is_missing(span)]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_are_accepted(document):
    refused = []
    for command in commands(document):
        try:
            check_command(command)
        except ValueError as error:
            refused.append(f"{' '.join(command.words)}: {error}")
    assert not refused


@pytest.mark.parametrize("document", DOCUMENTS)
def test_settings_exist(document):
    known = keys_of(Config) | keys_of(ClusterConfig)
    sections = {key.partition(".")[0] for key in known if "." in key}
    refused = []
    for span in spans(document):
        found = re.fullmatch(r"(?:cluster\.)?([a-z]\w*)\.(\w+)(?:(?:=|: )(.+))?", span)
        if found and found[1] in sections and not is_file_name(span):
            key, value = f"{found[1]}.{found[2]}", found[3]
            if key not in known:
                refused.append(span)
            elif value and key in keys_of(Config):
                try:
                    setting = f"{key}={value}"
                    check_settings(one_of_each([setting]) if value.endswith(")") else [setting], None)
                except ValueError as error:
                    refused.append(f"{span}: {error}")
    assert not refused


def is_file_name(span: str) -> bool:
    return span.endswith((".py", ".yaml", ".json", ".jsonl", ".csv", ".txt", ".h5", ".safetensors", ".pth", ".pt"))


def unsafe_to_paste(line: str) -> str | None:
    """Why a command line of a block cannot be pasted into bash and zsh alike; None if it can."""
    bare = unquoted(line)
    if re.search(r"(^|\s)#", bare):
        return "a comment: an interactive zsh takes it as arguments"
    if re.search(r"\S\s{3,}\S", bare):
        return "an explanation behind a gap: a shell takes it as arguments"
    if re.search(r"\$[\w{(]", bare):
        return "an unquoted variable: zsh does not split it"
    if re.search(r"[*?\[\]]", bare):
        return "an unquoted pattern: zsh replaces it with names of files, or fails"
    return None


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name.endswith(".md")])
def test_commands_can_be_pasted_into_bash_and_zsh(document):
    refused = []
    for block in cut(document)[1]:
        lines = re.sub(r"\\\n\s*", " ", "\n".join(block)).splitlines()
        if any(line.split()[:1] and line.split()[0] in PROGRAMS for line in lines):
            refused += [f"{line}: {why}" for line in lines if (why := unsafe_to_paste(line))]
    assert not refused


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("masp plan --config C  # what it takes", "comment"),
        ("# first", "comment"),
        ("masp report RUN      one page", "explanation"),
        ("masp train $S", "variable"),
        ("masp evaluate aspects=[scene]", "pattern"),
        ("masp predict *.jpg", "pattern"),
        ('masp train "$S" "aspects=[scene]"', None),
    ],
)
def test_what_cannot_be_pasted_is_recognized(line, reason):
    why = unsafe_to_paste(line)
    assert why is None if reason is None else reason in why


def test_the_shown_messages_are_the_real_ones(tmp_path, monkeypatch):
    """The two refused settings in docs/configuration.md, and the one that CONTRIBUTING.md repeats."""
    shown = re.findall(r"^    (error: .*)$", text_of("docs/configuration.md"), re.MULTILINE)
    assert len(shown) == 2 and shown[0] in text_of("CONTRIBUTING.md")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "train.yaml").write_text("\n" * 10 + "stage1:\n  lerning_rate: 1e-4\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as unknown:
        load_config("configs/train.yaml")
    with pytest.raises(InputError) as invalid:
        load_config(None, [*NEEDED, "stage1.num_epochs=0"])
    assert shown == [f"error: {unknown.value}", f"error: {invalid.value}"]


def test_the_exit_codes_in_the_readme_are_those_of_the_code():
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", text_of("README.md"), re.MULTILINE)]
    classes = (MaspError, InputError, DataError, StoppedEarly)
    assert codes == [0, *(kind.exit_code for kind in classes), 128 + signal.SIGINT, 128 + signal.SIGPIPE]


def test_the_names_in_the_architecture_exist():
    """Functions, classes, fields and keys that docs/architecture.md names are defined in the source."""
    files = [path for top in ("masp", "launch") for path in sorted((REPOSITORY / top).rglob("*.py"))]
    source = "\n".join(path.read_text(encoding="utf-8") for path in files)
    names = {span for span in spans("docs/architecture.md") if re.fullmatch(r"[A-Za-z]\w+", span)}
    packages = {path.name for path in (REPOSITORY / "masp").iterdir()} | set(TOP)
    defined = {n for n in names if re.search(rf"^\s*(def|class) {n}\b|^\s+{n}: |[\"']{n}[\"']", source, re.MULTILINE)}
    assert len(names) > 30
    assert not names - defined - packages


def test_the_guide_to_the_tests_is_complete():
    guide = text_of("tests/README.md")
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    markers = [marker.partition(":")[0] for marker in settings["tool"]["pytest"]["ini_options"]["markers"]]
    modules = [f"tests/{path.name}" for path in (REPOSITORY / "tests").glob("[a-z]*.py")]
    assert len(markers) > 3 and len(modules) > 8
    assert not [name for name in (*markers, *modules) if f"| `{name}`" not in guide]


def test_the_changelog_has_the_versions_of_the_code():
    from masp.artifacts.aspect_tokens import FORMAT as aspect_tokens
    from masp.artifacts.store import VERSION as artifact
    from masp.cache.fingerprint import FORMAT_VERSION as cache
    from masp.results.ledger_format import VERSION as ledger
    from masp.results.records import VERSION as records

    rows = [line for line in text_of("CHANGELOG.md").splitlines() if line.startswith("| `")]
    for name, version in (
        *((file, f"`format_version` {cache}") for file in ("layout.json", "manifest.json", "index.h5", "(sidecar)")),
        ("aspect-tokens/", f"`format` {aspect_tokens}"),
        ("aspect.safetensors", f"`version` {artifact}"),
        ("ledger/rank-<n>.jsonl", f"`ledger` {ledger}"),
        ("records.h5", f"`format_version` {records}"),
    ):
        (row,) = (row for row in rows if name in row.split("|")[1])
        assert version in row.split("|")[2], row


@pytest.mark.parametrize("document", DOCUMENTS)
def test_environment_variables_are_read_somewhere(document):
    sources = [*REPOSITORY.glob(".ci/*"), *(path for name in TOP[:-1] for path in (REPOSITORY / name).rglob("*.py"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources if path.is_file())
    names = set(re.findall(r"\bMASP_[A-Z_]+[A-Z]\b", text_of(document)))
    prefix = "MASP_REQUIRE_"  # conftest puts the rest behind it
    assert not [n for n in sorted(names) if n not in text and f'"{n.removeprefix(prefix)}"' not in text]
