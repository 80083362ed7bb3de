"""Artefacts: what is written is what is read, in both formats; files of strangers and misfits are refused by name."""

import json
import os
import pickle
import random
import subprocess
import sys
from dataclasses import replace
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from masp.artifacts.released_format import TOKEN
from masp.artifacts.store import (
    Lineage,
    TargetLineage,
    aspect_digest,
    load_aspects,
    load_soft_prompt,
    safe_name,
    save_aspects,
    save_soft_prompt,
)
from masp.artifacts.trained import check_lineage, check_target, load_trained, quantization_notes
from masp.config import load_config
from masp.errors import DataError, InputError, MaspError
from masp.models.trainable import AspectModules, SoftPrompt

ASPECTS, HIDDEN = ("scene", "object"), 8
MODEL = {"format_version": 1, "weights": "abc", "config.hidden_size": HIDDEN}


@pytest.fixture
def modules():
    torch.manual_seed(0)
    return AspectModules(ASPECTS, HIDDEN, num_queries=3)


@pytest.fixture
def aspect_path(modules, tmp_path):
    lineage = Lineage(
        "aspect", "trained", aspects=ASPECTS, model=MODEL, categories=("awe", "fear"), layout="after_image"
    )
    return save_aspects(modules, tmp_path, lineage)


@pytest.fixture
def soft_path(modules, tmp_path):
    torch.manual_seed(1)
    lineage = Lineage(
        "soft_prompt",
        "trained",
        aspects=ASPECTS,
        aspect_digest=aspect_digest(modules),
        model=MODEL,
        dataset=safe_name("my set/2"),
        layout="after_image",
        settings={"seed": 3},
    )
    return save_soft_prompt(SoftPrompt(torch.randn(4, HIDDEN)), tmp_path, lineage)


def same(one, other) -> bool:
    theirs = dict(other.named_parameters())
    return all(torch.equal(p, theirs[name]) for name, p in one.named_parameters())


def test_aspect_modules_in_both_formats(modules, aspect_path):
    own, lineage = load_aspects(str(aspect_path), ASPECTS, HIDDEN)
    assert same(own, modules)
    assert (lineage.origin, lineage.model, lineage.categories) == ("trained", MODEL, ("awe", "fear"))
    imported, released = load_aspects(str(aspect_path.with_suffix(".pth")), ASPECTS, HIDDEN)
    assert same(imported, modules)
    assert (released.origin, released.model) == ("imported", None)
    assert released.digest == lineage.digest == aspect_digest(modules)


def test_soft_prompt_in_both_formats(soft_path):
    assert soft_path.name == "soft_prompt_my-set-2.safetensors"
    own, lineage = load_soft_prompt(str(soft_path), HIDDEN)
    assert (lineage.origin, lineage.layout, lineage.settings) == ("trained", "after_image", {"seed": 3})
    imported, released = load_soft_prompt(str(soft_path.with_suffix(".pt")), HIDDEN)
    assert torch.equal(own.weight, imported.weight) and imported.weight.shape == (4, HIDDEN)
    assert (released.origin, released.layout, released.digest) == ("imported", None, lineage.digest)


def test_a_soft_prompt_of_another_target_says_so_and_has_a_name_of_its_own(modules, soft_path, tmp_path):
    _, lineage = load_soft_prompt(str(soft_path), HIDDEN)
    assert lineage.target is None and lineage.target_name == "emotion"
    with safe_open(soft_path, "pt") as file:  # as it was before there was a choice
        assert "target" not in json.loads(file.metadata()["masp"])
    target = TargetLineage("season", "1" * 64, "2" * 64, "table seasons.csv")
    path = save_soft_prompt(SoftPrompt(torch.randn(4, HIDDEN)), tmp_path, replace(lineage, target=target))
    assert path.name == "soft_prompt_my-set-2_season.safetensors" and path.with_suffix(".pt").is_file()
    _, found = load_soft_prompt(str(path), HIDDEN)
    assert found.target == target and found.target_name == "season"
    assert found.to_json()["target"] == vars(target) and "target" not in lineage.to_json()
    check_target(found, "p", "season")
    check_target(lineage, "p", "emotion")
    check_target(load_soft_prompt(str(path.with_suffix(".pt")), HIDDEN)[1], "p", "emotion")  # it does not say
    with pytest.raises(InputError, match="p was trained for target season, but target.name = emotion; give the same"):
        check_target(found, "p", "emotion")
    with pytest.raises(InputError, match="p was trained for target emotion, but target.name = season; give the same"):
        check_target(lineage, "p", "season")


