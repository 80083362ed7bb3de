"""Outputs of the published implementation are reproduced, through the cache; needs the shared folder."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from masp.errors import InputError
from masp.experiments.parity import compare
from tools import check_parity


@pytest.fixture(scope="module")
def tiny_vlm(shared_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity") / "vlm"
    script, tokenizer = shared_dir / "parity" / "make_tiny_vlm.py", shared_dir / "vlm" / "Qwen2-VL"
    subprocess.run([sys.executable, script, folder, "--tokenizer", tokenizer], check=True, capture_output=True)
    return folder


def test_case0_is_reproduced(shared_dir, tiny_vlm):
    command = [sys.executable, "tools/check_parity.py", "--case", shared_dir / "parity" / "case0", "--vlm", tiny_vlm]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["passed"] and result["generated_ids_equal"]
    assert result["num_stage1"] == 30 and result["num_stage2"] == 5
    assert result["stage1_loss"] < 2e-4 and result["soft_prompt_grad_norm"] < 1e-3


def test_the_published_code_drops_transparency(shared_dir, tiny_vlm, tmp_path):
    """The case with its pictures under random transparency, which `convert("RGB")` undoes, as the published code."""
    case = shutil.copytree(shared_dir / "parity" / "case0", tmp_path / "case")
    (case / "images").chmod(0o755)
    random = np.random.default_rng(0)
    for path in sorted((case / "images").iterdir()):
        with Image.open(path) as image:
            picture = image.convert(image.mode)
        mode = {"RGB": "RGBA", "L": "LA"}[picture.mode]
        picture.putalpha(Image.fromarray(random.integers(0, 256, picture.size[::-1], dtype=np.uint8)))
        assert picture.mode == mode
        path.chmod(0o644)
        picture.save(path)
    assert compare(case, str(tiny_vlm)).passed


def test_another_number_is_noticed(shared_dir, tiny_vlm, tmp_path, monkeypatch, capsys):
    case = shutil.copytree(shared_dir / "parity" / "case0", tmp_path / "case")
    case.chmod(0o755)
    (case / "golden.json").chmod(0o644)
    golden = json.loads((case / "golden.json").read_text())
    golden["stage2"][3]["loss"] += 1e-3
    (case / "golden.json").write_text(json.dumps(golden))
    monkeypatch.setattr(sys, "argv", ["check_parity.py", "--case", str(case), "--vlm", str(tiny_vlm)])
    assert check_parity.main() == 1
    assert not json.loads(capsys.readouterr().out)["passed"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda golden: golden["note"].pop("aspects"), "must have a list of aspects as note.aspects"),
        (lambda golden: golden["stage1"][0].update(aspect="smell"), "not for 'smell'"),
        (lambda golden: golden["stage2"][0].update(soft_prompt_grad_norm=0.0), "must be greater than 0"),
        (lambda golden: golden["stage2"][0].update(loss=float("nan")), "must be a finite number"),
        (lambda golden: golden["evaluate"][0].update(generated_ids=["x" * 5000]), "must be a valid integer"),
        (lambda golden: golden.pop("stage1"), "stage1 is missing"),
    ],
)
def test_a_damaged_case_is_one_line(shared_dir, tmp_path, change, problem):
    golden = json.loads((shared_dir / "parity" / "case0" / "golden.json").read_text())
    change(golden)
    (tmp_path / "golden.json").write_text(json.dumps(golden))
    with pytest.raises(InputError, match=problem) as error:
        compare(tmp_path, "no VLM")
    text = str(error.value)
    assert text.startswith(f"--case: {tmp_path}/golden.json: ") and "\n" not in text and len(text) < 600


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", "null"])
def test_a_case_that_is_not_json_is_one_line(tmp_path, text):
    (tmp_path / "golden.json").write_text(text)
    with pytest.raises(InputError, match="golden.json: "):
        compare(tmp_path, "no VLM")
