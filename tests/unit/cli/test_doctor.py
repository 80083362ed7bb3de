"""`masp doctor`: what it prints of a machine, and of a configuration part by part."""

import importlib.util

import pytest

from masp.cli.main import main
from tests.images import make_dataset
from tests.tiny import make_vlm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor")
    make_vlm(folder / "vlm")
    make_dataset(folder / "data")
    return folder


@pytest.fixture
def doctor(folder, tmp_path, repository, capsys):
    """Runs `masp doctor` on a configuration that is sound but for the given settings; returns code, rows and errors."""

    def run(*settings):
        given = {
            "vlm.path": folder / "vlm",
            "dataset.root": folder / "data",
            "cache.dir": tmp_path / "cache",
            "output_dir": tmp_path / "run",
            "questions": repository / "configs" / "questions.yaml",
        }
        code = main(["doctor", *(f"{name}={value}" for name, value in given.items()), *settings])
        printed = capsys.readouterr()
        rows = dict(line.split(maxsplit=1) for line in printed.out.splitlines())
        return code, rows, printed.err

    return run


def test_a_machine(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["python", "torch", "transformers"]
    assert lines[-1] == "doctor: no problem found"
    assert not any(line.startswith(("vlm ", "dataset ")) for line in lines)


def test_a_sound_configuration(doctor, tmp_path):
    code, rows, err = doctor()
    assert (code, err) == (0, "")
    assert rows["dataset"] == "folder: 18 train, 6 test" and rows["cache"] == "none yet"
    assert rows["vlm"].startswith("qwen2_vl, ") and "emotion templates" in rows["questions"]
    assert rows["verified"] == "'qwen2_vl': verified" and rows["stock"].startswith("model")
    assert rows["output_dir"].startswith(f"{tmp_path / 'run'}, ") and rows["output_dir"].endswith(" GB free")
    assert not (tmp_path / "run").exists()


def test_a_configuration_without_a_cache(doctor):
    code, rows, err = doctor("cache.dir=null", "--no-verify")
    assert (code, err) == (0, "")
    assert rows["cache"] == "none (cache.dir = null): training and evaluation run the encoder"


def test_it_counts_what_the_dataset_holds_and_says_which_stages_are_possible(doctor, folder):
    _, rows, _ = doctor("aspects=[scene,object]", "stage2.learning_rate=5e-6", "stage1.learning_rate=0.1")
    assert [rows[name].split() for name in ("anger", "scene", "images")] == [["6", "2"], ["12", "4"], ["18", "6"]]
    assert rows["stage1"] == "12 images, 6 steps" and rows["stage2"] == "18 images, 3 steps"
    assert "hardly changes anything; raise stage2.learning_rate" in rows["warning:"]
    assert rows["doctor:"] == "no problem found"
    _, rows, _ = doctor("aspects=[human_action]")
    assert rows["stage1"].startswith("not possible as configured: no training image is annotated with any of human_act")
    assert "checkpoint.aspect=none" in rows["stage1"] and "checkpoint.aspect=none" in rows["stage2"]
    assert rows["doctor:"] == "no problem found, but stage1 and stage2 cannot be trained as configured (see above)"
    _, rows, _ = doctor("aspects=[human_action]", "checkpoint.aspect=none")
    assert rows["stage2"] == "18 images, 3 steps" and rows["doctor:"] == "no problem found"


def test_it_says_what_the_dataset_allows_and_what_to_do(doctor):
    _, rows, _ = doctor("aspects=[scene,human_action]", "--no-verify")
    assert (
        rows["labels:"] == "fewer than 10 training images of anger (6), awe (6), joy (6): collect more, or expect "
        "mistakes there"
    )
    assert rows["val:"].startswith("none: up to 256 images are held out of train where validate_every is set; ")
    assert rows["test:"] == (
        "6 images, which the accuracy is measured on: to about ±0.31 (95 % interval); four times as many images would "
        "halve that"
    )
    assert (
        rows["aspects:"] == "nobody annotated human_action: let the VLM do it (masp annotate), or leave them out "
        "(aspects=[scene])"
    )
    _, rows, _ = doctor("aspects=[scene,object]", "--no-verify")
    assert rows["aspects:"] == "annotated by people, of 18 training images: scene 12, object 12"


def test_questions_that_do_not_fit_the_categories_are_a_problem(doctor, tmp_path):
    (tmp_path / "own.yaml").write_text("aspects: {}\nemotion: ['Is it joy or fear?']")
    code, rows, _ = doctor(f"questions={tmp_path / 'own.yaml'}", "dataset.categories=[joy,fear,awe]")
    assert code == 2 and "does not name 'awe'" in rows["questions"]


def test_a_library_that_a_setting_needs(doctor, monkeypatch):
    code, rows, _ = doctor("vlm.quantization=int4")
    assert code == 0 and rows["quantization"].startswith("int4, torchao 0.")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torchao" else find(name, *a))
    code, rows, err = doctor("vlm.quantization=int4")
    assert code == 2 and "torchao is not installed; install it with" in err and "PROBLEM" in rows["quantization"]


def test_trackers_that_are_asked_for_are_looked_for(doctor, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    code, rows, _ = doctor("logging.trackers=[mlflow,wandb]", "--no-verify")
    assert code == 0 and rows["trackers"].startswith("mlflow, wandb; whether")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    code, rows, err = doctor("logging.trackers=[mlflow]", "--no-verify")
    assert code == 2 and "MLFLOW_TRACKING_URI is not set" in err and "PROBLEM" in rows["trackers"]
    assert "trackers" not in doctor("--no-verify")[1]


def test_all_problems_are_shown_at_once(doctor):
    code, rows, err = doctor("vlm.path=/no/such/vlm", "dataset.root=/no/such/data", "questions=/no/such.yaml")
    assert code == 2
    assert err.startswith("error: 3 problems: ") and err.count("\n") == 1
    for name in ("vlm", "dataset", "questions"):
        assert rows[name].startswith("PROBLEM: ") and "/no/such" in rows[name]
    assert rows["cache"] == "none yet"


@pytest.mark.parametrize("name", ["cache.dir", "output_dir"])
def test_a_path_that_no_file_system_accepts_is_a_problem(doctor, tmp_path, name):
    code, rows, err = doctor(f"{name}={tmp_path}/{'x' * 300}")
    assert code == 2 and err.startswith(f"error: 1 problems: {name}: {tmp_path}/") and err.count("\n") == 1
    assert rows[name.removesuffix(".dir")].startswith(f"PROBLEM: {name}: ")


def test_a_directory_that_may_not_be_searched_is_a_problem(doctor, tmp_path, monkeypatch):
    import os

    stat = os.stat

    def refuse(path, *args, **kwargs):
        if "secret" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", refuse)  # as root, who runs tests in a container, everything may be searched
    code, rows, _ = doctor(f"cache.dir={tmp_path}/secret/cache")
    assert code == 2
    assert rows["cache"] == f"PROBLEM: cache.dir: {tmp_path}/secret/cache cannot be examined: Permission denied"
