"""Exported models of strangers, from a directory and from the hub: nothing but what was asked for is read or set."""

import hashlib
import json
import os
import shutil

import pytest
import torch
from huggingface_hub import constants

import masp
from masp.artifacts import export_format
from masp.artifacts.export_format import ExportRecord, is_exported, read_record
from masp.artifacts.exported import SETTINGS, artifact_file, exported_settings, open_exported
from masp.artifacts.model_hub import fetch, parse_address
from masp.config import load_config
from masp.errors import DataError, InputError, MaspError
from masp.files.sealed import sealed, unseal_object
from masp.inference.sharing.push import push
from masp.inference.source import config_of


@pytest.fixture
def copy(shared_model, tmp_path):
    return shutil.copytree(shared_model, tmp_path / "copy")


def resealed(directory, **changes):
    """As whoever made it would: `lineage.json` lists the files as they are now."""
    record = unseal_object((directory / "lineage.json").read_bytes(), "")
    for name in record["files"]:
        if (directory / name).is_file():
            data = (directory / name).read_bytes()
            record["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (directory / "lineage.json").write_bytes(sealed(record | changes))
    return directory


def with_settings(directory, change):
    tree = json.loads((directory / "config.json").read_text())
    change(tree)
    (directory / "config.json").write_text(json.dumps(tree))
    return resealed(directory)


def refused(directory, kind=InputError, **given):
    """The error of loading it, in one line."""
    with pytest.raises(kind) as caught:
        config_of(directory, **given)
    message = str(caught.value)
    assert type(caught.value) is kind and "\n" not in message and len(message) < 1500, message
    return message


def test_it_loads_and_its_settings_are_those_that_are_listed(shared_model, shared_vlm, shared_run):
    found = exported_settings(open_exported(str(shared_model), ""))
    assert set(found) <= set(SETTINGS) and found["vlm.path"] == "hf://owner/vlm"
    assert set(SETTINGS) - set(found) == {"target.categories"}
    config = config_of(shared_model, device="cpu", vlm=shared_vlm)
    assert (config.vlm.path, config.extract.device, config.cache.dir) == (shared_vlm, "cpu", None)
    model = masp.load(shared_model, device="cpu", vlm=shared_vlm)
    theirs = masp.load(shared_run, device="cpu")
    assert torch.equal(model.trained.soft_prompt.weight, theirs.trained.soft_prompt.weight)
    assert (
        (model.categories, model.aspects)
        == (theirs.categories, theirs.aspects)
        == (("awe", "fear"), ("object", "scene"))
    )


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (None, "output_dir", "/etc"),
        (None, "seed", 1),
        (None, "base", "/etc/passwd"),
        (None, "vlm.path", "/etc"),
        ("vlm", "path.x", 1),
        ("dataset", "root", "/etc"),
        ("target", "labels", "/etc/passwd"),
        ("evaluate", "output_dir", "/etc"),
        ("engine", "device", "cuda"),
        ("extract", "num_workers", 512),
        ("checkpoint", "trust_remote_code", True),
    ],
)
def test_other_settings_are_refused(copy, section, key, value):
    with_settings(copy, lambda tree: (tree if section is None else tree.setdefault(section, {})).update({key: value}))
    name = key if section is None else f"{section}.{key}"
    assert f"config.json: '{name}' is not a setting of inference; it may set questions, " in refused(copy)


@pytest.mark.parametrize("value", ["/etc/passwd", "../copy/questions.yaml", "", None, 7, ["questions.yaml"]])
@pytest.mark.parametrize("name", ["questions", "aspect_definitions", "checkpoint.aspect", "checkpoint.soft_prompt"])
def test_paths_are_those_of_the_model_itself(copy, name, value):
    section, _, key = name.rpartition(".")
    with_settings(copy, lambda tree: (tree[section] if section else tree).update({key: value}))
    assert f"config.json: {name} = " in refused(copy) and "as the files beside it are called" in refused(copy)


