"""`tools/check_family.py`: one JSON line, and the exit code."""

import json
import shutil

import pytest

from tests.tiny import make_vlm
from tools import check_family

KEYS = "family supported reason stock_difference prefix_difference tokens tokens_predicted passed".split()


@pytest.fixture
def check(monkeypatch, capsys):
    def run(vlm):
        monkeypatch.setattr("sys.argv", ["check_family.py", "--vlm", str(vlm)])
        monkeypatch.setattr("masp.runtime.log.setup", lambda: None)
        code = check_family.main()
        (line,) = capsys.readouterr().out.splitlines()
        result = json.loads(line)
        assert list(result) == KEYS
        return code, result

    return run


def test_a_vlm_that_passes(check, tmp_path):
    code, result = check(make_vlm(tmp_path / "vlm"))
    assert code == 0 and result["passed"] and result["supported"] and result["reason"] is None
    assert result["family"] == "qwen2_vl" and result["tokens"] == result["tokens_predicted"] > 1
    assert result["stock_difference"] <= 2e-6 and result["prefix_difference"] <= 1e-5


def test_numbers_that_differ(check, tmp_path, monkeypatch):
    monkeypatch.setattr("masp.vlm.language.LanguageHalf._final", lambda self, logits: logits + 1)
    code, result = check(make_vlm(tmp_path / "vlm"))
    assert code == 1 and result["supported"] and not result["passed"] and "differ" in result["reason"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda vlm: shutil.rmtree(vlm), "is not a directory"),
        (lambda vlm: (vlm / "config.json").unlink(), "has no config.json"),
        (lambda vlm: (vlm / "model.safetensors").unlink(), "holds no *.safetensors weights"),
        (lambda vlm: (vlm / "preprocessor_config.json").unlink(), "image processor"),
        (lambda vlm: (vlm / "chat_template.jinja").unlink(), "has no chat template"),
        (lambda vlm: (vlm / "tokenizer.json").write_text("{"), "tokenizer.json"),
        (lambda vlm: change(vlm, "model_type", "mllama"), "through cross-attention"),
        (lambda vlm: change(vlm, "image_token_id", 7), "image"),
    ],
)
def test_a_directory_with_a_missing_or_a_wrong_part(check, tmp_path, damage, reason):
    vlm = make_vlm(tmp_path / "vlm")
    damage(vlm)
    code, result = check(vlm)
    assert code == 2 and not result["supported"] and not result["passed"]
    assert reason in result["reason"] and "\n" not in result["reason"] and str(tmp_path) in result["reason"]


def change(vlm, key, value):
    path = vlm / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
