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
from masp.inference.source import config_of
from tests.commands import Commands
from tests.hub_server import Hub
from tests.pipeline.test_another_target import SEASON, STAGE_2, table
from tests.serving import serving

CATEGORIES = "dataset.categories=[anger,awe,joy]"
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


@pytest.mark.full
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


def test_an_export_is_served_and_shown_beside_its_run(exported, run, world, vlm, expected, commands):
    image, (label, _, likelihoods) = Path(images_of(world)[0]).read_bytes(), expected[0]
    with serving(commands, "app", exported, run, f"vlm.path={vlm}", "engine.device=cpu") as server:
        shown = server.ask("POST", "/api/look", image, "image/png").json["models"]
        assert [one["label"] for one in shown] == [label, label]
        assert [one["name"] for one in shown] == ["exported", "run"]
        none = server.ask("GET", "/api/mistakes/0")
        assert none.status == 404 and f"{exported}: an export holds no mistakes" in none.json["error"]
        assert server.ask("GET", "/api/mistakes/1").json["num_samples"] == len(expected)
    with serving(commands, "serve", exported, f"vlm.path={vlm}", "engine.device=cpu") as server:
        assert server.predict(image).json["log_likelihoods"] == pytest.approx(likelihoods, abs=1e-5, rel=0)
    assert "name yours: masp.load(…, vlm=DIR), or vlm.path=DIR" in error_of(commands("serve", exported, "--port", 0))


def test_a_model_of_the_hub_is_predicted_with_served_and_shown(exported, world, vlm, expected, processes):
    processes.ok("push", exported, "owner/served")
    source, settings = "hf://owner/served", (f"vlm.path={vlm}", "engine.device=cpu")
    path, (label, _, likelihoods) = images_of(world)[0], expected[0]
    image = Path(path).read_bytes()
    done = processes.ok("predict", "--model", source, path, *settings, "--json")
    assert json.loads(done.stdout)["prediction"] == label
    with serving(processes, "serve", source, *settings) as server:
        assert server.ask("GET", "/").json["run"] == source
        assert server.predict(image).json["log_likelihoods"] == pytest.approx(likelihoods, abs=1e-5, rel=0)
    with serving(processes, "app", source, *settings) as server:
        (shown,) = server.ask("POST", "/api/look", image, "image/png").json["models"]
        assert (shown["name"], shown["label"]) == ("served", label)
        assert server.ask("GET", "/api/mistakes/0").json["error"].startswith(f"{source}: an export holds no mistakes")
    assert "owner/none" in error_of(processes("serve", "hf://owner/none", *settings, "--port", 0))


@pytest.mark.full
def test_its_parts_serve_other_runs(exported, run, world, commands, tmp_path):
    given = (f"checkpoint.aspect={exported}", f"checkpoint.soft_prompt={exported}", "evaluate.source=live")
    commands.ok("evaluate", *world.settings(tmp_path / "other", *given))
    ours, theirs = (json.loads((d / "evaluate" / "metrics.json").read_text()) for d in (tmp_path / "other", run))
    assert ours["confusion"] == theirs["confusion"] and ours["nll"] == theirs["nll"]
    commands.ok("train", "--stage", "stage2", *world.settings(tmp_path / "more", given[0], "stage2.num_epochs=1"))
    wrong = commands("train", "--stage", "stage2", *world.settings(tmp_path / "w", f"checkpoint.aspect={tmp_path}"))
    assert "it has no lineage.json, so `masp export` did not write it" in error_of(wrong)


def test_the_card_is_valid_and_says_what_there_is(exported, run, hub, monkeypatch):
    from huggingface_hub import constants

    card = ModelCard.load(exported / "README.md")
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text())
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {"accuracy": metrics["accuracy"], "f1": metrics["macro_f1"]}
    assert card.data.license == "cc-by-nc-4.0" and card.data.library_name == "masp"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    card.validate()  # by the hub
    text = re.sub(r"\s+", " ", card.text)
    low, high = metrics["accuracy_ci95"]
    assert f"| accuracy | {metrics['accuracy']:.4f} | {low:.4f} to {high:.4f} |" in text and "13 images" in text
    for words in ("AI Act", "culture", "does not recognize what a person in the image feels", "another one is refused"):
        assert words in text, words
    lineage = json.loads((exported / "lineage.json").read_text())
    for digest in (lineage["aspect"]["digest"], lineage["soft_prompt"]["digest"], lineage["vlm"]["weights"]):
        assert digest in text


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
    given = ("checkpoint.soft_prompt=none", "vlm.quantization=int8", "evaluate.source=live", CATEGORIES)
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
    assert ours.categories == ("anger", "awe", "joy")  # which the evaluation says
    theirs = config_of(tmp_path / "run", device="cpu")
    theirs.dataset.categories = list(ours.categories)
    assert numbers(ours, images) == numbers(masp.Model(theirs), images)
    assert ours.trained.soft_prompt_lineage.origin == ours.trained.aspect_lineage.origin == "imported"
    text = (tmp_path / "new" / "README.md").read_text()
    assert text.count("**imported** (`origin: imported`)") == 2
    # the layout is known from the file
    parts = (f"checkpoint.aspect={tmp_path / 'new'}", f"checkpoint.soft_prompt={tmp_path / 'new'}", *given[3:])
    commands.ok("evaluate", *world.settings(tmp_path / "other", *parts))
