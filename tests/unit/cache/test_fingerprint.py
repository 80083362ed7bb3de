"""Whatever features depend on changes the fingerprint under a name of its own; nothing else does."""

import json
import shutil
import types

import pytest

from masp.cache import fingerprint
from masp.cache.fingerprint import (
    Machine,
    compare,
    differences,
    fingerprint_digest,
    layout_notes,
    model_fields,
    this_machine,
    transparency_of,
    weights_digest,
)
from masp.errors import InputError


@pytest.fixture
def vlm(made, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return shutil.copytree(made[1], tmp_path / "vlm")


def settings(**changes):
    return types.SimpleNamespace(
        **{
            "attention": "sdpa",
            "min_pixels": None,
            "max_pixels": None,
            "max_side": 1024,
            "transparency": "white",
            **changes,
        }
    )


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def names_of_change(before, after):
    before, after = (part.fields if isinstance(part, Machine) else part for part in (before, after))
    return [name for name, _, _ in differences(before, after)]


@pytest.mark.parametrize(
    ("changes", "dtype", "named"),
    [
        ({"attention": "eager"}, "bf16", "attention"),
        ({"min_pixels": 784}, "bf16", "min_pixels"),
        ({"max_pixels": 5000}, "bf16", "max_pixels"),
        ({"max_side": None}, "bf16", "max_side"),
        ({"transparency": "drop"}, "bf16", "transparency"),
        ({}, "fp32", "dtype"),
    ],
)
def test_each_setting_has_a_field(vlm, changes, dtype, named):
    before = model_fields(vlm, settings(), "bf16")
    assert names_of_change(before, model_fields(vlm, settings(**changes), dtype)) == [named]


def test_a_cache_from_before_transparency_was_a_choice_is_white(vlm):
    white, drop = (model_fields(vlm, settings(transparency=value), "bf16") for value in ("white", "drop"))
    assert "transparency" not in white and transparency_of(white) == "white" and transparency_of(drop) == "drop"
    assert differences(white, {**white, "transparency": "white"}) == []
    assert fingerprint_digest(white) != fingerprint_digest(drop)
    with pytest.raises(InputError, match='made with transparency = "white", but here it is "drop"'):
        compare(white, drop, "the cache", "do that")
    with pytest.raises(InputError, match='made with transparency = "drop", but here it is "white"'):
        compare(drop, white, "the cache", "do that")


def test_layout_released_notes_what_the_published_code_does_not_do():
    assert layout_notes("after_image", {}) == layout_notes("released", {"transparency": "drop"}) == []
    (note,) = layout_notes("released", {})
    assert "vlm.transparency = 'white'" in note


def test_each_file_of_the_vlm_that_matters_has_a_field_and_the_tokenizer_has_none(vlm):
    before = model_fields(vlm, settings(), "bf16")

    def changed():
        return names_of_change(before, model_fields(vlm, settings(), "bf16"))

    edit(vlm / "tokenizer_config.json", model_max_length=77)
    (vlm / "chat_template.jinja").write_text("other")
    edit(vlm / "config.json", transformers_version="9.9", use_cache=False)
    assert changed() == []
    edit(vlm / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    assert changed() == ["processor.image_mean"]
    config = json.loads((vlm / "config.json").read_text())
    edit(vlm / "config.json", vision_config={**config["vision_config"], "depth": 3})
    assert changed() == ["config.vision_config.depth", "processor.image_mean"]
    weights = bytearray((vlm / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (vlm / "model.safetensors").write_bytes(weights)
    assert changed()[0] == "weights"


def test_a_limit_equal_to_the_files_own_is_no_change(vlm):
    before = model_fields(vlm, settings(), "bf16")
    assert model_fields(vlm, settings(min_pixels=3136, max_pixels=100352), "bf16") == before
    processor = json.loads((vlm / "preprocessor_config.json").read_text())
    size = {"shortest_edge": processor.pop("min_pixels"), "longest_edge": processor.pop("max_pixels")}
    (vlm / "preprocessor_config.json").write_text(json.dumps({**processor, "size": size}))
    assert model_fields(vlm, settings(), "bf16") == before


def test_each_ingredient_of_the_machine_has_a_field(monkeypatch):
    before = this_machine("cpu (AVX2)", "fp32", 64, 2)
    assert names_of_change(before, this_machine("cuda (X)", "fp32", 64, 2)) == ["device"]
    assert names_of_change(before, this_machine("cpu (AVX2)", "bf16", 64, 2)) == ["encoder_dtype"]
    assert names_of_change(before, this_machine("cpu (AVX2)", "fp32", 65, 2)) == ["batch_tokens"]
    assert names_of_change(before, this_machine("cpu (AVX2)", "fp32", 64, 3)) == ["num_threads"]
    assert names_of_change(before, this_machine("cpu (AVX2)", "fp32", 64, 2, "torchvision")) == ["processor_backend"]
    for package in ("pillow", "transformers", "torch"):
        real = __import__("importlib.metadata").metadata.version
        with monkeypatch.context() as patch:
            patch.setattr("masp.cache.fingerprint.version", lambda n, p=package, r=real: "0.1" if n == p else r(n))
            assert names_of_change(before, this_machine("cpu (AVX2)", "fp32", 64, 2)) == [package]


def test_a_mismatch_names_the_field_and_both_values():
    compare({"a": 1}, {"a": 1}, "it", "do that")
    with pytest.raises(InputError, match=r"it was made with max_side = 1024, but here it is null.*do that"):
        compare({"a": 1, "max_side": 1024}, {"a": 1, "max_side": None}, "it", "do that")
    with pytest.raises(InputError, match=r"a = 1, but here it is 2 \(b, c differ too\)"):
        compare({"a": 1, "b": 1}, {"a": 2, "b": 2, "c": 3}, "it", "do that")
    form = r'= \["caf\\xe9"\], but here it is \["cafe\\u0301"\] \(the same text in another Unicode form\); do that$'
    with pytest.raises(InputError, match=form):
        compare({"categories": ["caf\u00e9"]}, {"categories": ["cafe\u0301"]}, "it", "do that")


def test_digests_of_weights_are_remembered_until_a_file_changes(vlm, monkeypatch):
    calls = []
    real = fingerprint.digest_file
    monkeypatch.setattr(fingerprint, "digest_file", lambda path: calls.append(path) or real(path))
    written = (vlm / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(fingerprint.time, "time_ns", lambda: written + 10**9)  # brand new: not to be remembered
    first = weights_digest(vlm)
    monkeypatch.setattr(fingerprint.time, "time_ns", lambda: 4 * 10**18)
    assert weights_digest(vlm) == first and len(calls) == 2
    assert weights_digest(vlm) == first and len(calls) == 2
    data = (vlm / "model.safetensors").read_bytes()
    (vlm / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert weights_digest(vlm) != first and len(calls) == 3


def test_a_damaged_memo_is_only_a_missing_one(vlm, tmp_path):
    first = weights_digest(vlm)
    memo = tmp_path / "user" / "masp" / "digests.json"
    memo.parent.mkdir(parents=True, exist_ok=True)
    for text in ("[]", "{", '{"x": 3}'):
        memo.write_text(text)
        assert weights_digest(vlm) == first


def test_a_directory_without_weights_is_refused(vlm):
    (vlm / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no \*.safetensors"):
        model_fields(vlm, settings(), "bf16")
