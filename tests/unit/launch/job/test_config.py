"""A cluster's settings: read by the rules of the configuration, refused in its words."""

import pytest

from launch.job.config import ClusterConfig, load_cluster
from masp.config import save_config
from masp.errors import InputError
from tests.runs import REPOSITORY

SHIPPED = sorted((REPOSITORY / "configs" / "cluster").glob("*.yaml"))


def refused(tmp_path, text: str, *overrides: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_cluster(path, overrides)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(path), "FILE")


def test_both_shipped_files_are_there():
    assert [path.name for path in SHIPPED] == ["local.yaml", "slurm.yaml"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_file_loads_and_round_trips(path, tmp_path):
    cluster = load_cluster(path)
    assert type(cluster) is ClusterConfig
    assert cluster.executor == path.stem
    save_config(cluster, tmp_path / "resolved.yaml")
    assert load_cluster(tmp_path / "resolved.yaml") == cluster


def test_overrides_win_over_the_file():
    cluster = load_cluster(SHIPPED[1], ["train.nodes=7", "setup=[module load cuda]", "partition=big"])
    assert (cluster.train.nodes, cluster.setup, cluster.partition) == (7, ["module load cuda"], "big")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trian: {nodes: 2}", "FILE line 1: unknown key 'trian': did you mean train?"),
        ("train:\n  node: 2", "FILE line 2: unknown key 'train.node': did you mean train.nodes?"),
        ("executor: pbs", "FILE line 1: executor = 'pbs': must be one of slurm, local"),
        ("train: {nodes: 0}", "FILE line 1: train.nodes = 0: must be an integer from 1 to 100000"),
        ("extract: {gpus_per_task: 2}", "FILE line 1: extract.gpus_per_task = 2: must be an integer from 0 to 1"),
        ("setup: module load cuda", "must be a list such as [module load cuda]"),
        (
            "executor: local\ntrain: {nodes: 2}",
            "FILE: train.nodes = 2: executor 'local' has one node, this machine",
        ),
        ("executor: local\nsetup: [ls]", "FILE: setup = ['ls']: with executor 'local', run these lines beforehand"),
        ("sbatch: [--reservation=lab]", "sbatch: '--reservation=lab' must be name=value without dashes"),
        ("sbatch: [exclusive]", "sbatch: 'exclusive' must be name=value"),
        (
            "signal_delay_s: 600\ntrain: {timeout_min: 10}",
            "FILE: signal_delay_s = 600: must be below train.timeout_min, which is 600 s",
        ),
    ],
)
def test_what_is_wrong_is_one_clear_line(text, expected, tmp_path):
    assert expected in refused(tmp_path, text)


def test_a_wrong_override_names_its_key(tmp_path):
    assert "command line: train.nodes = 'two': must be an integer" in refused(tmp_path, "", "train.nodes=two")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'mail_user: "me\\n#SBATCH --wrap=x"',
            "FILE: mail_user = 'me\\n#SBATCH --wrap=x': must not contain line",
        ),
        ('partition: "a\\u001b[31m"', "FILE: partition = 'a\\x1b[31m': must not contain line ends or other control"),
        ('account: "a\\u2028b"', "FILE: account = "),
        ('train: {sbatch: ["comment=a\\nb"]}', "FILE: train.sbatch = "),
        ('extract: {srun: ["a\\rb"]}', "FILE: extract.srun = "),
        ('setup: ["# modules\\n#SBATCH --x"]', "FILE: setup = '#SBATCH --x': an option of sbatch; give it as an item"),
        ("sbatch: [output=x]", "FILE: sbatch: 'output=x' cannot be given: the logs are where `launch logs` finds them"),
        ("train: {sbatch: [time=10]}", "FILE: train.sbatch: 'time=10' cannot be given: timeout_min is for that"),
        ("train: {sbatch: [outpu=x]}", "FILE: train.sbatch: 'outpu=x' cannot be given: the logs are where `launch"),
        ("sbatch: [depend=afterok:1]", "FILE: sbatch: 'depend=afterok:1' cannot be given: `launch` sets it itself"),
        ("sbatch: [clusters=other]", "FILE: sbatch: 'clusters=other' cannot be given: `launch` asks only the cluster"),
        (
            "train: {sbatch: [wrap=x]}",
            "FILE: train.sbatch: 'wrap=x' cannot be given: `launch` writes the script itself",
        ),
        ("train: {srun: [kill-on-bad-exit=0]}", "'kill-on-bad-exit=0' cannot be given: `launch` sets it itself"),
        ("train: {srun: [label]}", "FILE: train.srun: 'label' cannot be given: the logs hold what a process prints"),
        ("evaluate: {srun: [--x=1]}", "FILE: evaluate.srun: '--x=1' must be name or name=value without dashes"),
        ("executor: local\ntrain: {gpu_type: a}", "FILE: train.gpu_type = 'a': only for executor 'slurm'"),
    ],
)
def test_what_would_change_the_script_is_refused(text, expected, tmp_path):
    assert expected in refused(tmp_path, text)


def test_shell_lines_may_have_tabs_and_line_ends(tmp_path):
    (tmp_path / "mine.yaml").write_text('setup: ["if true; then\\n\\tmodule load a\\nfi"]')
    assert load_cluster(tmp_path / "mine.yaml").setup == ["if true; then\n\tmodule load a\nfi"]
