"""The GPU benchmark runs on the CPU, at a size for which its figures mean nothing."""

import json

import pytest
import torch

from benchmarks.gpu import PARTS, main
from benchmarks.random_vlm import MODELS, draw_part, make_vlm
from benchmarks.sides import Done, Side, measure_sides
from masp.vlm.families import load_config, model_class
from masp.vlm.loading import part_class
from masp.vlm.prompt import load_prompt

SIZES = (
    "--device cpu --scale tiny --images 4 --width 112 --height 84 --batch 2 --micro-batch 2 --evaluation-batch 2 "
    "--product 128 --copied 8 --threads 1 --rounds 1 --seconds 0"
)


def test_every_part_is_measured_beside_the_published_procedure(tmp_path, capsys, monkeypatch, repository):
    monkeypatch.chdir(repository)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    places = ["--dir", tmp_path / "work", "--json", tmp_path / "found.json", "--profile", tmp_path / "traces"]
    assert main([*SIZES.split(), "--models", "qwen2-vl-2b", *map(str, places)]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["limits"]["matmul_tflops"] > 0 and found["limits"]["copy_gb_per_s"] > 0
    parts = found["models"]["qwen2-vl-2b"]
    assert tuple(parts) == PARTS
    for part, sides in parts.items():
        assert set(sides) == {"masp", "published"} | ({"encoder"} if part == "extraction" else set())
        for row in sides.values():
            assert min(row["samples_per_s"], row["tokens_per_s"], row["utilisation_of_product"]) > 0
            assert row["peak_memory_gb"] > 0.1 and row["utilisation_of_data_sheet"] is None
        assert json.loads((tmp_path / "traces" / f"qwen2-vl-2b-{part}-published.json").read_text())["traceEvents"]
    text = capsys.readouterr().out
    assert all(f"qwen2-vl-2b   {part}" in text for part in PARTS) and "times as fast" in text
    assert not list((tmp_path / "work").iterdir())  # it cleans up


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_wrong_tokenizer_is_one_line(tmp_path, capsys):
    assert main([*SIZES.split(), "--tokenizer", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"error: --tokenizer {tmp_path / 'none'}: no such directory\n"


@pytest.mark.full
def test_every_other_model_is_measured(tmp_path, monkeypatch, repository):
    monkeypatch.chdir(repository)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    names = [name for name in MODELS if name != "qwen2-vl-2b"]
    assert main([*SIZES.split(), "--models", ",".join(names), "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())["models"]
    assert list(found) == names
    for name, parts in found.items():
        assert tuple(parts) == PARTS
        for sides in parts.values():
            assert ("published" in sides) == name.startswith(("qwen2-", "qwen2.5-"))
            assert all(row["samples_per_s"] > 0 and row["utilisation_of_product"] > 0 for row in sides.values())


def test_an_unknown_model_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--models", "qwen2-vl-2b,7b"])
    assert "'7b' is not one of qwen2-vl-2b, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "language", "vision"),
    [
        ("qwen2-vl-2b", 1.544, 0.665), ("qwen2-vl-7b", 7.616, 0.676), ("qwen2.5-vl-7b", 7.616, 0.677),
        ("qwen3-vl-8b", 8.191, 0.576), ("internvl3-8b", 7.613, 0.332), ("gemma3-4b", 3.880, 0.420),
    ],
)  # fmt: skip
def test_halves_have_the_real_sizes(tmp_path, model, language, vision):
    """In billions of weights, as published; the meta device holds none of them."""
    folder = str(make_vlm(tmp_path / "vlm", model, None))
    for part, wanted in (("language", language), ("vision", vision)):
        half = draw_part(folder, part, torch.bfloat16, "meta", "sdpa")
        assert sum(p.numel() for p in half.parameters()) / 1e9 == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_a_half_is_drawn_as_transformers_draws_it(tmp_path, model):
    """Its buffers too, which no file of weights would hold, and which a model built without storage lacks."""
    folder = make_vlm(tmp_path / "vlm", model, None, "tiny")
    assert load_prompt(str(folder)).answer("awe")
    config = load_config(folder)
    for part in ("language", "vision"):
        drawn = draw_part(str(folder), part, torch.bfloat16, "cpu", "sdpa")
        torch.manual_seed(0)
        built = part_class(model_class(config), part)._from_config(config, dtype=torch.bfloat16)
        buffers, wanted = (dict(half.named_buffers()) for half in (drawn, built))
        assert buffers.keys() == wanted.keys()
        assert all(torch.equal(buffers[n], wanted[n]) and buffers[n].dtype == wanted[n].dtype for n in wanted)
        built.requires_grad_(False)
        weights, wanted = (dict(half.named_parameters()) for half in (drawn, built))
        assert weights.keys() == wanted.keys()  # tied ones too
        for name, weight in weights.items():
            assert weight.dtype == torch.bfloat16 and weight.isfinite().all()
            if weight.dim() > 1:
                assert float(weight.std()) == pytest.approx(float(wanted[name].std()) or 0.02, rel=0.2)


def test_a_side_that_fails_leaves_the_others(tmp_path):
    def broken():
        raise torch.OutOfMemoryError("CUDA out of memory")

    sides = {"works": lambda: Side(lambda _: Done(2, 4, 1e12, 0.5)), "fails": broken}
    found = measure_sides(sides, "cpu", rounds=2, seconds=0.0, traces=None)
    assert found["fails"] == {"error": "not enough GPU memory"}
    assert found["works"]["samples_per_s"] == 4 and found["works"]["tflops"] == 2
