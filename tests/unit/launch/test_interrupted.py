"""Whatever happens to `launch` while it submits, every job that is queued is known, or is taken back."""

import errno
import multiprocessing
import os
import signal

import pytest

from launch.cli import main
from launch.submission.record import FILE, find_directory, read_record
from launch.submit import write_record

# A queue in a file, with a line per job: id and name. After `kill-before` or `kill-after` jobs, sbatch sends its parent
# the signal in `signal`, before or after it has queued the next one; after `timeout` jobs it queues one and says that
# it has failed.
SBATCH = """#!/bin/sh
here=$(dirname "$0")
if [ "$1" = --test-only ]; then exit 0; fi
env | grep -E '^(SLURM|SUBMITIT)' | sort > $here/variables
id=$(($(cat $here/last) + 1)); echo $id > $here/last
at() { [ "$(cat $here/$1 2>/dev/null)" = $((id - 41)) ]; }
if at kill-before; then kill -$(cat $here/signal) $PPID; sleep 0.3; exit 1; fi
echo "$id $(sed -n 's/^#SBATCH --job-name=//p' "$1")" >> $here/queue
if at kill-after; then kill -$(cat $here/signal) $PPID; sleep 0.3; fi
if at timeout; then echo "sbatch: error: Batch job submission failed: Socket timed out" >&2; exit 1; fi
echo "Submitted batch job $id"
"""
SQUEUE = """#!/bin/sh
here=$(dirname "$0")
case "$*" in
*--name=*) while read -r id name; do echo "$id|$name|"; done < $here/queue;;
*) while read -r id name; do echo "$id|N/A|PENDING|Priority|0:00||0|"; done < $here/queue;;
esac
"""
SCANCEL = """#!/bin/sh
here=$(dirname "$0")
for id in "$@"; do grep -v "^$id " $here/queue > $here/left; mv $here/left $here/queue; done
"""
PARTS = ["extract", "stage1", "stage2", "evaluate"]


@pytest.fixture
def queue(commands):
    """Commands of a Slurm with an empty queue; returns their directory."""
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL)):
        (commands / name).write_text(text)
    (commands / "last").write_text("40")
    (commands / "queue").write_text("")
    return commands


@pytest.fixture
def given(config_path, tmp_path):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("executor: slurm\n")
    outputs = [f"output_dir={tmp_path / 'run'}", f"cache.dir={tmp_path / 'cache'}"]
    return ["pipeline", "--cluster", str(cluster), "--config", str(config_path), *outputs]


def exit_code(arguments: list[str]) -> int:
    """Exit code of `launch` in a process of its own, which may be killed."""

    def run() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
        os._exit(main(arguments))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    return process.exitcode


def queued(queue) -> list[str]:
    """The parts that are in the queue."""
    names = [line.split()[1].removeprefix("masp-run-") for line in (queue / "queue").read_text().splitlines()]
    return [name.partition("-")[0] for name in names]


@pytest.mark.parametrize("point", ["kill-before", "kill-after"])
@pytest.mark.parametrize("number", range(4))
def test_whatever_a_killed_launch_has_queued_is_known(number, point, queue, given, tmp_path, capsys):
    (queue / point).write_text(str(number))
    (queue / "signal").write_text("KILL")
    assert exit_code(given) == -signal.SIGKILL
    (queue / point).unlink()
    expected = PARTS[: number + (point == "kill-after")]
    assert queued(queue) == expected
    run = str(tmp_path / "run")
    directory = find_directory(run)  # written before anything was queued
    states = [["waiting" if name in expected else "unknown"] for name in PARTS]
    main(["status", run])
    assert [line.split()[1:2] for line in capsys.readouterr().out.splitlines()[2:6]] == states
    if expected:
        assert main(given) == 2  # while they are queued, nobody submits them again
        error = capsys.readouterr().err
        assert f"{', '.join(expected)} is queued or running already, submitted as {directory}" in error
        assert queued(queue) == expected
        assert main(["cancel", run]) == 0
    assert queued(queue) == []
    assert main(["resume", run]) == 0
    assert queued(queue) == PARTS
    assert [part.job_ids[0] for part in read_record(find_directory(run)).parts] == [
        line.split()[0] for line in (queue / "queue").read_text().splitlines()
    ]


