"""A cache holds the answers to the aspects that were defined when it was begun, whatever is defined later."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from masp.cache.layout import LAYOUT, MANIFEST, read_layout
from masp.cache.manifest import read_manifest
from masp.cache.reader import open_matching_cache
from masp.config import load_config
from masp.data.answers import AnswerForm
from masp.errors import InputError
from masp.extraction.extend import extend
from masp.extraction.job import extract
from masp.files.sealed import sealed, unseal_object
from masp.training.stages import open_stage
from tests.images import make_config, make_dataset
from tests.tiny import make_vlm

BRIGHTNESS = "brightness: {kind: level, questions: [Q], bounds: [0, 1], words: [low, high]}\n"
SCENE = "scene: {questions: [Q]}\n"
OBJECT = "object: {kind: list, questions: [Q]}\n"
WEATHER = "weather: {questions: [Q], vocabulary: [rain, fog]}\n"


def define(folder: Path, *aspects: str) -> None:
    (folder / "aspects.yaml").write_text("".join(aspects))


def annotate(root: Path) -> None:
    """Give every annotation a key that is not an aspect yet."""
    for number, path in enumerate(sorted((root / "annotation").rglob("*.json"))):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"weather": ("rain", "fog")[number % 2]}))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A dataset, and its cache from when three aspects were defined; tests take copies."""
    folder = tmp_path_factory.mktemp("base")
    make_vlm(folder / "vlm")
    annotate(make_dataset(folder / "data", 12, 4))
    define(folder, BRIGHTNESS, SCENE, OBJECT)
    extract(configured(folder))
    return folder


@pytest.fixture
def folder(base, tmp_path):
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    return tmp_path


def configured(folder, *overrides):
    definitions = f"aspect_definitions={folder / 'aspects.yaml'}"
    return make_config(folder / "data", folder / "vlm", folder / "cache", definitions, *overrides)


def content(cache):
    return {path: path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file() and path.name[0] != "."}


def test_the_cache_records_how_it_reads_annotations(folder):
    forms = {
        "brightness": AnswerForm("level", (0.0, 1.0), ("low", "high")),
        "object": AnswerForm("list"),
        "scene": AnswerForm("text"),
    }
    assert read_layout(folder / "cache").answer_forms == read_manifest(folder / "cache").answer_forms == forms
    # what is not in use is there too, so that one cache serves several choices
    cache, _ = open_matching_cache(configured(folder, "aspects=[scene]"))
    assert cache.manifest.aspects == ("brightness", "object", "scene")


def test_an_aspect_that_is_defined_later_is_left_alone(folder, caplog, capsys):
    define(folder, WEATHER, BRIGHTNESS, SCENE, OBJECT)
    before = content(folder / "cache")
    with caplog.at_level(logging.INFO):
        extract(configured(folder))
    assert "is complete" in capsys.readouterr().out and content(folder / "cache") == before
    assert f"{folder / 'cache'} was begun before weather was defined, and does not hold its answers" in caplog.text
    # new images come in with the answers that the others have
    shutil.copy(folder / "data/train/awe/train.001.png", folder / "data/train/joy/new.png")
    shutil.copy(folder / "data/annotation/awe/train.001.json", folder / "data/annotation/joy/new.json")
    assert "weather" in json.loads((folder / "data/annotation/joy/new.json").read_text())
    extend(configured(folder))
    cache, _ = open_matching_cache(configured(folder))
    row = cache.index.keys.index(next(key for key in cache.index.keys if "new" in key))
    assert set(cache.read_record(row).answers) == {"brightness", "object", "scene"}
    assert cache.unknown_aspects(["weather", "scene"]) == ["weather"]


@pytest.mark.parametrize("others", ["", ",scene"])
def test_training_on_it_says_what_to_do(folder, others):
    define(folder, BRIGHTNESS, SCENE, OBJECT, WEATHER)
    config = configured(folder, f"aspects=[weather{others}]", f"output_dir={folder / 'out'}", "engine.precision=fp32")
    with pytest.raises(InputError) as error:
        open_stage("stage1", config, "cpu")
    assert str(error.value) == (
        f"aspects: cache.dir: {folder / 'cache'} holds no answers to weather, defined after it was begun; extract into "
        "a new cache.dir, or run `masp annotate`, which also reads the annotations of the dataset"
    )
    from masp.cli.doctor import _describe_cache

    note = "begun before weather was defined, so without the dataset's answers to it"
    assert _describe_cache(config) == f"16 images; {note}"
    config.cache = replace(config.cache, dir=str(folder / "new"))
    extract(config)
    stage = open_stage("stage1", config, "cpu")
    assert stage.cache.has_answer(stage.schedule.rows, "weather").any()