@pytest.mark.parametrize(
    "value", ["/etc", "../vlm", "owner/vlm", "hf://owner/../x", "hf://a/b@../../c", "~/vlm", 3, {"a": 1}]
)
def test_the_vlm_is_one_of_the_hub(copy, value):
    with_settings(copy, lambda tree: tree["vlm"].update(path=value))
    assert "vlm.path" in refused(copy) and "must be hf://owner/name" in refused(copy)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("cache", "dir", "/etc"), ("cache", "dtype", "fp4"), ("extract", "num_threads", 10**9), ("vlm", "max_side", -1),
     ("dataset", "categories", "x"), ("engine", "precision", ["fp32"]), ("dataset", "name", "../x")],
)  # fmt: skip
def test_values_are_checked_as_in_any_configuration(copy, section, key, value, shared_vlm):
    with_settings(copy, lambda tree: tree[section].update({key: value}))
    assert f"{section}.{key} = " in refused(copy, vlm=shared_vlm)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"7", b"{", b'{"a": 1, "a": 2}', b"a: &a [1]\nb: *a\n", b"\xff\xfe", b"[" * 90_000]
)
def test_settings_are_json(copy, content):
    (copy / "config.json").write_bytes(content)
    assert "config.json: " in refused(resealed(copy))


@pytest.mark.parametrize("name", ["questions.yaml", "aspects.yaml"])
def test_bombs_of_aliases_and_tags_are_refused(copy, name, shared_vlm):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (copy / name).write_text("\n".join(lines))
    with pytest.raises(InputError, match="more than 20000 values"):
        masp.load(resealed(copy), device="cpu", vlm=shared_vlm)
    (copy / name).write_text("emotion: !!python/object/apply:os.system ['touch /tmp/owned']\n")
    with pytest.raises(InputError, match="tags are not used here"):
        masp.load(resealed(copy), device="cpu", vlm=shared_vlm)


def test_links_out_of_the_directory_are_not_followed(copy, shared_model, tmp_path):
    for name in ("config.json", "questions.yaml", "aspect.safetensors", "lineage.json"):
        copied = shutil.copytree(shared_model, tmp_path / f"with {name}")
        (copied / name).unlink()
        (copied / name).symlink_to(shared_model / name)
        assert f"{name} is a link to another place" in refused(copied)
    blobs = tmp_path / "x" / "blobs"
    blobs.mkdir(parents=True)
    snapshot = tmp_path / "x" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in copy.iterdir():  # as the hub's cache keeps it
        shutil.move(path, blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert exported_settings(open_exported(str(snapshot), ""))["dataset.name"] == "folder"
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../../x/blobs/../../copy")
    assert "config.json is a link to another place" in refused(snapshot)


def test_files_that_are_damaged_missing_or_something_else(copy, shared_model, tmp_path):
    for name in ("aspect.safetensors", "soft_prompt.safetensors", "config.json", "questions.yaml", "aspects.yaml"):
        data = (shared_model / name).read_bytes()
        (copy / name).write_bytes(data[:-9])
        assert f"{name} has {len(data) - 9:,} bytes, but lineage.json says {len(data):,}" in refused(copy, DataError)
        (copy / name).write_bytes(data[:-9] + bytes(9))
        assert f"{name} does not match its digest in lineage.json" in refused(copy, DataError)
        (copy / name).unlink()
        assert f"{name} is missing, which lineage.json lists" in refused(copy, DataError)
        os.mkfifo(copy / name)
        assert f"{name} cannot be read: not a regular file" in refused(copy)
        (copy / name).unlink()
        (copy / name).write_bytes(data)
    (copy / "metrics.json").write_text("{}")
    assert "metrics.json is not listed in lineage.json: somebody added it" in refused(copy)
    (copy / "metrics.json").unlink()
    for name in ("soft_prompt.pt", "aspect.pth", "pytorch_model.bin"):  # not looked at
        (copy / name).write_bytes(b"\x80\x04cos\nsystem\n")
    assert exported_settings(open_exported(str(copy), ""))
    data = (copy / "lineage.json").read_bytes()
    (copy / "lineage.json").write_bytes(data.replace(b'"masp": "', b'"masp": "1'))
    assert "lineage.json is damaged" in refused(copy, DataError)
    (copy / "lineage.json").unlink()
    assert is_exported(copy) and "it has no lineage.json, so `masp export` did not write it" in refused(copy)


def test_truncated_safetensors_with_the_right_digest(copy, shared_vlm):
    for name in ("aspect.safetensors", "soft_prompt.safetensors"):
        data = (copy / name).read_bytes()
        for bad in (data[:100], data[:-4], b"", (1 << 60).to_bytes(8, "little") + data[8:]):
            (copy / name).write_bytes(bad)
            with pytest.raises(DataError, match="is damaged"):
                masp.load(resealed(copy), device="cpu", vlm=shared_vlm)
        (copy / name).write_bytes(data)


def test_what_is_too_large_is_not_read(copy):
    with open(copy / "soft_prompt.safetensors", "wb") as file:
        file.truncate((1 << 30) + 1)
    record = unseal_object((copy / "lineage.json").read_bytes(), "")
    record["files"]["soft_prompt.safetensors"]["bytes"] = (1 << 30) + 1
    (copy / "lineage.json").write_bytes(sealed(record))
    assert "soft_prompt.safetensors has 1,073,741,825 bytes; must be at most 1,073,741,824" in refused(copy)
    record["files"]["soft_prompt.safetensors"]["bytes"] = 5
    (copy / "lineage.json").write_bytes(sealed(record))
    assert "1,073,741,825 bytes; must be at most" in refused(copy)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "README.md", "lineage.json", "x.pt"])
