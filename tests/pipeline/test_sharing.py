"""What was trained is shared: exported, moved, sent to the hub, and gives bitwise the same predictions elsewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

import masp
from masp.config import load_config
from tests.commands import Commands
from tests.hub_server import FOREIGN, Hub, Repository
from tests.pipeline.test_another_target import SEASON, STAGE_2, table

__all__ = ["table"]

FILES = {
    "README.md", "aspect.safetensors", "aspects.yaml", "config.json", "lineage.json", "metrics.json", "questions.yaml",
    "soft_prompt.safetensors",
}  # fmt: skip
# A process that has neither the run nor anything in its home: prints every number of every prediction.
PREDICT = """
import json, sys
import masp
source, vlm, *images = sys.argv[1:]
model = masp.load(source, device="cpu", vlm=vlm or None)
found = model.predict(images, batch_size=3)
print(json.dumps([[p.label, p.probabilities, p.log_likelihoods] for p in found]))
"""
IMPORTS = """
import huggingface_hub, masp.inference.sharing.export, masp.inference.sharing.push
from masp.cli.main import run_process
"""


def contents(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def images_of(world):
    return [str(path) for path in sorted((world.folder / "pictures" / "test").rglob("*.*"))]


def numbers(model, images):
    return [[p.label, p.probabilities, p.log_likelihoods] for p in model.predict(images, batch_size=3)]


def predicted(source, vlm, images, **environment):
    """The predictions of a new process, every number as it is."""
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, str(source), vlm, *images],
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def run(commands, world, trained, tmp_path_factory):
    """A run, evaluated from live features, at a place of its own."""
    run = tmp_path_factory.mktemp("sharing") / "run"
    shutil.copytree(trained, run)
    commands.ok("evaluate", *world.settings(run, "evaluate.source=live"))
    return run


@pytest.fixture(scope="module")
def exported(commands, run):
    directory = run.parent / "exported"
    done = commands.ok("export", run, directory, "--license", "cc-by-nc-4.0")
    assert "aspect modules and soft prompt" in done.stdout and "--vlm owner/name says" in done.stdout
    return directory


@pytest.fixture(scope="module")
def vlm(world):
    return str(world.folder / "vlm")


@pytest.fixture(scope="module")
def expected(run, world):
    return numbers(masp.load(run, device="cpu"), images_of(world))


@pytest.fixture(scope="module")
def hub():
    with Hub("token of a test") as hub:
        yield hub


def environment_of(hub, home):
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": home / "hf",
        "HOME": home,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


@pytest.fixture(scope="module")
def processes(hub, tmp_path_factory):
    """Runs `masp …` in processes of their own, whose hub is that one."""
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (environment_of(hub, folder) | {"HF_TOKEN": hub.token}).items():
            patch.setenv(name, str(value))
        commands = Commands(folder, IMPORTS)
    with commands:
        yield commands


def error_of(result, code=2):
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.code == code and len(lines) == 1 and "Traceback" not in result.stderr, result
    return lines[0]


def test_an_export_holds_all_that_is_needed_and_nothing_of_this_machine(exported, run, world, commands):
    assert set(contents(exported)) == FILES
    for name in ("aspect", "soft_prompt"):
        (path,) = run.glob(f"stage?/{name}*.safetensors")
        assert (exported / f"{name}.safetensors").read_bytes() == path.read_bytes()
    secrets = [str(run.parent), str(world.folder), str(Path.home()), "/tmp/"]
    for name, data in contents(exported).items():
        found = [secret for secret in secrets if secret.encode() in data]
        assert not found, (name, found)
    assert yaml.safe_load((exported / "config.json").read_text()) == json.loads((exported / "config.json").read_text())
    config = load_config(
        exported / "config.json", ["vlm.path=x", "dataset.root=y", f"aspect_definitions={exported / 'aspects.yaml'}"]
    )
    assert config.aspects == ["scene", "object", "brightness"] and config.engine.precision == "fp32"
    metrics = json.loads((exported / "metrics.json").read_text())
    assert metrics["accuracy"] == json.loads((run / "evaluate" / "metrics.json").read_text())["accuracy"]


def test_the_same_run_gives_the_same_bytes(exported, run, commands, tmp_path):
    moved = tmp_path / "moved run"
    shutil.copytree(run, moved)
    commands.ok("export", moved, tmp_path / "again", "--license", "cc-by-nc-4.0")
    assert contents(tmp_path / "again") == contents(exported)


def test_moved_elsewhere_it_predicts_the_same_bitwise(exported, world, vlm, expected, tmp_path):
    moved = tmp_path / "an other place" / "[model]"
    shutil.copytree(exported, moved)
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": home, "HF_HOME": home / "hf"}
    assert predicted(moved, vlm, images_of(world), **environment) == json.loads(json.dumps(expected))
    with pytest.raises(masp.errors.InputError, match=r"its VLM \(qwen2_vl, weights \w{12}\) was a directory"):
        masp.load(moved)


def test_through_the_hub_by_name_online_and_offline(exported, world, vlm, expected, processes, hub, tmp_path):
    done = processes.ok("push", exported, "owner/by-name", "--private", "--message", "The first one")
    assert f"push: to {hub.endpoint}/owner/by-name, a private repository that is made: README.md (" in done.stdout
    assert f'push: {hub.endpoint}/owner/by-name; masp.load("hf://owner/by-name") loads it' in done.stdout
    repository = hub.repositories["models/owner/by-name"]
    assert repository.private and set(repository.files()) == {*FILES, ".gitattributes"} and len(repository.commits) == 2
    sent = repository.files()["README.md"].decode()
    assert 'masp.load("hf://owner/by-name", vlm=' in sent and "hf://owner/name" not in sent
    (tmp_path / "home").mkdir()
    here = environment_of(hub, tmp_path / "home")
    images = images_of(world)
    assert predicted("hf://owner/by-name", vlm, images, **here, HF_TOKEN=hub.token) == json.loads(json.dumps(expected))
    hub.requests.clear()
    offline = here | {"HF_HUB_OFFLINE": "1"}
    assert predicted("hf://owner/by-name", vlm, images[:1], **offline)[0][0] == expected[0][0]
    assert not hub.requests
    # the hub is not reachable: what was fetched before is used, which is said
    unreachable = here | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert predicted("hf://owner/by-name", vlm, images[:1], **unreachable)[0][0] == expected[0][0]
    first = repository.commits[-1][0]
    # a later state, without soft prompt, does not change the one that a revision names
    files = dict(repository.files())
    repository.commit({name: data for name, data in files.items() if "soft" not in name})
    at = f"hf://owner/by-name@{first}"
    assert predicted(at, vlm, images[:1], **here, HF_TOKEN=hub.token)[0][0] == expected[0][0]


def test_its_parts_serve_other_runs(exported, run, world, commands, tmp_path):
    given = (f"checkpoint.aspect={exported}", f"checkpoint.soft_prompt={exported}", "evaluate.source=live")
    commands.ok("evaluate", *world.settings(tmp_path / "other", *given))
    ours, theirs = (json.loads((d / "evaluate" / "metrics.json").read_text()) for d in (tmp_path / "other", run))
    assert ours["confusion"] == theirs["confusion"] and ours["nll"] == theirs["nll"]
    commands.ok("train", "--stage", "stage2", *world.settings(tmp_path / "more", given[0], "stage2.num_epochs=1"))
    wrong = commands("train", "--stage", "stage2", *world.settings(tmp_path / "w", f"checkpoint.aspect={tmp_path}"))
    assert "not what `masp export` writes: there is no lineage.json" in error_of(wrong)


def test_the_card_is_valid_and_says_what_there_is(exported, run, hub, monkeypatch):
    from huggingface_hub import constants

    card = ModelCard.load(exported / "README.md")
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text())
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {"accuracy": metrics["accuracy"], "f1": metrics["macro_f1"]}
    assert card.data.license == "cc-by-nc-4.0" and card.data.library_name == "masp"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    card.validate()  # by the hub
    text = re.sub(r"\s+", " ", card.text)
    low, high = metrics["accuracy_ci95"]
    assert f"| accuracy | {metrics['accuracy']:.4f} | {low:.4f} to {high:.4f} |" in text and "13 images" in text
    for words in ("AI Act", "culture", "does not recognize what a person in the image feels", "another one is refused"):
        assert words in text, words
    lineage = json.loads((exported / "lineage.json").read_text())
    for digest in (lineage["aspect"]["digest"], lineage["soft_prompt"]["digest"], lineage["vlm"]["weights"]):
        assert digest in text


def test_what_is_not_finished_or_not_of_these_is_not_exported(run, trained, commands, world, tmp_path):
    def refused(change, directory="new"):
        copy = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(run, copy)
        change(copy)
        error = error_of(commands("export", copy, tmp_path / directory))
        assert not (tmp_path / "new").exists()
        return error

    def stopped(copy):
        path = copy / "stage2" / "status.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "stopped", "exit_code": 75}))

    assert "stage2 has not finished (stopped); run `masp train --stage stage2` again" in refused(stopped)
    assert "stage2 does not say that it has finished" in refused(
        lambda copy: (copy / "stage2" / "status.json").unlink()
    )

    def half_evaluated(copy):
        (copy / "evaluate" / "metrics.json").unlink()
        path = copy / "evaluate" / "status.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "running", "host": "another"}))

    assert "the evaluation has not finished (running)" in refused(half_evaluated)
    assert "nothing was trained here" in refused(lambda copy: [shutil.rmtree(copy / d) for d in ("stage2", "evaluate")])

    def of_others(copy):
        shutil.rmtree(copy / "evaluate")
        none = ("checkpoint.soft_prompt=none", "evaluate.source=live")
        commands.ok("evaluate", *world.settings(copy, *none))

    assert "was made with soft prompt None, but those of the run are" in refused(of_others)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "is not empty" in refused(lambda copy: None, "full")
    assert contents(tmp_path / "full") == {"mine.txt": b"mine"}
    assert "must be an identifier of the hub" in error_of(
        commands("export", run, tmp_path / "new", "--license", "my own")
    )


def test_without_an_evaluation_and_into_an_empty_directory(trained, commands, tmp_path):
    (tmp_path / "empty").mkdir()
    commands.ok("export", trained, tmp_path / "empty", "--vlm", "hf://someone/a-vlm@v1.0")
    assert set(contents(tmp_path / "empty")) == FILES - {"metrics.json"}
    card = ModelCard.load(tmp_path / "empty" / "README.md")
    assert "was not evaluated" in card.text and card.data.eval_results is None
    assert card.data.base_model == "someone/a-vlm" and "vlm=" not in card.text
    assert json.loads((tmp_path / "empty" / "config.json").read_text())["vlm"]["path"] == "hf://someone/a-vlm@v1.0"


@pytest.mark.parametrize("mask", [0o027, 0o077])
def test_permissions_follow_the_umask(mask, exported, trained, tmp_path):
    from masp.cli.main import main

    before = os.umask(mask)
    try:
        assert main(["export", str(trained), str(tmp_path / "new")]) == 0
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()}
    assert modes == {0o666 & ~mask} and (tmp_path / "new").stat().st_mode & 0o777 == 0o777 & ~mask


def test_a_full_disk_leaves_nothing(trained, tmp_path, commands):
    place = tmp_path / "read only"
    place.mkdir()
    (place / "file").write_text("")
    error = error_of(commands("export", trained, place / "file" / "new"))
    assert "cannot be" in error
    assert contents(place) == {"file": b""}


def test_killed_at_any_file_nothing_has_the_name(trained, tmp_path, commands):
    running = commands.start("export", trained, tmp_path / "new")
    running.when(lambda: any(path.name.endswith(".tmp") for path in tmp_path.iterdir()) or (tmp_path / "new").exists())
    running.kill()
    running.wait()
    assert not (tmp_path / "new").exists() or set(contents(tmp_path / "new")) >= FILES - {"metrics.json"}
    commands.ok("export", trained, tmp_path / "other")
    shutil.rmtree(tmp_path / "new", ignore_errors=True)
    commands.ok("export", trained, tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"new", "other"}
    assert contents(tmp_path / "new") == contents(tmp_path / "other")


def test_another_target(commands, world, trained, table, vlm, tmp_path):
    modules = f"checkpoint.aspect={trained / 'stage1' / 'aspect.safetensors'}"
    settings = world.settings(tmp_path / "run", modules, *SEASON, f"target.labels={table}", *STAGE_2)
    commands.ok("train", "--stage", "stage2", *settings)
    commands.ok("export", tmp_path / "run", tmp_path / "new")
    images = images_of(world)[:4]
    ours = masp.load(tmp_path / "new", device="cpu", vlm=vlm)
    assert ours.categories == ("autumn", "spring", "winter") and ours.questions.target == "season"
    assert numbers(ours, images) == numbers(masp.load(tmp_path / "run", device="cpu"), images)
    text = (tmp_path / "new" / "README.md").read_text()
    assert "`season` of an image" in text and "table seasons.csv" in text and str(tmp_path) not in text


def test_without_aspect_modules(commands, world, vlm, tmp_path):
    settings = world.settings(tmp_path / "run", "checkpoint.aspect=none", *STAGE_2)
    commands.ok("train", "--stage", "stage2", *settings)
    commands.ok("export", tmp_path / "run", tmp_path / "new")
    assert not {"aspects.yaml", "aspect.safetensors"} & set(contents(tmp_path / "new"))
    images = images_of(world)[:4]
    ours = masp.load(tmp_path / "new", device="cpu", vlm=vlm)
    assert ours.aspects == () and numbers(ours, images) == numbers(masp.load(tmp_path / "run", device="cpu"), images)
    error = error_of(commands("evaluate", *world.settings(tmp_path / "e", f"checkpoint.aspect={tmp_path / 'new'}")))
    assert "has no aspect modules; name another one, or give checkpoint.aspect=none" in error


def test_without_soft_prompt_and_quantized(commands, world, trained, vlm, tmp_path):
    given = ("checkpoint.soft_prompt=none", "vlm.quantization=int8", "evaluate.source=live")
    shutil.copytree(trained / "stage1", tmp_path / "run" / "stage1")
    commands.ok("evaluate", *world.settings(tmp_path / "run", *given))
    commands.ok("export", tmp_path / "run", tmp_path / "new")
    assert "soft_prompt.safetensors" not in contents(tmp_path / "new")
    images = images_of(world)[:4]
    ours = masp.load(tmp_path / "new", device="cpu", vlm=vlm)
    assert ours.config.vlm.quantization == "int8"
    assert numbers(ours, images) == numbers(masp.load(tmp_path / "run", device="cpu"), images)
    assert "language model in `int8`" in (tmp_path / "new" / "README.md").read_text()


def test_imported_checkpoints_stay_imported(commands, world, trained, vlm, tmp_path):
    (soft_prompt,) = (trained / "stage2").glob("*.pt")
    given = (
        f"checkpoint.aspect={trained / 'stage1' / 'aspect.pth'}", f"checkpoint.soft_prompt={soft_prompt}",
        "checkpoint.layout=after_image", "aspects=[scene,brightness]", "evaluate.source=live",
    )  # fmt: skip
    commands.ok("evaluate", *world.settings(tmp_path / "run", *given))
    commands.ok("export", tmp_path / "run", tmp_path / "new")
    assert set(contents(tmp_path / "new")) == FILES
    images = images_of(world)[:4]
    ours = masp.load(tmp_path / "new", device="cpu", vlm=vlm)
    assert numbers(ours, images) == numbers(masp.load(tmp_path / "run", device="cpu"), images)
    assert ours.trained.soft_prompt_lineage.origin == ours.trained.aspect_lineage.origin == "imported"
    text = (tmp_path / "new" / "README.md").read_text()
    assert text.count("**imported** (`origin: imported`)") == 2
    # the layout is known from the file
    parts = (f"checkpoint.aspect={tmp_path / 'new'}", f"checkpoint.soft_prompt={tmp_path / 'new'}", *given[3:])
    commands.ok("evaluate", *world.settings(tmp_path / "other", *parts))


def test_another_vlm_is_refused(exported, world, tmp_path):
    from tests.tiny import make_vlm

    other = make_vlm(tmp_path / "vlm", seed=1)
    with pytest.raises(masp.errors.InputError, match="was trained with weights = "):
        masp.load(exported, device="cpu", vlm=str(other))


def test_what_the_hub_refuses_is_one_line(exported, processes, hub, tmp_path):
    error = error_of(processes("push", exported, "owner/x", HF_TOKEN=""))
    assert error == "error: hf://owner/x: no token of the hub: `hf auth login` gets one, or set HF_TOKEN"
    assert "does not accept the token" in error_of(processes("push", exported, "owner/x", HF_TOKEN="another"))
    assert "this token may not write there" in error_of(processes("push", exported, f"{FOREIGN}/x"))
    for name in ("x", "owner/x/y", "owner/..", "hf://owner/x@../y", "owner/a--b"):
        assert "NAME: " in error_of(processes("push", exported, name)), name
    assert "cannot be" not in error_of(processes("push", tmp_path / "gone", "owner/x"))
    hub.repositories["models/owner/taken"] = Repository(private=False)
    hub.repositories["models/owner/taken"].commit({"config.json": b"{}"})
    assert "holds another model: it has config.json" in error_of(processes("push", exported, "owner/taken"))
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    (copy / "README.md").write_text("---\nlicense: [\n---\n")
    assert "not a valid model card" in error_of(processes("push", copy, "owner/x"))
    (copy / "README.md").write_text("---\nlicense: my-own\n---\n")
    assert "the hub refuses the model card" in error_of(processes("push", copy, "owner/x"))
    flipped = bytearray((copy / "aspect.safetensors").read_bytes())
    flipped[-3] ^= 1
    (copy / "aspect.safetensors").write_bytes(flipped)
    assert "aspect.safetensors does not match its digest" in error_of(processes("push", copy, "owner/x"), 3)


def test_pushed_again_what_is_gone_is_removed(exported, trained, commands, processes, hub, tmp_path):
    processes.ok("push", exported, "owner/again")
    commands.ok("export", trained, tmp_path / "plain")
    processes.ok("push", tmp_path / "plain", "hf://owner/again")
    repository = hub.repositories["models/owner/again"]
    assert not repository.private and "metrics.json" not in repository.files()
    puts = len(hub.asked("PUT", "^/upload/"))
    processes.ok("push", tmp_path / "plain", "owner/again")
    assert len(hub.asked("PUT", "^/upload/")) == puts and len(repository.commits) == 3
