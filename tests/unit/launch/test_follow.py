"""What a user asks of a run that was submitted."""

from launch.cli import main
from launch.submission.record import JOBS


def test_logs_of_all_processes_or_of_one(directory, slurm, capsys):
    slurm("7|0|RUNNING|None|0:06|node1|0|\n")
    for task in (0, 1, 10, 2):
        (directory / JOBS / f"7_{task}_0_log.out").write_text(f"first\ntask {task}\n")
    assert main(["logs", str(directory), "--lines", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1::2] == ["task 0", "task 1", "task 2", "task 10"]
    assert lines[0] == f"==> {directory / JOBS / '7_0_0_log.out'} <=="
    assert main(["logs", str(directory), "--rank", "2", "--part", "extract"]) == 0
    assert capsys.readouterr().out == "first\ntask 2\n"
    for arguments, expected in (
        (["--rank", "4"], "--rank 4: extract has logs of 4 processes, 0 to 3"),
        (["--part", "stage1"], "stage1 has written no log"),
        (["--part", "stage3"], "--part stage3: this submission has extract, stage1, stage2, evaluate"),
    ):
        assert main(["logs", str(directory), *arguments]) == 2
        assert expected in capsys.readouterr().err
