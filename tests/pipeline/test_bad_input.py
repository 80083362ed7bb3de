"""What users get wrong: one line that begins with `error:`, exit code 2 or 3, no traceback, no noise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from masp.cli.main import main
from tests.mixed import make_mixed
from tests.runs import REPOSITORY
from tests.tiny import make_vlm


@pytest.fixture
def fails(capfd):
    """Runs a command in this process; returns its exit code and its one line."""

    def run(*argv: object) -> tuple[int, str]:
        try:
            code = main([str(a) for a in argv])
        except SystemExit as end:
            code = end.code
        err = capfd.readouterr().err
        assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
        return code, err[len("error: ") : -1]

    return run


@pytest.fixture(scope="module")
def other_vlm(tmp_path_factory) -> Path:
    return make_vlm(tmp_path_factory.mktemp("other") / "vlm", seed=5)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_unknown_key(fails, world, tmp_path, stage):
    settings = world.settings(tmp_path, f"{stage}.learning_rat=1")
    code, line = fails("train", "--stage", stage, *settings)
    assert code == 2 and f"{stage}.learning_rat" in line and "learning_rate" in line


def test_unknown_key_in_the_file(fails, tmp_path):
    (tmp_path / "c.yaml").write_text("vlm:\n  paht: x\n")
    code, line = fails("extract", "--config", tmp_path / "c.yaml")
    assert code == 2 and "c.yaml" in line and "paht" in line


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("stage1.num_epochs=many", ("stage1.num_epochs", "many")),
        ("engine.zero_stage=4", ("engine.zero_stage", "4")),
        ("aspects=[smell]", ("aspects", "smell")),
        ("engine.device=cuda", ("engine.device", "no GPU")),
        ("engine.precision=fp16", ("engine.precision", "needs a GPU")),
    ],
)
def test_wrong_type_or_value(fails, world, tmp_path, setting, words):
    if setting == "engine.device=cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, line = fails("train", "--stage", "stage1", *world.settings(tmp_path, setting))
    assert code == 2 and all(word in line for word in words)
    assert not (tmp_path / "stage1").exists()


@pytest.mark.parametrize(
    "command",
    ["extract", "extract --finalize", "cache verify --repair", "cache extend", "cache aspects", "cache precision",
     "quantization"],
)  # fmt: skip
def test_what_needs_a_cache_in_a_run_without_one(fails, world, tmp_path, command):
    code, line = fails(*command.split(), *world.settings(tmp_path, "cache.dir=null"))
    assert code == 2 and line.startswith("cache.dir = null: this run has no cache")
    assert not list(tmp_path.iterdir())


def test_a_linear_probe_needs_a_cache(fails, world, trained, tmp_path):
    given = (f"checkpoint.{name}={path}" for name, path in (
        ("aspect", trained / "stage1" / "aspect.safetensors"),
        ("soft_prompt", trained / "stage2" / "soft_prompt_folder.safetensors"),
    ))  # fmt: skip
    settings = world.settings(tmp_path, "cache.dir=null", "evaluate.linear_probe=true", *given)
    code, line = fails("evaluate", *settings)
    assert code == 2 and line == "evaluate.linear_probe = true: needs features in the cache; leave it out"


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("dataset.root=/no/such/folder", "dataset.root"),
        ("vlm.path=/no/such/vlm", "vlm.path"),
    ],
)
def test_missing_directory(fails, world, tmp_path, setting, word):
    code, line = fails("extract", *world.settings(tmp_path, setting, f"cache.dir={tmp_path / 'c'}"))
    assert code == 2 and word in line and "/no/such" in line


def test_missing_cache_checkpoint_questions_and_configuration(fails, world, trained, tmp_path):
    for command in (("train", "--stage", "stage1"), ("evaluate",)):
        code, line = fails(*command, *world.settings(tmp_path, "cache.dir=/no/such/cache"))
        assert code == 2 and "/no/such/cache" in line
    code, line = fails("train", "--stage", "stage2", *world.settings(tmp_path))
    assert code == 2 and "checkpoint.aspect" in line and "masp train --stage stage1" in line
    aspect = f"checkpoint.aspect={trained / 'stage1' / 'aspect.safetensors'}"
    code, line = fails("evaluate", *world.settings(tmp_path, aspect))
    assert code == 2 and "checkpoint.soft_prompt" in line and "masp train --stage stage2" in line
    code, line = fails("train", "--stage", "stage1", *world.settings(tmp_path, "questions=/no/such.yaml"))
    assert code == 2 and "/no/such.yaml" in line
    code, line = fails("train", "--stage", "stage1", "--config", "/no/such.yaml")
    assert code == 2 and "/no/such.yaml" in line


def spoil_empty(images: Path) -> None:
    (images / "train" / "awe").mkdir()


def spoil_category(images: Path) -> None:
    (images / "test" / "joy").rename(images / "test" / "boredom")


def spoil_json(images: Path) -> None:
    (images / "annotation" / "joy" / "train_plain.json").write_text("{brightness: 0.5}")


def spoil_brightness(images: Path) -> None:
    (images / "annotation" / "joy" / "train_plain.json").write_text(json.dumps({"brightness": 1.7}))


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (spoil_empty, 2, ("train/awe", "no image")),
        (spoil_category, 2, ("boredom", "joy, quiet fear")),
        (spoil_json, 3, ("train_plain.json", "is not valid JSON")),
        (spoil_brightness, 3, ("train_plain.json", "brightness = 1.7")),
    ],
)
def test_a_dataset_that_is_not_as_it_should_be(fails, world, tmp_path, spoil, code, words):
    images = make_mixed(tmp_path / "images", broken=False)
    spoil(images)
    settings = (f"dataset.root={images}", "dataset.categories=[joy,quiet_fear]", f"cache.dir={tmp_path / 'cache'}")
    if spoil is spoil_empty:
        settings = (settings[0], settings[2])
    found, line = fails("extract", *world.settings(tmp_path, *settings))
    assert found == code and all(word in line for word in words), line


def test_a_checkpoint_that_is_something_else(fails, world, trained, tmp_path):
    wrong = tmp_path / "words.pth"
    wrong.write_text("no checkpoint at all")
    torch.save({"state_dict": {}}, tmp_path / "resnet.pth")
    for path in (wrong, tmp_path / "resnet.pth", trained / "stage2" / "soft_prompt_folder.safetensors"):
        for command in (("train", "--stage", "stage2"), ("evaluate",)):
            code, line = fails(*command, *world.settings(tmp_path, f"checkpoint.aspect={path}"))
            assert code == 2 and line.startswith(f"checkpoint.aspect: {path}")
    aspect = trained / "stage1" / "aspect.safetensors"
    cut = tmp_path / "aspect.safetensors"
    cut.write_bytes(aspect.read_bytes()[:-100])
    code, line = fails("evaluate", *world.settings(tmp_path, f"checkpoint.aspect={cut}"))
    assert code == 3 and "is damaged" in line
    code, line = fails(
        "evaluate", *world.settings(tmp_path, f"checkpoint.aspect={aspect}", f"checkpoint.soft_prompt={aspect}")
    )
    assert code == 2 and "holds 'aspect', not 'soft_prompt'" in line


def test_a_soft_prompt_with_other_aspect_modules_aspects_or_layout(fails, commands, world, trained, tmp_path):
    commands.ok("train", "--stage", "stage1", *world.settings(tmp_path, "seed=9", "stage1.num_epochs=1"))
    soft = trained / "stage2" / "soft_prompt_folder.safetensors"
    given = world.settings(tmp_path / "e", f"checkpoint.soft_prompt={soft}")
    ours, theirs = (f"checkpoint.aspect={o / 'stage1' / 'aspect.safetensors'}" for o in (tmp_path, trained))
    cases = [
        ((ours,), "give the ones it was trained with as checkpoint.aspect"),
        (("checkpoint.aspect=none",), "but here they are none"),
        ((theirs, "aspects=[object,scene,brightness]"), "in this order; give the same"),
        ((theirs, "aspects=[scene,object]"), "in this order; give the same"),
        ((theirs, "checkpoint.layout=released"), "checkpoint.layout = 'released': "),
        (
            (theirs, f"checkpoint.soft_prompt={soft.with_suffix('.pt')}"),
            "does not say its layout; give checkpoint.layout=",
        ),
    ]
    for settings, message in cases:
        code, line = fails("evaluate", *given, *settings)
        assert code == 2 and message in line, line
    code, line = fails(
        "train", "--stage", "stage2", *world.settings(tmp_path / "e", theirs, "aspect_module.num_queries=3")
    )
    assert code == 2 and "aspect_module.num_queries = 3" in line and "have 5" in line


@pytest.mark.parametrize("command", [("train", "--stage", "stage1"), ("train", "--stage", "stage2"), ("evaluate",)])
def test_a_cache_of_another_vlm(fails, world, other_vlm, tmp_path, command):
    code, line = fails(*command, *world.settings(tmp_path, f"vlm.path={other_vlm}"))
    assert code == 2 and line.startswith(f"cache.dir: {world.folder / 'cache'} was made with weights = ")
    code, line = fails(*command, *world.settings(tmp_path, "vlm.max_pixels=3136"))
    assert code == 2 and "was made with max_pixels = 12544, but here it is 3136" in line


def test_checkpoints_of_another_vlm(fails, commands, world, trained, other_vlm, tmp_path):
    settings = world.settings(tmp_path, f"vlm.path={other_vlm}", f"cache.dir={tmp_path / 'cache'}")
    commands.ok("extract", *settings)
    aspect = f"checkpoint.aspect={trained / 'stage1' / 'aspect.safetensors'}"
    soft = f"checkpoint.soft_prompt={trained / 'stage2' / 'soft_prompt_folder.safetensors'}"
    image = next((world.folder / "pictures" / "test").rglob("*.png"))
    for command in (("train", "--stage", "stage2"), ("evaluate",), ("predict", image)):
        code, line = fails(*command, *settings, aspect, soft)
        assert code == 2 and line.startswith(aspect.replace("=", ": ") + " was trained with weights = '"), line
    code, line = fails("evaluate", *settings, "checkpoint.aspect=none", soft)
    assert code == 2 and line.startswith(soft.replace("=", ": ") + " was trained with weights = '"), line


def test_usage_errors_are_one_line_too(fails):
    for argv in (["train"], ["train", "--stage", "stage3"], ["no-such-command"], ["extract", "--no-such-flag"], []):
        code, line = fails(*argv)
        assert code == 2 and "--help`" in line


def test_a_name_with_a_line_end_and_control_characters(fails, world, tmp_path):
    root = tmp_path / "a\nb\x1b[31m"
    code, line = fails("extract", *world.settings(tmp_path, "cache.dir=c"), "--config", f"{root}.yaml")
    assert code == 2 and "a\\nb\\x1b[31m.yaml" in line


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("evaluate", "checkpoint.aspect=/no/such.safetensors"), 2),
        (("train", "--stage", "stage1", "engine.zero_stage=7"), 2),
    ],
)
def test_errors_of_a_whole_process(world, tmp_path, argv, code):
    command = [sys.executable, "-m", "masp.cli", *argv[:1], *world.settings(tmp_path), *argv[1:]]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert done.returncode == code and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
