"""Datasets of the hub: taken from huggingface_hub's cache, or one line."""

import pytest
from PIL import Image

from masp.config import load_aspects
from masp.config.schema import DatasetConfig
from masp.data.datasets import read_dataset
from masp.data.sources.hub import download
from masp.errors import InputError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """huggingface_hub's own cache with one dataset, without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub/datasets--someone--moods"
    snapshot = repository / "snapshots" / ("a" * 40)
    for name in ("train/joy/1.png", "test/fear/2.png"):
        (snapshot / name).parent.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(snapshot / name)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("a" * 40)
    return tmp_path


def test_what_was_downloaded_is_read(hub):
    dataset = read_dataset(DatasetConfig(root="hf://someone/moods"), load_aspects())
    assert [sample.key for sample in dataset.samples] == ["test/fear/2%2Epng", "train/joy/1%2Epng"]
    assert download(f"hf://datasets/someone/moods@{'a' * 40}").name == "a" * 40


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://someone/other", "cannot be downloaded from the hub, and was not before"),
        ("hf://someone", "must be hf://owner/name"),
        ("hf://../../etc", "must be hf://owner/name"),
        ("hf://a/b?x=1", "must be hf://owner/name"),
    ],
)
def test_refused(hub, name, message):
    with pytest.raises(InputError) as error:
        read_dataset(DatasetConfig(root=name), load_aspects())
    assert message in str(error.value) and "\n" not in str(error.value)