def test_a_record_lists_the_known_names_alone(copy, name):
    record = unseal_object((copy / "lineage.json").read_bytes(), "")
    record["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    (copy / "lineage.json").write_bytes(sealed(record))
    assert "must list files of an exported model only" in refused(copy, DataError)


def test_parts_do_not_fit_others(copy, shared_model, shared_run, shared_vlm, tmp_path):
    """Aspect modules of another model, whole and with a valid list, are refused by the digest in the soft prompt."""
    from masp.artifacts.store import Lineage, save_aspects
    from masp.models.trainable import AspectModules

    torch.manual_seed(1)
    header = masp.load(shared_run, device="cpu").trained.aspect_lineage
    save_aspects(AspectModules(("object", "scene"), 32, 2), tmp_path, Lineage(**{**vars(header), "digest": ""}))
    shutil.copy(tmp_path / "aspect.safetensors", copy / "aspect.safetensors")
    with pytest.raises(InputError, match="soft_prompt.safetensors was trained with aspect modules"):
        masp.load(resealed(copy), device="cpu", vlm=shared_vlm)


def test_an_artifact_of_a_directory(shared_model, tmp_path):
    key = "checkpoint.aspect"
    assert artifact_file(str(shared_model), "aspect", key) == str(shared_model / "aspect.safetensors")
    assert artifact_file("nowhere/x.pth", "aspect", key) == "nowhere/x.pth"
    with pytest.raises(InputError, match="checkpoint.aspect: .* it has no lineage.json"):
        artifact_file(str(tmp_path), "aspect", key)


@pytest.mark.parametrize(
    "address",
    ["hf://", "hf://owner", "hf://a/b/c", "hf://../x", "hf://a/..", "hf://a/b@../../x", "hf://a/b@x/../y", "hf://a/b@", "hf://a--b/c",
     "hf://a/b.git", "hf://a/b\n"],
)  # fmt: skip
def test_addresses(address):
    with pytest.raises(InputError, match="must be hf://owner/name|not a valid name of a repository"):
        parse_address(address, "checkpoint.aspect")
    assert parse_address("hf://a/b@refs/pr/1", "") == ("a/b", "refs/pr/1") and parse_address("a/b", "") == ("a/b", None)


def test_only_named_files_are_fetched_from_the_hub(hub, copy, tmp_path):
    for name in ("soft_prompt.pt", "model.bin", "code.py", "more.yaml"):
        (copy / name).write_bytes(b"\x80\x04")
    push(copy, "owner/clean")
    repository = hub.repositories["models/owner/clean"]
    assert not {"soft_prompt.pt", "code.py"} & set(repository.files())
    repository.commit({**repository.files(), **dict.fromkeys(("soft_prompt.pt", "code.py"), b"\x80\x04")})
    found = fetch("hf://owner/clean", "key")
    names = {"aspect.safetensors", "aspects.yaml", "config.json", "lineage.json", "questions.yaml"}
    assert {path.name for path in found.iterdir()} == {*names, "soft_prompt.safetensors"}
    assert {path.name for path in fetch("hf://owner/clean", "key", ["aspect.safetensors"]).iterdir()} >= names
    hub.requests.clear()
    fetch("hf://owner/clean", "key")
    assert not hub.asked("GET", "safetensors")  # nothing is fetched twice


def test_what_is_wrong_at_the_hub_is_seen_before_it_is_fetched(hub, copy, monkeypatch):
    push(copy, "owner/hostile")
    repository = hub.repositories["models/owner/hostile"]
    files = dict(repository.files())

    def error(kind, change):
        repository.commit({**files, **change})
        hub.requests.clear()
        with pytest.raises(MaspError) as caught:
            fetch("hf://owner/hostile", "checkpoint.aspect")
        assert type(caught.value) is kind and not hub.asked("GET", "/resolve/.*safetensors"), caught.value
        return str(caught.value)

    with monkeypatch.context() as patch:
        patch.setitem(export_format.MAX_BYTES, "soft_prompt.safetensors", 10)
        assert "soft_prompt.safetensors has " in error(InputError, {}) and not hub.asked("HEAD", "resolve")
    large = {"soft_prompt.safetensors": files["soft_prompt.safetensors"] + b"x"}
    assert "soft_prompt.safetensors has 4,0" in error(DataError, large)
    assert "metrics.json is not listed" in error(InputError, {"metrics.json": b"{}"})
    assert "lineage.json is damaged" in error(DataError, {"lineage.json": b"{}"})
    assert "lineage.json has 4,194,305 bytes" in error(InputError, {"lineage.json": bytes((4 << 20) + 1)})
    changed = bytearray(files["soft_prompt.safetensors"])
    changed[-1] ^= 1
    repository.commit({**files, "soft_prompt.safetensors": bytes(changed)})
    with pytest.raises(DataError, match="hf://owner/hostile: soft_prompt.safetensors does not match its digest"):
        config_of("hf://owner/hostile")


def test_without_a_hub_it_says_so(hub, copy, monkeypatch, tmp_path):
    for name in ("nobody/nothing", "nobody/nothing@main"):
        with pytest.raises(InputError, match="no such model repository, or you may not see it"):
            fetch(f"hf://{name}", "key")
    push(copy, "owner/model")
    with pytest.raises(InputError, match="has no revision 'v2'"):
        fetch("hf://owner/model@v2", "key")
    repository = hub.repositories["models/owner/model"]
    repository.commit({"README.md": b"another one"})
    with pytest.raises(InputError, match="not a model that `masp push` sent: it has no lineage.json"):
        fetch("hf://owner/model", "key")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="not fetched before, and the hub is turned off by HF_HUB_OFFLINE"):
        fetch("hf://owner/model", "checkpoint.aspect")


def test_a_record_is_typed(shared_model):
    record = read_record(shared_model, "x")
    assert isinstance(record, ExportRecord) and record.vlm.name == "owner/vlm" and record.vlm.revision is None
    assert record.soft_prompt["aspect_digest"] == record.aspect["digest"]
    config = load_config(
        shared_model / "config.json", [f"aspect_definitions={shared_model / 'aspects.yaml'}"], ["dataset.root"]
    )
    assert config.vlm.path == "hf://owner/vlm"
