"""What becomes a directory, and what does not: runs that have not finished, or whose numbers are of something else."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard, constants
from PIL import Image

import masp
from masp.artifacts.exported import OWN_VLM
from masp.artifacts.trained import load_trained
from masp.cache.fingerprint import model_part
from masp.cli.main import main
from masp.errors import DataError, InputError
from masp.inference.sharing.export import export
from masp.inference.source import config_of
from masp.results.metrics_file import write_metrics
from masp.runtime.run_directory import RunState, write_status
from tests.hub_server import Hub
from tests.tiny import make_vlm
from tests.unit.inference.sharing.conftest import make_shared_run

FILES = {
    "README.md", "aspect.safetensors", "aspects.yaml", "config.json", "lineage.json", "questions.yaml",
    "soft_prompt.safetensors",
}  # fmt: skip


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def copy(shared_run, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(shared_run, tmp_path / "run")


def evaluate(run, **changes):
    """Numbers of an evaluation, with the digests of what the run has."""
    config = config_of(run)
    values = {"num_samples": 40, "accuracy": 0.625, "accuracy_ci95": [0.47, 0.758], "macro_f1": 0.61, "stage": "stage2"}
    values |= {"split": "test", "dataset": "folder", "scoring": "likelihood", "source": "live"}
    values["notes"] = [f"dataset: {config.output_dir}/x and {os.path.expanduser('~')}/y"]
    (run / "evaluate").mkdir(exist_ok=True)
    lineage = load_trained(config, 32, model_part(config)).lineage()
    write_metrics(run / "evaluate" / "metrics.json", {**values, "lineage": lineage, **changes})


def refused(run, directory, kind=InputError, **given):
    with pytest.raises(kind) as caught:
        export(run, directory, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.filterwarnings("error:Pydantic")
def test_the_same_run_at_another_place_gives_the_same_bytes(shared_run, shared_model, copy, tmp_path):
    export(copy, tmp_path / "again", vlm="hf://owner/vlm")
    assert contents(tmp_path / "again") == contents(shared_model) and set(contents(shared_model)) == FILES
    for name, path in (("aspect", "stage1/aspect"), ("soft_prompt", "stage2/soft_prompt_folder")):
        assert contents(shared_model)[f"{name}.safetensors"] == (shared_run / f"{path}.safetensors").read_bytes()


def test_what_has_not_finished_is_not_exported(copy, tmp_path):
    new = tmp_path / "new"
    for stage in ("stage1", "stage2"):
        for state, code in ((RunState.STOPPED, 75), (RunState.FAILED, 1)):
            write_status(copy / stage, state, code)
            error = refused(copy, new)
            assert f"{stage} has not finished ({state}); run `masp train --stage {stage}` again" in error
        (copy / stage / "status.json").unlink()
        assert f"{stage} does not say that it has finished" in refused(copy, new)
        write_status(copy / stage, RunState.FINISHED, 0)
    (copy / "evaluate").mkdir()
    write_status(copy / "evaluate", RunState.STOPPED, 75)
    assert "the evaluation has not finished (stopped); run `masp evaluate` again" in refused(copy, new)
    (copy / "stage2" / "soft_prompt_folder.safetensors").unlink()
    assert "stage 2 has not finished" in refused(copy, new)
    shutil.rmtree(copy / "stage2")
    assert "nothing was trained here" in refused(copy, new)
    assert not new.exists() and "no such directory" in refused(tmp_path / "gone", new)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lineage": {}}, "was made with aspect modules None, but those of the run are"),
        ({"lineage": {"aspect": {"digest": "f" * 64}}}, "was made with aspect modules ffffffffffff, but"),
        ({"stage": "stage1"}, "is not an evaluation of the target, but of stage1"),
        ({"without": ["scene"]}, "was made with evaluate.without = ['scene']"),
    ],
)
def test_numbers_of_something_else_are_not_shared(copy, tmp_path, change, message):
    evaluate(copy, **change)
    assert message in refused(copy, tmp_path / "new")


def test_numbers_of_another_soft_prompt_are_not_shared(copy, tmp_path):
    evaluate(copy)
    other = json.loads((copy / "evaluate" / "metrics.json").read_text())["lineage"]
    del other["digest"]
    other["soft_prompt"]["digest"] = "e" * 64
    evaluate(copy, lineage=other)
    assert "was made with soft prompt eeeeeeeeeeee, but" in refused(copy, tmp_path / "new")
    evaluate(copy)
    path = copy / "evaluate" / "metrics.json"
    path.write_text(path.read_text().replace("0.625", "0.999"))
    assert "is damaged" in refused(copy, tmp_path / "new", DataError)


def test_numbers_are_on_the_card_and_paths_are_not(copy, tmp_path, monkeypatch):
    evaluate(copy)
    export(copy, tmp_path / "new", license="mit")
    assert set(contents(tmp_path / "new")) == FILES | {"metrics.json"}
    for name, data in contents(tmp_path / "new").items():
        assert not [path for path in (str(tmp_path), os.path.expanduser("~"), "/tmp/") if path.encode() in data], name
    notes = json.loads((tmp_path / "new" / "metrics.json").read_text())["notes"]
    assert notes == ["dataset: <output_dir>/x and <home>/y"]
    card = ModelCard.load(tmp_path / "new" / "README.md")
    assert {each.metric_type: each.metric_value for each in card.data.eval_results} == {"accuracy": 0.625, "f1": 0.61}
    assert "40 images" in card.text and "| accuracy | 0.6250 | 0.4700 to 0.7580 |" in card.text
    with Hub("token") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        card.validate()
        broken = ModelCard(card.content.replace("license: mit", "license: mine"))
        with pytest.raises(ValueError, match="license"):
            broken.validate()


def test_names_and_places_are_checked_first(shared_run, shared_model, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    assert "is not empty" in refused(shared_run, tmp_path / "full")
    assert "is a file" in refused(shared_run, tmp_path / "full" / "mine")
    assert "cannot be" in refused(shared_run, tmp_path / "full" / "mine" / "new")
    assert contents(tmp_path / "full") == {"mine": b"mine"}
    assert "is an exported model already" in refused(shared_model, tmp_path / "new")
    assert "must be an identifier of the hub" in refused(shared_run, tmp_path / "new", license="My own")
    for name in ("/some/where", "vlm", "a/b/c", "hf://a/b@../x"):
        assert "--vlm: " in refused(shared_run, tmp_path / "new", vlm=name)
    (tmp_path / "empty").mkdir()
    export(shared_run, tmp_path / "empty", vlm="someone/a-vlm@v1.0")
    settings = json.loads((tmp_path / "empty" / "config.json").read_text())
    assert settings["vlm"]["path"] == "hf://someone/a-vlm@v1.0"
    card = ModelCard.load(tmp_path / "empty" / "README.md")
    assert card.data.base_model == "someone/a-vlm" and card.data.license == "unknown" and not card.data.eval_results
    assert "was not evaluated" in card.text and 'masp.load("hf://owner/name")' in card.text
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_vlm_in_the_cache_of_the_hub_has_a_name_and_a_revision(shared_run, copy, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "models--Some--VLM-1.5" / "snapshots" / commit
    shutil.copytree(shared_run.parent / "vlm", snapshot)
    file = copy / "stage2" / "config.yaml"
    file.write_text(file.read_text().replace(str(shared_run.parent / "vlm"), str(snapshot)))
    export(copy, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["vlm"]["path"] == f"hf://Some/VLM-1.5@{commit}"
    assert f"at commit `{commit}`" in (tmp_path / "new" / "README.md").read_text()


def test_without_a_name_of_the_vlm_it_is_asked_for(shared_run, shared_vlm, tmp_path, capsys):
    assert main(["export", str(shared_run), str(tmp_path / "[new]")]) == 0
    assert "--vlm owner/name says what it is called on the hub" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"its VLM \(qwen2_vl, weights \w{12}\) was a directory of the machine"):
        masp.load(tmp_path / "[new]")
    assert masp.load(tmp_path / "[new]", device="cpu", vlm=shared_vlm).categories == ("awe", "fear")
    other = make_vlm(tmp_path / "vlm", seed=1)
    with pytest.raises(InputError, match="aspect.safetensors was trained with weights = "):
        masp.load(tmp_path / "[new]", device="cpu", vlm=str(other))


def test_the_vlm_of_masp_itself_is_on_every_machine(tmp_path, capsys):
    export(make_shared_run(tmp_path, OWN_VLM), tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["vlm"]["path"] == OWN_VLM
    assert "--vlm" not in capsys.readouterr().out
    model = masp.load(tmp_path / "new", device="cpu")
    (found,) = model.predict([Image.new("RGB", (60, 40), "red")])
    assert set(found.probabilities) == {"awe", "fear"}


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_permissions_follow_the_umask(mask, shared_run, tmp_path):
    before = os.umask(mask)
    try:
        export(shared_run, tmp_path / "new")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()} == {0o666 & ~mask}
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o777 & ~mask


KILLED = """
import os, sys
from pathlib import Path
import masp.inference.sharing.export as module
card = module.model_card
def kill(*arguments):
    os.kill(os.getpid(), 9)
module.model_card = kill
module.export(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.full
def test_killed_before_the_end_nothing_has_the_name(shared_run, tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, shared_run, tmp_path / "new"], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".tmp") and (left / "lineage.json").is_file()
    export(shared_run, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["new"] and set(contents(tmp_path / "new")) == FILES
