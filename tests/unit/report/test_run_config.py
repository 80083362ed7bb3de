"""What a report takes from a run's configuration, whoever wrote it."""

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


@pytest.mark.parametrize(
    "text",
    ["a: &a [*a, *a]", "a: [" * 5000, "? [a]\n: 1", "!!python/object:os.system {}", "\t", "a:\nb", "[]", "3", "\ufffe",
     "dataset: 3\nvlm: [1]\nevaluate: null\ncheckpoint: x",
     "dataset: {root: 3, name: [x]}\nvlm: {max_side: 1.5, path: {}}",
     'dataset: {root: "a\\0b"}', "vlm: {max_side: true}", "vlm: {max_side: -1}"],
)  # fmt: skip
def test_what_is_damaged_is_kept_as_text_and_not_used(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    assert find_config(tmp_path) == RunConfig(text=text)
