"""The demo world: determinism, an exact posterior, annotations that match the images."""

import json

import numpy as np
import pytest
from PIL import Image

from masp.config import load_aspects
from masp.config.schema import DatasetConfig
from masp.data.datasets import read_dataset
from masp.demo.world import factors
from masp.demo.world.draw import draw_image, measure, world_rng
from masp.demo.world.write_dataset import best_possible, write_demo_data
from masp.errors import DataError, InputError
from masp.files.typed import decode


def _scenes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [factors.draw_scene(rng) for _ in range(count)]


def test_posterior_sums_to_one_and_depends_on_every_factor():
    scenes = np.array([scene.labels for scene in _scenes(500)])
    chances = factors.posterior(scenes)
    assert np.allclose(chances.sum(-1), 1) and (chances > 0).all()
    for k, factor in enumerate(factors.FACTORS):
        other = scenes.copy()
        other[:, k] = (other[:, k] + 1) % len(factors.LABELS[factor])
        assert not np.allclose(factors.posterior(other), chances, atol=0.1)


def test_best_possible_by_enumeration_equals_monte_carlo():
    exact = factors.best_possible_accuracy()
    assert 0.82 < exact < 0.90
    scenes = np.array([scene.labels for scene in _scenes(20000)])
    largest = factors.posterior(scenes).max(-1)
    error = largest.std() / len(largest) ** 0.5
    assert abs(factors.expected_accuracy(scenes) - exact) < 4 * error
    rng = np.random.default_rng(1)
    guesses = [factors.EMOTIONS[int(factors.posterior(s).argmax())] for s in scenes[:4000]]
    drawn = [factors.draw_emotion(rng, factors.Scene(tuple(s))) for s in scenes[:4000]]
    hits = np.mean([g == d for g, d in zip(guesses, drawn, strict=True)])
    assert abs(hits - exact) < 4 * (exact * (1 - exact) / 4000) ** 0.5 + 4 * error


def test_every_factor_matters():
    best = factors.best_possible_accuracy()
    for factor in factors.FACTORS:
        rest = [f for f in factors.FACTORS if f != factor]
        assert best - factors.best_possible_accuracy(rest) > 0.05
        assert factors.best_possible_accuracy([factor]) < 0.45
    assert factors.best_possible_accuracy([]) == pytest.approx(1 / len(factors.EMOTIONS), abs=0.05)


def test_the_weather_is_annotated_and_read_where_it_is_defined(tmp_path):
    write_demo_data(tmp_path / "data", 20, 5, seed=1)
    dataset = read_dataset(DatasetConfig(name="emoset", root=str(tmp_path / "data")), load_aspects())
    assert {aspect for sample in dataset.samples for aspect in sample.answers} == set(factors.ASPECTS)
    aspects = load_aspects("configs/aspects-demo.yaml")
    assert tuple(aspects) == factors.FACTORS
    for name, aspect in aspects.items():
        expected = factors.LEVELS if aspect.kind == "level" else map(factors.words, factors.LABELS[name])
        assert set(aspect.vocabulary) == set(expected)
    dataset = read_dataset(DatasetConfig(name="emoset", root=str(tmp_path / "data")), aspects)
    assert all(sample.answers["weather"] in aspects["weather"].vocabulary for sample in dataset.samples)
    assert not [f for f in dataset.findings if "vocabulary" in f.text]
    notes = [json.loads(path.read_text()) for path in (tmp_path / "data" / "annotation").rglob("*.json")]
    assert {note["weather"] for note in notes} <= set(factors.LABELS["weather"])


def test_a_scene_can_be_partly_known():
    scene = _scenes(1)[0]
    known = scene.only(["scene", "weather"])
    assert [i >= 0 for i in known.labels] == [f in ("scene", "weather") for f in factors.FACTORS]
    assert known.label("scene") == scene.label("scene") and known.label("object") is None
    assert factors.caption_words("brightness", "very low") == "dark"
    assert factors.caption_words("scene", "amusement_park") == "amusement park"