def test_a_choice_of_aspects_in_another_order(modules, aspect_path):
    for path in (aspect_path, aspect_path.with_suffix(".pth")):
        chosen, _ = load_aspects(str(path), ["object"], HIDDEN)
        assert chosen.aspects == ("object",)
        turned, lineage = load_aspects(str(path), ["object", "scene"], HIDDEN)
        assert turned.aspects == ("object", "scene") and lineage.digest == aspect_digest(modules)
        assert torch.equal(turned.by_aspect["scene"].query, modules.by_aspect["scene"].query)
        with pytest.raises(InputError, match="holds no aspect 'brightness'; it has object, scene, so give aspects="):
            load_aspects(str(path), ["scene", "brightness"], HIDDEN)


def test_rows_that_are_views_into_a_whole_embedding_table_are_cloned(tmp_path):
    table = torch.randn(5000, HIDDEN)
    torch.save({TOKEN.format(i): table[100 + i] for i in range(32)}, tmp_path / "released.pt")
    assert (tmp_path / "released.pt").stat().st_size > table.nbytes  # as released: the table is in the file
    soft_prompt, _ = load_soft_prompt(str(tmp_path / "released.pt"), HIDDEN)
    assert torch.equal(soft_prompt.weight, table[100:132])
    assert soft_prompt.weight.untyped_storage().nbytes() == 32 * HIDDEN * 4


class Payload:
    """Unpickled, it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("load", [lambda p: load_aspects(p, ASPECTS, HIDDEN), lambda p: load_soft_prompt(p, HIDDEN)])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, load, zipped):
    path, mark = tmp_path / "evil.pth", tmp_path / "it ran"
    content = {"q_view": Payload(mark), "cross_attn": {}, "fuser": None}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="evil.pth is (refused|not a checkpoint)") as error:
        load(str(path))
    assert not mark.exists() and "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)  # torch's own text explains how to run it all the same


def released(modules) -> dict:
    from masp.models.trainable import to_released

    return to_released(modules)


def put(content: dict, *keys: str, value: object) -> None:
    for key in keys[:-1]:
        content = content[key]
    content[keys[-1]] = value


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("q_view",), {}, "needs q_view and cross_attn"),
        (("cross_attn", "scene"), None, r"cross_attn\['scene'\] must hold"),
        (("fuser",), torch.zeros(2), "has a fuser"),
        (("q_view", "scene"), torch.zeros(3, HIDDEN - 1), "vectors of 7 numbers, but the VLM's hidden size is 8"),
        (("q_view", "scene"), torch.zeros(3), "'scene' has no queries"),
        (("q_view", "scene"), "three", "'scene' has no queries"),
        (
            ("q_view", "scene"),
            torch.zeros(1).expand(10**9, HIDDEN),
            r"a tensor \[1000000000, 8\] .* claims",
        ),
        (("q_view", "object"), torch.zeros(4, HIDDEN), "has another number of queries"),
        (("q_view", "scene"), torch.full((3, HIDDEN), float("nan")), "scene.query: holds numbers that are not finite"),
        (("q_view", "scene"), torch.zeros(3, HIDDEN, dtype=torch.long), "scene.query: must be a float tensor"),
        (
            ("q_view", "scene"),
            torch.zeros(3, HIDDEN).to_sparse(),
            "_rebuild_sparse_tensor', which no dense",
        ),
        (("cross_attn", "object", "in_proj_weight"), torch.zeros(3, 3), r"in_proj_weight: must be .*\[24, 8\], is \[3"),
        (("cross_attn", "object", "extra"), torch.zeros(1), r"cross_attn\['object'\] must hold"),
    ],
)
def test_what_is_wrong_with_released_aspect_modules_is_named(modules, tmp_path, keys, value, message):
    content = released(modules)
    put(content, *keys, value=value)
    torch.save(content, tmp_path / "aspect.pth")
    with pytest.raises(InputError, match=message) as error:
        load_aspects(str(tmp_path / "aspect.pth"), ASPECTS, HIDDEN)
    assert str(error.value).startswith("checkpoint.aspect: ") and "aspect.pth" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "is not a soft prompt"),
        ([torch.zeros(HIDDEN)], "is not a soft prompt"),
        ({"weight": torch.zeros(4, HIDDEN)}, "is not a soft prompt"),
        ({TOKEN.format(1): torch.zeros(HIDDEN)}, "is not a soft prompt"),
        ({TOKEN.format(0): torch.zeros(HIDDEN + 1)}, "vectors of 9 numbers, but the VLM's hidden size is 8"),
        ({TOKEN.format(0): torch.zeros(HIDDEN), TOKEN.format(1): torch.zeros(3)}, r"must be .*\[8\], is \[3\]"),
        ({TOKEN.format(0): torch.full((HIDDEN,), float("inf"))}, "not finite"),
        ({TOKEN.format(0): torch.full((HIDDEN,), 1e300, dtype=torch.float64)}, "not finite in fp32"),
    ],
)
def test_what_is_wrong_with_a_released_soft_prompt_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "s.pt")
    with pytest.raises(InputError, match=message):
        load_soft_prompt(str(tmp_path / "s.pt"), HIDDEN)


def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path):
    """A few kilobytes can claim gigabytes of zeros."""
    torch.save({TOKEN.format(0): torch.zeros(HIDDEN)}, tmp_path / "plain.pt")
    with ZipFile(tmp_path / "plain.pt") as plain, ZipFile(tmp_path / "small.pt", "w", ZIP_DEFLATED) as small:
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    assert load_soft_prompt(str(tmp_path / "plain.pt"), HIDDEN)
    with pytest.raises(InputError, match="checkpoint.soft_prompt: .*small.pt is refused: '.*' in it is compressed"):
        load_soft_prompt(str(tmp_path / "small.pt"), HIDDEN)


def test_neither_the_time_nor_the_process_changes_a_released_file(modules, aspect_path, tmp_path):
    """Of our own files alike: nothing but the tensors is in them."""
    before = aspect_path.with_suffix(".pth").read_bytes()
    code = f"""
