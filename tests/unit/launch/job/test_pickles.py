"""What is unpickled is what this user wrote: nobody else can change it, whatever the umask."""

import os
import pickle
import stat
import subprocess
import sys

import pytest
from submitit.core.utils import DelayedSubmission, cloudpickle_dump

from launch.job.config import load_cluster
from launch.job.pickles import check_pickle, has_succeeded, owners_pickles
from launch.submission.record import JOBS, make_directory
from masp.config import load_config
from masp.errors import DataError, InputError
from tests.runs import REPOSITORY
from tests.unit.launch.fake_slurm import CONFIG, SLURM
from tests.unit.launch.job.test_task import LOCAL


@pytest.fixture(params=[0o002, 0o000, 0o022, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def submission(tmp_path):
    """Directories and pickle of a submission."""
    directory = make_directory("train", load_config(CONFIG, [f"output_dir={tmp_path}"]), load_cluster(SLURM))
    path = directory / JOBS / "4711_submitted.pkl"
    (job,) = owners_pickles([DelayedSubmission(print, "it runs")])
    job.set_timeout(5, 3)
    job.dump(path)
    return path


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_only_the_owner_writes_pickles_and_their_directories_but_logs_follow_the_umask(umask, submission):
    for path in (submission, submission.parent, submission.parent.parent):
        assert not mode(path) & 0o022 and mode(path) & 0o700 >= 0o600
    assert mode(submission) == 0o644 & ~umask
    assert mode(submission.parent) == 0o755 & ~umask
    check_pickle(submission)
    assert DelayedSubmission.load(submission).args == ("it runs",)
    log = submission.with_name("4711_0_log.out")
    log.write_text("")
    assert mode(log) == 0o666 & ~umask
    now = os.umask(0)
    os.umask(now)
    assert now == umask


@pytest.mark.parametrize("added", [0o020, 0o002])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_pickle_that_others_could_write_is_refused(added, level, submission):
    path = [submission, *submission.parents][level]
    path.chmod(mode(path) | added)
    with pytest.raises(InputError, match=r"is refused: others than its owner may write it \(mode") as error:
        check_pickle(submission)
    assert str(error.value).startswith(f"{path} is refused")


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_pickle_of_somebody_else_is_refused(level, submission, monkeypatch):
    path = [submission, *submission.parents][level]
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path, 4242, -1)
    with pytest.raises(InputError, match="belongs to user 4242, not to you"):
        check_pickle(submission)


def test_what_is_not_a_file_is_refused(submission):
    submission.unlink()
    os.mkfifo(submission)
    with pytest.raises(InputError, match="not a regular file"):
        check_pickle(submission)
    submission.unlink()
    with pytest.raises(InputError, match="No such file"):
        check_pickle(submission)


def test_a_task_refuses_before_it_unpickles(submission):
    submission.chmod(0o664)
    done = subprocess.run(
        [sys.executable, "-m", "launch.job.task", str(submission.parent)],
        env=os.environ | LOCAL | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and "it runs" not in done.stdout
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "is refused" in line
    assert "is refused" in submission.with_name("4711_0_failure.json").read_text()


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


def test_of_a_result_nothing_is_run(tmp_path):
    path = tmp_path / "4711_0_result.pkl"
    for value, expected in ((("success", "a/path"), True), (("success", None), True), (("error", "Traceback"), False)):
        cloudpickle_dump(value, path)
        assert has_succeeded(path) is expected
    for data in (pickle.dumps(("success", Evil())), b"", b"\x80", pickle.dumps(7), b"cos\nsystem\n(S'true'\ntR."):
        path.write_bytes(data)
        with pytest.raises(DataError, match="4711_0_result.pkl is damaged"):
            has_succeeded(path)