def test_labels_are_emosets_and_annotations_round_trip():
    for scene in _scenes(60):
        drawn = draw_image(scene, world_rng("test", *scene.labels))
        note = factors.annotation(scene, drawn.brightness, drawn.colorfulness)
        text = json.dumps({"image_id": "a", "emotion": "awe", **note}).encode()
        assert decode(factors.Annotation, text, "note").to_scene() == scene
        assert measure(drawn.pixels) == (drawn.brightness, drawn.colorfulness)
        assert factors.level_word(note["brightness"]) == scene.label("brightness")
        assert ("facial_expression" in note) == (scene.label("facial_expression") is not None)
    assert [factors.level_word(v / 10) for v in (0, 1, 2, 6, 9, 10)] == [
        "very low", "very low", "low", "high", "very high", "very high",
    ]  # fmt: skip


def test_images_depend_on_their_names_alone():
    scene = _scenes(1)[0]
    first, again, other = (draw_image(scene, world_rng("demo", 0, "test", i)).pixels for i in (3, 3, 4))
    assert first.shape == again.shape and (first == again).all()
    assert other.shape != first.shape or (other != first).any()


def test_written_data_has_emosets_layout_and_is_deterministic(tmp_path):
    seen = []
    assert write_demo_data(tmp_path / "a", 12, 6, seed=1, num_val=3, progress=lambda *x: seen.append(x))
    assert seen[-1] == (21, 21)
    assert write_demo_data(tmp_path / "b", 12, 6, seed=1, num_val=3)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    rows = json.loads((tmp_path / "a" / "train.json").read_text())
    assert len(rows) == 12
    for emotion, image, note in rows:
        content = json.loads((tmp_path / "a" / note).read_text())
        assert content["emotion"] == emotion and image.startswith(f"image/{emotion}/")
        pixels = np.asarray(Image.open(tmp_path / "a" / image))
        assert measure(pixels) == (content["brightness"], content["colorfulness"])
    assert 0.5 < best_possible(tmp_path / "a", "test") <= 1
    assert not write_demo_data(tmp_path / "a", 12, 6, seed=1, num_val=3)  # already written


def test_a_directory_with_other_content_is_refused(tmp_path):
    write_demo_data(tmp_path / "a", 4, 2, seed=1)
    with pytest.raises(InputError, match="not empty"):
        write_demo_data(tmp_path / "a", 4, 2, seed=2)
    next((tmp_path / "a" / "image").rglob("*.png")).write_bytes(b"")
    with pytest.raises(InputError, match="not empty"):
        write_demo_data(tmp_path / "a", 4, 2, seed=1)
    with pytest.raises(InputError, match="at least one image"):
        write_demo_data(tmp_path / "b", 0, 0, seed=1)
    with pytest.raises(InputError, match="world.json is missing: not a dataset of the demo world"):
        best_possible(tmp_path, "test")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("world.json", "[1]", "world.json: "),
        ("world.json", "[" * 100_000, "world.json: not valid JSON"),
        ("test.json", '[["joy", "a.png"]]', "test.json: [0][2] is missing"),
    ],
    ids=range(3),
)
def test_a_damaged_index_is_one_line(tmp_path, name, content, words):
    write_demo_data(tmp_path / "a", 1, 1, seed=1)
    (tmp_path / "a" / name).write_text(content)
    with pytest.raises(DataError) as error:
        best_possible(tmp_path / "a", "test")
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("brightness", float("nan"), "brightness = nan: must be a finite number"),
        ("colorfulness", 1.5, "colorfulness = 1.5"),
        ("scene", "moon", "scene = 'moon': must be one of "),
        ("scene", None, "scene = null: must be a"),
        ("object", [], "object[0] is missing"),
        ("objects", ["dog"], "objects: unknown key"),
    ],
)
def test_a_damaged_annotation_is_one_line(tmp_path, key, value, words):
    write_demo_data(tmp_path / "a", 1, 1, seed=1)
    path = next((tmp_path / "a" / "annotation").rglob("*_test_*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(DataError) as error:
        best_possible(tmp_path / "a", "test")
    assert words in str(error.value) and str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_missing_annotation(tmp_path):
    write_demo_data(tmp_path / "a", 1, 1, seed=1)
    path = next((tmp_path / "a" / "annotation").rglob("*_test_*.json"))
    path.unlink()
    with pytest.raises(DataError, match=f"{path} is missing"):
        best_possible(tmp_path / "a", "test")


@pytest.mark.parametrize(
    ("root", "words"), [("x" * 300, "cannot be examined: File name too long"), (".", "must be the name of a directory")]
)
def test_a_path_that_cannot_be_created(tmp_path, monkeypatch, root, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        write_demo_data(root, 1, 1, seed=1)
    assert not list(tmp_path.iterdir())