import torch
from pathlib import Path
from masp.artifacts.store import Lineage, load_aspects, save_aspects
modules, lineage = load_aspects({str(aspect_path)!r}, {ASPECTS!r}, {HIDDEN})
save_aspects(modules, Path({str(tmp_path)!r}), lineage)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert aspect_path.with_suffix(".pth").read_bytes() == before


def test_files_that_are_something_else(aspect_path, soft_path, tmp_path):
    words = tmp_path / "words.pth"
    words.write_text("no checkpoint")
    with pytest.raises(InputError, match="words.pth is (refused|not a checkpoint)"):
        load_aspects(str(words), ASPECTS, HIDDEN)
    with pytest.raises(InputError, match="checkpoint.aspect: .*/none is not a file"):
        load_aspects(str(tmp_path / "none"), ASPECTS, HIDDEN)
    with pytest.raises(InputError, match="holds 'soft_prompt', not 'aspect'"):
        load_aspects(str(soft_path), ASPECTS, HIDDEN)
    plain = tmp_path / "plain.safetensors"
    save_file({"weight": torch.zeros(4, HIDDEN)}, plain)
    with pytest.raises(InputError, match="its header holds no lineage"):
        load_soft_prompt(str(plain), HIDDEN)


TRAINED = {"version": 1, "kind": "soft_prompt", "origin": "trained"}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("[]", r"lineage: \[\]: must be an object"),
        ("{", "lineage: not valid JSON"),
        ("[" * 100_000, "lineage: not valid JSON"),
        ({}, "lineage: kind is missing"),
        (TRAINED | {"aspects": 3}, "lineage: aspects = 3: must be "),
        (TRAINED | {"layout": "x"}, "lineage: layout = 'x': must be 'after_image' or 'released'"),
        (TRAINED | {"origin": "found"}, "lineage: origin = 'found': must be 'trained' or 'imported'"),
        (TRAINED | {"version": 2}, "lineage: version = 2: must be 1"),
        (TRAINED | {"model": {"weights": float("nan")}}, "lineage: "),
        (TRAINED | {"colour": "red"}, "lineage: colour: unknown key; valid keys: kind, origin, "),
    ],
)
def test_an_odd_lineage_is_refused_by_key_and_value(tmp_path, header, message):
    path = tmp_path / "odd.safetensors"
    text = header if isinstance(header, str) else json.dumps(header)
    save_file({"weight": torch.zeros(4, HIDDEN)}, path, metadata={"masp": text})
    with pytest.raises(InputError, match=f"checkpoint.soft_prompt: {path}: {message}") as error:
        load_soft_prompt(str(path), HIDDEN)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_a_damaged_file_of_our_own(aspect_path, soft_path):
    whole = soft_path.read_bytes()
    for cut in (0, 5, len(whole) // 2, len(whole) - 1):
        soft_path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="checkpoint.soft_prompt: .* is damaged"):
            load_soft_prompt(str(soft_path), HIDDEN)
    soft_path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(DataError, match="its tensors do not match its digest"):
        load_soft_prompt(str(soft_path), HIDDEN)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_no_byte_that_is_changed_brings_a_traceback(aspect_path, tmp_path, suffix):
    whole, draw = aspect_path.with_suffix(suffix).read_bytes(), random.Random(0)
    path = tmp_path / f"changed{suffix}"
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(min(len(data), 2000))] = draw.randrange(256)
        path.write_bytes(data[: draw.choice([len(data), draw.randrange(len(data))])])
        try:
            load_aspects(str(path), ASPECTS, HIDDEN)
        except MaspError as error:
            assert str(error).startswith("checkpoint.aspect: ")


