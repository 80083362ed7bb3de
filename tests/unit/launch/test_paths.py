"""Paths whose names Slurm or submitit would change, and jobs that start in another directory."""

from pathlib import Path

import pytest

from launch.cli import main
from launch.job.config import load_cluster
from launch.job.parts import make_parts
from launch.paths import check_start_directory, check_submission_path
from launch.submission.slurm_scripts import scripts
from masp.config import load_config
from masp.errors import InputError
from tests.unit.launch.fake_slurm import CONFIG, LOCAL, SLURM

# Each was tried on Slurm 22.05: logs are where they should be.
FINE = ["with space", "quote'", 'double"', "#hash", "$HOME", "`ls`", ";", "*", "~", "-dash", "é漢", "a=b", "{a,b}", "&"]
BAD = {
    "100%x": "'%', which Slurm replaces in the names of logs",
    "%": "'%', which Slurm replaces",
    "back\\slash": "'\\\\', which Slurm replaces",
    "line\nend": "the control character '\\n', which would end a line",
    "tab\t": "the control character '\\t'",
    "esc\x1b[31m": "the control character '\\x1b'",
    "not-utf8-\udcff": "bytes that are not UTF-8",
}


@pytest.mark.parametrize("name", FINE)
def test_a_name_that_can_be_quoted_reaches_the_script(name, tmp_path):
    import shlex

    cluster, config = load_cluster(SLURM), load_config(CONFIG, [f"output_dir={tmp_path / 'x'}"])
    config.output_dir = str(tmp_path / name)
    check_submission_path(config, cluster)
    directory = tmp_path / name / "launch" / "1"
    (text, *_) = scripts(make_parts("train", "stage1", config, cluster, directory), cluster, "r", directory).values()
    (line,) = (line for line in text.splitlines() if line.startswith("#SBATCH --output="))
    assert shlex.split(line.removeprefix("#SBATCH ")) == [f"--output={directory}/jobs/%j_0_log.out"]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_slurm_would_change_is_refused(name, tmp_path, monkeypatch):
    cluster, config = load_cluster(SLURM), load_config(CONFIG, [f"output_dir={tmp_path / 'x'}"])
    config.output_dir = str(tmp_path / name / "run")
    with pytest.raises(InputError) as error:
        check_submission_path(config, cluster)
    assert str(error.value).startswith("output_dir = ") and BAD[name] in str(error.value)
    assert str(error.value).isprintable()
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)  # a relative path is below the working directory
    config.output_dir = "run"
    with pytest.raises(InputError, match="output_dir = 'run': "):
        check_submission_path(config, cluster)


def test_without_slurm_only_what_submitit_replaces_is_refused():
    cluster, config = load_cluster(LOCAL), load_config(CONFIG)
    for name in ("100%", "a\\b", "line\nend"):
        config.output_dir = name
        check_submission_path(config, cluster)
    config.output_dir = "100%job"
    with pytest.raises(InputError, match="contains '%j', which stands for a number in the names of logs"):
        check_submission_path(config, cluster)


def test_nothing_is_written_where_the_name_is_refused(tmp_path, capsys):
    given = ["--cluster", str(SLURM), "--config", str(CONFIG), f"output_dir={tmp_path / '50%done'}"]
    for more in ([], ["--dry-run"]):
        assert main(["extract", *given, *more]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: output_dir = ") and printed.err.count("\n") == 1
        assert printed.out == ""
    assert not list(tmp_path.iterdir())


def checked(*settings: str, **paths: str) -> None:
    cluster = load_cluster(SLURM, settings)
    config = load_config(CONFIG)
    config.output_dir, config.cache.dir = paths.get("output_dir", "/shared/run"), "/shared/cache"
    config.dataset.root = paths.get("root", "/shared/data")
    config.questions = str(Path(config.questions).absolute())
    config.vlm.path = str(Path(config.vlm.path).absolute())
    parts = make_parts("pipeline", None, config, cluster, Path("/config.yaml"))
    check_start_directory(parts, config, cluster)


def test_jobs_that_start_elsewhere_need_absolute_paths(tmp_path, monkeypatch):
    chdir = "train.sbatch=[chdir=/scratch]"
    checked(output_dir="runs/mine")  # without it, they start here
    with pytest.raises(InputError, match="cluster: train: chdir=/scratch: jobs would look for output_dir = runs/mine"):
        checked(chdir, output_dir="runs/mine")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3]))
    checked(chdir)
    checked(chdir, root="data/that/is/not/there")  # the check of the dataset says so
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr("sys.executable", "/usr/bin/false")
    with pytest.raises(InputError, match="Python does not find the package launch there; install it"):
        checked(chdir)
    checked(chdir, "train.python=/opt/venv/bin/python")
