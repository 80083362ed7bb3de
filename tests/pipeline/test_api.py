"""The Python API on a trained run: the numbers of `masp evaluate`, from a directory and images in any form."""

import json
import os
import re
import shutil
import subprocess
import sys

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

import masp
from masp.errors import DataError, InputError
from masp.results.records import FILE, read_records_file
from tests.runs import REPOSITORY


def image_paths(world, keys):
    """The files of sample keys: split, then the path with its dots escaped."""
    return [world.folder / "pictures" / key.replace("%2E", ".") for key in keys]


@pytest.fixture(scope="module")
def evaluated(commands, world, trained, tmp_path_factory):
    """A run of which nothing is left but what was trained and its evaluation, from live features."""
    run = tmp_path_factory.mktemp("api") / "run"
    shutil.copytree(trained, run)
    commands.ok("evaluate", *world.settings(run, "evaluate.source=live"))
    return run


@pytest.fixture(scope="module")
def model(evaluated):
    return masp.load(evaluated, device="cpu")


def test_predictions_are_those_of_the_evaluation(model, evaluated, world):
    records = read_records_file(evaluated / "evaluate" / FILE)
    paths = image_paths(world, records.keys)
    for batch_size in (1, 5):
        found = model.predict(paths, batch_size=batch_size)
        assert [p.label for p in found] == list(records.predictions)
        assert [p.image for p in found] == [str(path) for path in paths]
        ours = np.array([list(p.log_likelihoods.values()) for p in found])
        np.testing.assert_allclose(ours, records.scores, atol=1e-5, rtol=0)
        assert all(sum(p.probabilities.values()) == pytest.approx(1) for p in found)
        assert all(p.label == max(p.probabilities, key=p.probabilities.get) for p in found)


def test_contributions_are_those_of_separate_evaluations(commands, model, evaluated, world, tmp_path):
    whole = read_records_file(evaluated / "evaluate" / FILE)
    parts = {}
    for name in ("scene", "vision_features"):
        done = tmp_path / name
        given = [f"evaluate.without=[{name}]", f"evaluate.output_dir={done}", "evaluate.source=live"]
        commands.ok("evaluate", *world.settings(evaluated, *given))
        parts[name] = read_records_file(done / FILE)
        assert json.loads((done / "metrics.json").read_text())["without"] == [name]
    for row, path in enumerate(image_paths(world, whole.keys)):
        found = model.explain(path)
        best = whole.categories.index(whole.predictions[row])
        loss = {name: whole.scores[row][best] - records.scores[row][best] for name, records in parts.items()}
        (scene,) = [aspect for aspect in found.aspects if aspect.aspect == "scene"]
        assert scene.contribution == pytest.approx(loss["scene"], abs=1e-5)
        assert found.vision_features == pytest.approx(loss["vision_features"], abs=1e-5)


def test_tokens_maps_and_features_are_of_the_shapes_that_they_say(model, world, evaluated):
    paths = image_paths(world, read_records_file(evaluated / "evaluate" / FILE).keys)[:3]
    features = model.features(paths)
    tokens = model.aspect_tokens(paths)
    assert tokens.shape == (3, len(model.aspects), 5, features[0].shape[1]) and tokens.dtype == np.float32
    maps = model.attention(paths[0])
    assert list(maps) == list(model.aspects)
    for one in maps.values():
        assert one.size == len(features[0]) and one.sum() == pytest.approx(1, abs=1e-5)
    assert model.aspect_tokens([]).shape == (0, *tokens.shape[1:])
    assert model.predict([]) == [] and model.features([]) == []


def test_an_image_in_any_form_is_predicted_alike(model, world, evaluated):
    path = image_paths(world, read_records_file(evaluated / "evaluate" / FILE).keys)[0]
    (expected,) = model.predict([path])
    for form in (path.read_bytes(), Image.open(path), np.asarray(Image.open(path).convert("RGB"))):
        (found,) = model.predict([form])
        assert found.image == "image 0" and found.log_likelihoods == expected.log_likelihoods


def test_what_cannot_be_read_is_named(model, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    for use in (model.explain, model.attention, lambda path: model.predict([path])):
        with pytest.raises(DataError, match=f"{broken} cannot be read: "):
            use(broken)
    with pytest.raises(InputError, match="batch_size = 0: must be 1 or more"):
        model.predict([broken], batch_size=0)


def test_what_was_not_trained_is_refused(tmp_path, trained):
    with pytest.raises(InputError, match="no such directory; name the output_dir of a run"):
        masp.load(tmp_path / "gone")
    with pytest.raises(InputError, match="nothing was trained here"):
        masp.load(tmp_path)
    half = tmp_path / "half"
    shutil.copytree(trained, half)
    for path in (half / "stage2").glob("soft_prompt_*"):
        path.unlink()
    with pytest.raises(InputError, match="stage 2 has not finished"):
        masp.load(half)
    with pytest.raises(InputError, match="vlm.path"):
        masp.load(trained, vlm=tmp_path / "no-vlm")


def test_the_lines_of_the_readme_run(world, evaluated, tmp_path):
    (block,) = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "mine").symlink_to(evaluated)
    path = image_paths(world, read_records_file(evaluated / "evaluate" / FILE).keys)[0]
    shutil.copyfile(path, tmp_path / "photo.jpg")
    end = "\nassert tokens.shape[1] == len(maps) == len(why.aspects) and found.label == why.category\n"
    command = [sys.executable, "-c", block + end]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, sentence, *aspects = done.stdout.splitlines()
    assert sentence.startswith(first.split()[0]) and len(aspects) == 3


@pytest.mark.full
def test_the_notebook_runs(world, evaluated, monkeypatch):
    monkeypatch.setenv("MASP_RUN", str(evaluated))
    monkeypatch.setenv("MASP_IMAGES", str(world.folder / "pictures" / "test" / "awe"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    path = REPOSITORY / "examples" / "explore_a_model.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "a notebook is kept without its outputs"
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert any("all aspects" in output.get("text", "") for output in outputs)


def test_a_cache_is_a_dataset(world):
    from torch.utils.data import DataLoader

    everything, test = masp.open_cache(world.folder / "cache"), masp.open_cache(world.folder / "cache", "test")
    assert len(test) == 13 and len(everything) == 31
    assert {sample.split for sample in test} == {"test"}
    loader = DataLoader(test, batch_size=4, num_workers=2, collate_fn=list)
    keys = [sample.key for batch in loader for sample in batch]
    assert keys == [sample.key for sample in test]
    assert test[-1].key == keys[-1]
    with pytest.raises(IndexError):
        test[13]
    with pytest.raises(InputError, match="has no split 'val'"):
        masp.open_cache(world.folder / "cache", "val")


def test_names_are_offered_and_others_are_not():
    assert {"load", "open_cache", "Model"} <= set(dir(masp))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = masp.lode