def test_misfits_are_refused_by_name(modules, aspect_path, soft_path):
    _, aspect = load_aspects(str(aspect_path), ASPECTS, HIDDEN)
    _, soft = load_soft_prompt(str(soft_path), HIDDEN)
    check_lineage(aspect, "checkpoint.aspect", "a", MODEL)
    check_lineage(soft, "checkpoint.soft_prompt", "s", MODEL, aspect)
    with pytest.raises(
        InputError, match="^checkpoint.aspect: a was trained with weights = 'abc', but here it is 'def'"
    ):
        check_lineage(aspect, "checkpoint.aspect", "a", MODEL | {"weights": "def"})
    other = replace(aspect, digest="0123456789abcdef")
    with pytest.raises(
        InputError, match=r"trained with aspect modules [0-9a-f]{12} \(scene, object\), but .* 0123456789"
    ):
        check_lineage(soft, "checkpoint.soft_prompt", "s", MODEL, other)
    with pytest.raises(InputError, match=r"s was trained without aspect modules, .*; give checkpoint.aspect=none$"):
        check_lineage(replace(soft, aspect_digest=None, aspects=()), "checkpoint.soft_prompt", "s", MODEL, aspect)
    with pytest.raises(InputError, match="but here they are none"):
        check_lineage(soft, "checkpoint.soft_prompt", "s", MODEL, None)
    imported = replace(soft, origin="imported", model=None, aspect_digest=None)
    check_lineage(imported, "checkpoint.soft_prompt", "s", MODEL, other)


def test_a_soft_prompt_says_which_aspect_modules_a_run_lacks(soft_path, tmp_path, modules):
    def refused(*overrides) -> str:
        given = [f"output_dir={tmp_path / 'run'}", "aspects=[scene, object]", "dataset.name=folder", *overrides]
        config = load_config("configs/demo.yaml", given)
        with pytest.raises(InputError) as error:
            load_trained(config, HIDDEN, MODEL)
        return str(error.value)

    lacking = f"checkpoint.aspect: {tmp_path}/run/stage1/aspect.safetensors does not exist"
    assert refused().startswith(f"{lacking}; run `masp train --stage stage1`")
    digest = aspect_digest(modules)[:12]
    expected = f"{lacking}, and {soft_path} was trained with aspect modules {digest} of another run; "
    assert refused(f"checkpoint.soft_prompt={soft_path}") == expected + "give checkpoint.aspect=FILE"
    (tmp_path / "run" / "stage2").mkdir(parents=True)
    own = save_soft_prompt(
        SoftPrompt(torch.zeros(4, HIDDEN)),
        tmp_path / "run" / "stage2",
        Lineage("soft_prompt", "trained", model=MODEL, dataset="folder", layout="after_image", settings={}),
    )
    assert refused() == f"{lacking}, and {own} was trained without aspect modules; give checkpoint.aspect=none"


def test_another_quantization_than_in_training_is_said():
    aspect = Lineage("aspect", "trained")
    soft_prompt = Lineage("soft_prompt", "trained", settings={"vlm.quantization": "int4"})
    assert quantization_notes("none", [aspect, None]) == quantization_notes("int4", [soft_prompt]) == []
    assert quantization_notes("int8", [Lineage("aspect", "imported")]) == []  # nobody knows
    assert quantization_notes("int8", [aspect, soft_prompt]) == [
        "the aspect modules were trained with vlm.quantization=none, and it is int8 here",
        "the soft prompt was trained with vlm.quantization=int4, and it is int8 here",
    ]
    odd = Lineage("soft_prompt", "trained", settings={"vlm.quantization": ["x" * 10_000]})
    assert len(quantization_notes("none", [odd])[0]) < 300


def test_the_header_is_readable_without_us(soft_path):
    from safetensors import safe_open

    with safe_open(soft_path, "pt") as file:
        header = json.loads(file.metadata()["masp"])
    assert header["kind"] == "soft_prompt" and header["layout"] == "after_image" and len(header["digest"]) == 64
    assert load_file(soft_path)["weight"].dtype == torch.float32


@pytest.mark.parametrize("claimed", [1 << 63, (1 << 64) - 1, 17 << 20, 1000, 1])
def test_a_header_that_claims_too_much_is_refused_before_it_is_parsed(claimed, tmp_path):
    path = tmp_path / "aspect.safetensors"
    with open(path, "wb") as file:
        file.write(claimed.to_bytes(8, "little") + b"{")
        if claimed == 17 << 20:
            file.truncate(18 << 20)  # it is all there
    with pytest.raises(DataError, match="is damaged: (its header claims|)"):
        load_aspects(str(path), ["scene"], 4)
