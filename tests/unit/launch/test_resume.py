"""`launch resume RUN KEY=VALUE`: what may change is taken over and recorded, what may not is one line."""

import pytest

from launch.cli import main
from launch.job.config import load_cluster
from launch.submission.record import CONFIG, Submitted, find_directory, make_directory, new_record, write_record
from masp.config import load_config
from masp.extraction.job import extract
from masp.results.ledger_file import Ledger
from masp.training.checkpoint import Checkpoint, save_checkpoint
from masp.training.stages import open_stage
from tests.runs import make_run
from tests.unit.launch.fake_slurm import PIPELINE

SBATCH = """#!/bin/sh
if [ "$1" = --test-only ]; then exit 0; fi
id=$(($(cat "$0.last") + 1)); echo $id > "$0.last"; echo "Submitted batch job $id"
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Configuration of a run whose cache is extracted."""
    path = make_run(tmp_path_factory.mktemp("resume"), 12, 3)
    extract(load_config(path))
    return path


@pytest.fixture
def submitted(world, commands, tmp_path):
    """Makes a submission of the pipeline whose first parts have finished; the next may have left a checkpoint."""
    (commands / "sbatch").write_text(SBATCH)
    (commands / "sbatch.last").write_text("40")
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("executor: slurm\n")
    config = load_config(world, [f"output_dir={tmp_path / 'run'}", "checkpoint.soft_prompt=none"])

    def make(num_done: int, left: str | None = None):
        directory = make_directory("pipeline", config, load_cluster(cluster))
        parts = []
        for number, name in enumerate(PIPELINE):
            result = tmp_path / f"result of {name}"
            if number < num_done:
                result.touch()
            parts.append(Submitted(name, 1, 1, str(result), (str(7 + number),)))
        write_record(directory, new_record("pipeline", None, "slurm", tuple(parts)))
        words = ["COMPLETED" if number < num_done else "FAILED" for number in range(4)]
        lines = "".join(f"{7 + number}|{word}|00:00:09|n1\\n" for number, word in enumerate(words))
        (commands / "sacct").write_text(f"#!/bin/sh\nprintf '{lines}'\n")
        if left:
            stage = open_stage(left, config, "cpu")
            save_checkpoint(stage.directory / "checkpoints", Checkpoint(2, stage.identity(), {}), keep=1)
        return directory

    return make


def resume(tmp_path, capsys, *overrides) -> tuple[int, str]:
    code = main(["resume", str(tmp_path / "run"), *overrides])
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return code, " ".join(err)


ALLOWED = ("stage1.checkpoint_every=7", "stage1.micro_batch_size=1", "stage2.learning_rate=0.5",
           "evaluate.batch_size=3", "engine.num_workers=1", "cluster.train.timeout_min=77")  # fmt: skip


def test_what_may_change_is_taken_over_and_recorded(submitted, tmp_path, capsys):
    before = submitted(1, left="stage1")
    assert resume(tmp_path, capsys, *ALLOWED) == (0, "")
    after = find_directory(str(tmp_path / "run"))
    assert after != before
    config, cluster = load_config(after / CONFIG), load_cluster(after / "cluster.yaml")
    assert (config.stage1.checkpoint_every, config.stage1.micro_batch_size, config.stage2.learning_rate) == (7, 1, 0.5)
    assert (config.evaluate.batch_size, config.engine.num_workers, cluster.train.timeout_min) == (3, 1, 77)
    assert load_config(before / CONFIG).stage1.checkpoint_every == 2  # the earlier submission says what it was


FORBIDDEN = {
    # by the checkpoint to go on from
    "stage1.learning_rate=1": "is a checkpoint of a run with stage1.learning_rate = 0.01, but here it is 1.0; give the",
    "seed=4": "is a checkpoint of a run with seed = 3407, but here it is 4",
    "aspects=[scene]": "is a checkpoint of a run with aspects = ",
    "stage1.num_epochs=9": "is a checkpoint of a run with stage1.num_epochs = 2, but here it is 9",
    # by a part that has finished
    "cache.num_shards=7": "cache.num_shards = 7: extract has finished with 4; leave it out, or submit a new run with",
    "extract.batch_tokens=99": "extract.batch_tokens = 99: extract has finished with 64; leave it out",
    "cache.dtype=int8": "dtype",
    "vlm.max_pixels=6272": "max_pixels",
    # by the run
    "output_dir=/tmp/other": "output_dir = '/tmp/other': a run is resumed where it is, ",
    # not settings
    "stage1.learning_rat=1": "stage1.learning_rat",
    "stage2.layout=x": "must be one of after_image, released",
}


@pytest.mark.parametrize("override", FORBIDDEN)
def test_what_may_not_change_is_one_line(submitted, tmp_path, capsys, override):
    before = submitted(1, left="stage1")
    code, line = resume(tmp_path, capsys, override)
    assert code == 2 and FORBIDDEN[override] in line and line.count("error: ") == 1, line
    assert find_directory(str(tmp_path / "run")) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage1.num_epochs=9", "stage1.num_epochs = 9: stage1 has finished with 2; leave it out"),
        ("seed=4", "stage1/checkpoints/step-00000002 is a checkpoint of a run with seed = 3407, but here it is 4"),
    ],
)
def test_settings_of_a_finished_stage(submitted, tmp_path, capsys, override, message):
    submitted(2, left="stage1")
    code, line = resume(tmp_path, capsys, override)
    assert code == 2 and message in line


def test_settings_of_ledgers(submitted, tmp_path, capsys):
    submitted(3)
    (tmp_path / "run" / "evaluate").mkdir(parents=True)
    with Ledger(tmp_path / "run" / "evaluate" / "ledger", "rank-0", {"scoring": "likelihood", "split": "test"}):
        pass
    code, line = resume(tmp_path, capsys, "checkpoint.aspect=none", "evaluate.scoring=generate")
    assert code == 2 and "rank-0.jsonl: the ledger of another evaluation: " in line


def test_of_a_finished_run_nothing_changes(submitted, tmp_path, capsys):
    before = submitted(4)
    for override in ("evaluate.scoring=generate", "seed=4"):
        code, line = resume(tmp_path, capsys, override)
        assert code == 2 and f"{override.partition('=')[0]} = " in line and " has finished with " in line
    assert main(["resume", str(before), "evaluate.scoring=likelihood"]) == 0  # which it is
    assert capsys.readouterr().out.startswith("nothing to resume: ")