@pytest.mark.parametrize("point", ["kill-before", "kill-after"])
@pytest.mark.parametrize("number", [0, 2])
def test_an_interrupted_launch_takes_back_what_it_has_queued(number, point, queue, given, tmp_path, capfd):
    (queue / point).write_text(str(number))
    (queue / "signal").write_text("INT")
    assert exit_code(given) == 130
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"error: interrupted while {PARTS[number]} was being submitted; nothing was submitted"
    )
    assert queued(queue) == []
    assert not list((tmp_path / "run" / "launch").glob("*/"))


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_job_that_was_queued_although_sbatch_failed_is_taken_back(number, queue, given, tmp_path, capsys):
    (queue / "timeout").write_text(str(number))
    assert main(given) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: cluster: Slurm refused {PARTS[number]}: Batch job submission failed: Socket timed out"
    assert queued(queue) == []
    assert not list((tmp_path / "run" / "launch").glob("*/"))


@pytest.mark.parametrize("number", range(1, 5))
def test_a_disk_that_is_full_after_a_job_was_queued_is_one_line(number, queue, given, tmp_path, monkeypatch, capsys):
    written = []

    def write(directory, record):
        written.append(record)
        if len(written) > number:
            raise OSError(errno.ENOSPC, "No space left on device", str(directory / FILE))
        write_record(directory, record)

    monkeypatch.setattr("launch.submit.write_record", write)
    assert main(given) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: no space is left for ") and "submission.json; free some" in error
    assert queued(queue) == [] and len(written) == number + 1
    assert not list((tmp_path / "run" / "launch").glob("*/"))


def test_nothing_is_queued_if_the_record_cannot_be_written(queue, given, tmp_path, monkeypatch, capsys):
    def write(*_):
        raise OSError(errno.EROFS, "Read-only file system", "/x/submission.json")

    monkeypatch.setattr("launch.submit.write_record", write)
    assert main(given) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: /x/submission.json: Read-only file system"
    assert (queue / "last").read_text() == "40"


def test_a_slurm_that_stops_answering_leaves_a_record(queue, given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("launch.submission.slurm_scripts._POLL_S", 0)
    (queue / "timeout").write_text("0")
    (queue / "squeue").write_text("#!/bin/sh\necho 'squeue: error: Socket timed out' >&2; exit 1\n")
    assert main(given) == 2
    assert "Slurm does not say what it has queued: `python -m launch cancel`" in capsys.readouterr().err
    (queue / "squeue").write_text(SQUEUE)
    assert queued(queue) == ["extract"]
    assert main(["cancel", str(tmp_path / "run")]) == 0
    assert queued(queue) == []


def test_a_job_of_the_same_name_in_another_directory_is_not_taken_for_it(queue, given, tmp_path, capsys):
    (queue / "queue").write_text("39 masp-run-extract-00000000\n38 masp-run-extract\n")
    (queue / "kill-before").write_text("0")
    (queue / "signal").write_text("KILL")
    assert exit_code(given) == -signal.SIGKILL
    main(["status", str(tmp_path / "run")])
    assert "waiting" not in capsys.readouterr().out


def test_jobs_do_not_inherit_the_variables_of_the_job_that_submits_them(queue, given, monkeypatch):
    of_a_task = {"SLURM_JOB_ID": "35", "SLURM_ARRAY_JOB_ID": "32", "SLURM_ARRAY_TASK_ID": "1", "SLURM_NTASKS": "8"}
    of_a_task |= {"SLURM_RESTART_COUNT": "5", "SLURMD_NODENAME": "n1", "SUBMITIT_EXECUTOR": "slurm"}
    for name, value in (of_a_task | {"SLURM_CONF": "/etc/slurm.conf"}).items():
        monkeypatch.setenv(name, value)
    assert main(given) == 0
    assert (queue / "variables").read_text() == "SLURM_CONF=/etc/slurm.conf\n"
    assert os.environ["SLURM_ARRAY_JOB_ID"] == "32"
