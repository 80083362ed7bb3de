"""What a report takes from a run's configuration, whoever wrote it."""

from dataclasses import replace
from pathlib import Path

import pytest

from masp.config.schema import DatasetConfig
from masp.report.run_config import RunConfig, find_config


def test_the_first_directory_that_has_one_counts(tmp_path):
    (tmp_path / "b").mkdir()
    assert find_config(tmp_path / "a", tmp_path / "b") == RunConfig()
    text = "dataset: {root: data, name: folder}\nvlm: {path: v, max_side: 100}\ncheckpoint: {aspect: x/a.pth}\n"
    (tmp_path / "b" / "config.yaml").write_text(text)
    assert find_config(tmp_path / "a", tmp_path / "b") == RunConfig(
        text,
        dataset_name="folder",
        dataset_root=Path("data"),
        dataset=DatasetConfig(root="data"),
        vlm="v",
        max_side=100,
        aspect=Path("x/a.pth"),
    )


def test_a_run_without_a_cache(tmp_path):
    (tmp_path / "config.yaml").write_text("cache: {dir: null}\n")
    assert find_config(tmp_path) == RunConfig("cache: {dir: null}\n", has_cache=False)


@pytest.mark.parametrize(
    "text",
    ["a: &a [*a, *a]", "a: [" * 5000, "? [a]\n: 1", "!!python/object:os.system {}", "\t", "a:\nb", "[]", "3", "\ufffe",
     "dataset: 3\nvlm: [1]\nevaluate: null\ncheckpoint: x",
     "dataset: {root: 3, name: [x]}\nvlm: {max_side: 1.5, path: {}}",
     'dataset: {root: "a\\0b"}', "vlm: {max_side: true}", "vlm: {max_side: -1}"],
)  # fmt: skip
def test_what_is_damaged_is_kept_as_text_and_not_used(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    found = find_config(tmp_path)
    assert replace(found, problems=()) == RunConfig(text=text)
    assert all(str(tmp_path / "config.yaml") in line and "\n" not in line for line in found.problems)
    assert found.problems or text == "\ufffe"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("evaluate: {split: tset}", "evaluate.split = 'tset': must be one of train, val, test"),
        ("evaluate: {scoring: Likelihood}", "evaluate.scoring = 'Likelihood': must be one of likelihood, generate"),
        ("stage2: {layout: 3}", "stage2.layout = 3: must be one of after_image, released"),
        ("aspect_definitions: [3]", "aspect_definitions = [3]: must be a non-empty string"),
        ("vlm: {transparency: black}", "vlm.transparency = 'black': must be one of white, drop"),
        ("vlm: {max_side: 0}", "vlm.max_side = 0: must be an integer of at least 1, or null"),
        ("dataset: {name: elsewhere}", "dataset.name = 'elsewhere': must be one of emoset, "),
        ("dataset: {root: '  '}", "dataset.root = '  ': must be a non-empty string"),
        ("dataset: 3", "dataset = 3: must hold 'key: value' lines"),
        ("[1]", "the file = [1]: must hold 'key: value' lines"),
        ("evaluate: {split: test, split: val}", "'evaluate.split' is given twice"),
    ],
)
def test_a_setting_that_no_configuration_may_have_is_named(tmp_path, text, problem):
    (tmp_path / "config.yaml").write_text(text)
    found = find_config(tmp_path)
    assert len(found.problems) == 1 and problem in found.problems[0], found.problems
    assert found.problems[0].startswith(str(tmp_path / "config.yaml"))
    assert replace(found, problems=()) == RunConfig(text=text)
