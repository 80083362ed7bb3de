"""Which images lack an aspect: one rule for the dataset, the plan and the cache."""

import json
from pathlib import Path

import numpy as np
import pytest

from masp.annotation.job import annotate, prepare
from masp.cache.annotations.manifest import read_stored
from masp.config import load_config
from masp.data.lacking import Lacking
from masp.plan.plan import make_plan
from masp.start.pipeline import _check_dataset
from tests.annotated import DEFINITIONS, make_annotated

TRAIN, TEST = ("train", ("scene",)), ("test", ("scene", "mood"))
BARE = ("train", ())


@pytest.mark.parametrize(
    ("listed", "kinds", "unanswered", "lacking"),
    [
        (None, [TRAIN, TEST, BARE], ["mood"], {"scene": [BARE], "mood": [TRAIN, BARE]}),
        (["scene"], [TRAIN, TEST, BARE], ["mood"], {"scene": [BARE], "mood": [TRAIN, BARE]}),
        (None, [TRAIN, BARE], ["mood"], {"scene": [BARE], "mood": [TRAIN, BARE]}),
        (None, [TEST, ("test", ("scene",)), ("test", ())], [], {"scene": [("test", ())], "mood": [("test", ())]}),
        (["mood"], [TEST, ("test", ("scene",))], [], {"mood": [("test", ("scene",))]}),
        (None, [("test", ("mood",))], ["scene"], {"scene": [("test", ("mood",))], "mood": []}),
        (None, [], ["scene", "mood"], {"scene": []}),
    ],
)
def test_the_rule(tmp_path, listed, kinds, unanswered, lacking):
    definitions = tmp_path / "aspects.yaml"
    definitions.write_text(DEFINITIONS)
    chosen = [] if listed is None else [f"annotate.aspects=[{','.join(listed)}]"]
    config = load_config(
        None,
        [
            "vlm.path=m",
            "dataset.root=d",
            "cache.dir=c",
            f"aspect_definitions={definitions}",
            "aspects=[scene,mood]",
            *chosen,
        ],
    )
    rule = Lacking.of(config, kinds)
    assert rule.unanswered(config.aspects) == unanswered
    for aspect, wanted in lacking.items():
        assert [kind for kind in kinds if rule.lacks(aspect, kind[1])] == wanted


@pytest.fixture(scope="module")
def only_in_test(tmp_path_factory):
    """A cache in which people gave the weather of test images alone, and the scene of some images of both splits."""
    directory = tmp_path_factory.mktemp("only_in_test")

    def add_weather(images: Path) -> None:
        for path in sorted((images / "test").rglob("*.png"))[::2]:
            note = images / "annotation" / path.parent.name / f"{path.stem}.json"
            note.parent.mkdir(parents=True, exist_ok=True)
            found = json.loads(note.read_text()) if note.exists() else {}
            note.write_text(json.dumps({**found, "weather": "fog"}))

    return make_annotated(directory, "aspects=[scene,weather]", num_train=12, num_test=6, prepare=add_weather)


def test_an_aspect_of_test_images_alone_is_asked_about_everywhere(only_in_test):
    config, job = only_in_test, prepare(only_in_test)
    assert _check_dataset(config) == ["weather"]
    planned = make_plan(config).annotate
    assert set(planned.aspects) == {"weather", "scene"}
    asked = [key for lack in job.lacks["weather"] for key in np.array(job.cache.index.keys)[lack.rows].tolist()]
    given = job.cache.answers().columns["weather"].numbers >= 0
    assert 0 < given.sum() < 6 and len(asked) == 18 - given.sum() and sum(k.startswith("train") for k in asked) == 12
    questions = sum(len(lack.rows) for lacks in job.lacks.values() for lack in lacks)
    assert planned.num_questions == questions  # the plan counts what will be asked
    annotate(config)
    assert read_stored(job.directory)["weather"].source is not None
