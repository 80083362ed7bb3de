"""Features that are not finite are noticed where the encoder makes them: live evaluation and prediction name the image.

The VLMs are real, with weights that are damaged, or too large for the number format.
"""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from masp.cli.main import main
from tests.runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Directory of a run that was never extracted."""
    directory = tmp_path_factory.mktemp("run")
    make_run(directory, 2, 3)
    return directory


def damaged(run, tmp_path, factor: float):
    """A copy of the VLM, the last bias and weight of whose vision half are multiplied."""
    shutil.copytree(run / "vlm", tmp_path / "vlm")
    path = tmp_path / "vlm" / "model.safetensors"
    tensors = load_file(path)
    for name in ("weight", "bias"):
        (found,) = (key for key in tensors if key.endswith(f"merger.mlp.2.{name}"))
        tensors[found] = tensors[found] * factor
    save_file(tensors, path, metadata={"format": "pt"})
    return tmp_path / "vlm"


def refused(argv, capsys) -> str:
    code = main(argv)
    captured = capsys.readouterr()
    (line,) = [text for text in captured.err.splitlines() if text.startswith("error: ")]
    assert code == 3 and "nan" not in captured.out.lower()
    return line


@pytest.mark.parametrize(
    ("factor", "dtype", "what"),
    [
        (float("nan"), "fp32", "are not finite in fp32; the weights of vlm.path are damaged"),
        (1e7, "fp16", "are not finite in fp16; the weights of vlm.path are damaged, or fp16 cannot hold them: try"),
        (float("inf"), "int8", "are not finite in int8"),
        (float("nan"), "fp8", "are not finite in fp8"),
    ],
)
def test_live_features(run, tmp_path, capsys, factor, dtype, what):
    vlm = damaged(run, tmp_path, factor)
    settings = [
        f"vlm.path={vlm}",
        f"cache.dtype={dtype}",
        "checkpoint.aspect=none",
        "checkpoint.soft_prompt=none",
        f"output_dir={tmp_path / 'out'}",
    ]
    config = ["--config", str(run / "config.yaml")]
    image = next((run / "pictures" / "test").rglob("*.*"))

    line = refused(["evaluate", *config, *settings, "evaluate.source=live"], capsys)
    first = sorted((run / "pictures" / "test").rglob("*.*"), key=lambda path: path.name)[0]
    assert line.startswith(f"error: {first}: the features {what}")
    (ledger,) = (tmp_path / "out").rglob("rank-0.jsonl")
    assert len(ledger.read_text().splitlines()) == 1  # its header
    (status,) = (tmp_path / "out").rglob("status.json")
    assert json.loads(status.read_text())["exit_code"] == 3

    assert refused(
        ["predict", *config, str(image), "--json", *settings, "dataset.categories=[anger,awe,joy]"], capsys
    ).startswith(f"error: {image}: the features {what}")


def test_extraction(run, tmp_path, capsys):
    """Numbers that the encoder's format holds and the cache's does not are no different."""
    vlm = damaged(run, tmp_path, 1e7)
    settings = [f"vlm.path={vlm}", f"cache.dir={tmp_path / 'cache'}", "cache.dtype=fp16"]
    line = refused(["extract", "--config", str(run / "config.yaml"), *settings], capsys)
    assert "the features of sample " in line and "are not finite in fp16" in line
    assert not list((tmp_path / "cache" / "shards").glob("*.tar"))