@pytest.mark.parametrize(
    ("aspects", "named"),
    [
        ([BRIGHTNESS.replace("low, high", "dark, bright"), SCENE, OBJECT], "brightness = .*low, high.*dark, bright"),
        ([BRIGHTNESS.replace("low, high", "high, low"), SCENE, OBJECT], "brightness = .*low, high.*high, low"),
        ([BRIGHTNESS.replace("[0, 1]", "[0, 10]"), SCENE, OBJECT], "brightness = .*from 0 to 1 .*from 0 to 10 "),
        ([BRIGHTNESS, SCENE.replace("{", "{kind: list, "), OBJECT], "scene = .*kind = text.*kind = list"),
        ([BRIGHTNESS, OBJECT], "scene = .*kind = text.*not defined"),
    ],
)
def test_another_definition_is_refused_before_anything_is_touched(folder, aspects, named):
    define(folder, *aspects)
    before = content(folder / "cache")
    for write in (extract, extend):
        with pytest.raises(InputError, match=f"cache was made with {named}.*; define the aspect as before"):
            write(configured(folder))
    assert content(folder / "cache") == before
    used = named.split()[0]
    if used in load_config(None, [*NEEDED, f"aspect_definitions={folder / 'aspects.yaml'}"]).aspects:
        with pytest.raises(InputError, match=f"was made with {named}"):
            open_matching_cache(configured(folder))
    # whoever does not ask about it may read the cache
    open_matching_cache(configured(folder, "aspects=[object]"))


NEEDED = ["vlm.path=x", "dataset.root=x", "cache.dir=x"]


def test_a_vocabulary_and_questions_may_change(folder, capsys):
    define(folder, BRIGHTNESS.replace("[Q]", "[Q, R]"), SCENE.replace("}", ", vocabulary: [sea, city]}"), OBJECT)
    extract(configured(folder))
    assert "is complete" in capsys.readouterr().out
    open_matching_cache(configured(folder))


def test_what_was_begun_and_never_finished_binds_nobody(folder):
    shutil.rmtree(folder / "cache" / "shards")
    (folder / "cache" / MANIFEST).unlink()
    define(folder, BRIGHTNESS.replace("low, high", "dark, bright"), WEATHER)
    extract(configured(folder))
    assert read_manifest(folder / "cache").aspects == ("brightness", "weather")


def test_tasks_with_different_definitions_do_not_mix(folder):
    config = configured(folder, f"cache.dir={folder / 'new'}")
    extract(config, num_tasks=2, task_index=1)
    define(folder, BRIGHTNESS.replace("low, high", "dark, bright"), SCENE, OBJECT)
    with pytest.raises(InputError, match="was made with brightness"):
        extract(config, num_tasks=2, task_index=0)
    define(folder, BRIGHTNESS, SCENE, OBJECT, WEATHER)
    extract(config, num_tasks=2, task_index=0)
    assert read_manifest(folder / "new").aspects == ("brightness", "object", "scene")


@pytest.fixture
def earlier(folder):
    """The cache as an earlier version wrote it, which did not record this."""
    for name in (LAYOUT, MANIFEST):
        fields = unseal_object((folder / "cache" / name).read_bytes(), name)
        del fields["answer_forms"]
        (folder / "cache" / name).write_bytes(sealed(fields))
    return folder


def test_a_cache_of_an_earlier_version_is_read_and_compared_by_its_answers(earlier, capsys):
    extract(configured(earlier))
    assert "is complete" in capsys.readouterr().out
    assert open_matching_cache(configured(earlier))[0].unknown_aspects(["weather"]) == []
    define(earlier, BRIGHTNESS.replace("low, high", "dark, bright"), SCENE, OBJECT)
    with pytest.raises(InputError, match="was cached with answers .*'brightness': '(low|high)'.*extract into a new"):
        extract(configured(earlier))
    with pytest.raises(InputError, match="holds the answer '(low|high)' to brightness, whose words are dark, bright"):
        open_matching_cache(configured(earlier))
    open_matching_cache(configured(earlier, "aspects=[object]"))
    define(earlier, BRIGHTNESS, SCENE, OBJECT, WEATHER)
    with pytest.raises(InputError, match="was cached with answers .*weather.*extract into a new cache.dir"):
        extend(configured(earlier))
