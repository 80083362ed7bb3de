"""What an installation holds, and that its commands work from any directory."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from launch.job.config import load_cluster
from tests.runs import REPOSITORY

SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "masp", "launch", "configs")
DATA = [
    path.relative_to(REPOSITORY).as_posix()
    for path in sorted((REPOSITORY / "masp").rglob("*"))
    if path.is_file() and path.suffix not in (".py", ".pyc")
]
CONFIGS = [path.relative_to(REPOSITORY).as_posix() for path in sorted((REPOSITORY / "configs").rglob("*.yaml"))]


def run(*command: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run a command without this checkout on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def ok(*command: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    done = run(*command, cwd=cwd, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def copy_sources(target: Path) -> Path:
    """A clone without what is not part of the package, so that building leaves nothing in this one."""
    target.mkdir()
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)
    return target


def make_environment(folder: Path) -> Path:
    """A virtual environment that sees the packages of this one, but not its MASP; returns its Python."""
    ok(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    site = next(folder.glob("lib/python*/site-packages"))
    # Through a path of its own, without running the .pth files there: one of them may name a checkout.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def install(python: Path, *what: object) -> None:
    command = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-build-isolation")
    ok(*command, *what, "--no-index", "--ignore-installed", cwd=python.parent)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    clone = copy_sources(folder / "clone")
    command = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index")
    ok(*command, "-w", folder, clone, cwd=folder)
    return next(folder.glob("masp-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The commands of an environment that the wheel is installed into."""
    python = make_environment(tmp_path_factory.mktemp("environment") / "venv")
    install(python, wheel)
    return python.parent


def test_the_wheel_holds_all_files(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert len(DATA) > 5 and "masp/py.typed" in DATA and any(name.endswith(".j2") for name in DATA)
    assert set(DATA) <= names
    assert len(CONFIGS) > 10 and {f"masp/{name}" for name in CONFIGS} <= names
    modules = {
        path.relative_to(REPOSITORY).as_posix() for p in ("masp", "launch") for path in (REPOSITORY / p).rglob("*.py")
    }
    assert modules <= names
    others = {name for name in names if not name.startswith(("masp/", "launch/")) and ".dist-info/" not in name}
    assert not others


def test_every_configuration_that_the_documentation_names_works_outside_the_clone(installed, tmp_path):
    documents = [
        REPOSITORY / "README.md",
        *(REPOSITORY / "docs").glob("*.md"),
        *(REPOSITORY / "configs").rglob("*.yaml"),
    ]
    text = "\n".join(path.read_text(encoding="utf-8") for path in documents)
    clusters = sorted(set(re.findall(r"--cluster (configs/[\w/.-]+)", text)))
    configs = sorted(set(re.findall(r"--(?:config|on) (configs/[\w/.-]+)", text)))
    assert len(clusters) == 2 and len(configs) > 4
    code = f"""if True:
        import masp, pathlib
        from masp.cli.main import main
        from masp.config import load_config
        from masp.data.questions import load_questions
        from launch.cli import main as launch
        from masp.runtime import log
        log.setup()
        assert "site-packages" in masp.__file__, masp.__file__
        for path in {configs}:
            assert load_questions(load_config(path).questions).target_templates
        assert pathlib.Path(load_config("configs/demo.yaml").vlm.path, "config.json").is_file()
        from {load_cluster.__module__} import load_cluster
        for path in {clusters}:
            load_cluster(path)
    """
    done = ok(installed / "python", "-c", code, cwd=tmp_path)
    notes = done.stderr.splitlines()
    assert all(re.fullmatch(r"note: \S+ does not exist; using MASP's own \S+", note) for note in notes), notes
    assert len(notes) == len(set(notes)) >= len(clusters) + len(configs) + 2
    assert not list(tmp_path.iterdir())


def test_commands_work_outside_the_clone(installed, tmp_path):
    assert "usage: masp demo" in ok(installed / "masp", "demo", "--help", cwd=tmp_path).stdout
    ok(installed / "masp", "make-demo-data", "data/demo", "--num-train", 4, "--num-test", 2, cwd=tmp_path)
    done = ok(installed / "masp", "plan", "--config", "configs/demo.yaml", "--json", cwd=tmp_path)
    assert "note: masp/" in done.stderr and "note: configs/questions.yaml" in done.stderr
    missing = run(installed / "masp", "plan", "--config", "configs/tarin.yaml", cwd=tmp_path)
    assert missing.returncode == 2
    assert missing.stderr == "error: configs/tarin.yaml does not exist\n"


def test_an_editable_clone_called_masp_works_from_its_parent_directory(tmp_path):
    clone = copy_sources(tmp_path / "masp")
    python = make_environment(tmp_path / "venv")
    install(python, "-e", clone)
    for folder in (tmp_path, clone, clone.parent.parent):
        where = ok(python, "-c", "import masp, launch; print(masp.__file__)", cwd=folder).stdout.strip()
        assert where == str(clone / "masp" / "__init__.py")
    assert "usage: " in ok(python, "-m", "masp.cli", "--help", cwd=tmp_path).stdout
    assert not (clone / "masp" / "configs").exists()
    code = "from masp.config import load_config; print(load_config('configs/demo.yaml').questions)"
    assert ok(python, "-c", code, cwd=tmp_path).stdout.strip() == str(clone / "configs" / "questions.yaml")
