"""Sending to the hub, for which a server on this machine stands in: huggingface_hub itself is the real one."""

import shutil

import pytest
from huggingface_hub import constants

import masp
from masp.cache.remote import transfers
from masp.cli.main import main
from masp.errors import DataError, InputError
from masp.inference.sharing.export import export
from masp.inference.sharing.push import push
from tests.hub_server import FOREIGN, Repository


def files(hub, name):
    return {path for path in hub.repositories[f"models/{name}"].files() if path != ".gitattributes"}


def test_one_commit_holds_it_and_the_card_knows_its_name(hub, shared_model, shared_vlm, capsys):
    command = ["push", str(shared_model), "hf://owner/first", "--private", "--message", "Hello"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert f"push: to {hub.endpoint}/owner/first, a private repository that is made: README.md (" in out
    assert f'push: {hub.endpoint}/owner/first; masp.load("hf://owner/first") loads it' in out
    repository = hub.repositories["models/owner/first"]
    assert repository.private and files(hub, "owner/first") == {path.name for path in shared_model.iterdir()}
    assert len(repository.commits) == 2  # the hub's own, and this
    card = repository.files()["README.md"].decode()
    assert 'masp.load("hf://owner/first")' in card and "hf://owner/name" not in card
    assert main(command) == 0 and len(repository.commits) == 2  # nothing has changed
    assert masp.load("hf://owner/first", device="cpu", vlm=shared_vlm).aspects == ("object", "scene")


def test_what_a_later_state_lacks_is_removed(hub, shared_model, shared_run, tmp_path):
    push(shared_model, "owner/again")
    repository = hub.repositories["models/owner/again"]
    assert not repository.private
    repository.commit({**repository.files(), "metrics.json": b"{}", "photo.png": b"mine"})
    push(shared_model, "owner/again")
    assert "metrics.json" not in files(hub, "owner/again") and "photo.png" in files(hub, "owner/again")


def test_what_is_refused_is_refused_before_anything_is_sent(hub, shared_model, tmp_path, monkeypatch):
    def refused(name, directory=shared_model, kind=InputError):
        hub.requests.clear()
        with pytest.raises(kind) as caught:
            push(directory, name)
        assert not hub.asked("PUT", "") and "\n" not in str(caught.value)
        return str(caught.value)

    for name in ("x", "owner/x/y", "owner/..", "hf://owner/x@../y", "owner/a--b", "", "hf://"):
        assert "NAME: " in refused(name), name
    assert "is not a directory; `masp export RUN" in refused("owner/x", tmp_path / "gone")
    assert "`masp export` did not write it" in refused("owner/x", tmp_path)
    assert "this token may not write there" in refused(f"{FOREIGN}/x")
    hub.repositories["models/owner/taken"] = Repository(private=False)
    hub.repositories["models/owner/taken"].commit({"config.json": b"{}"})
    assert "holds another model: it has config.json, but no lineage.json" in refused("owner/taken")
    copy = shutil.copytree(shared_model, tmp_path / "copy")
    (copy / "README.md").write_text("---\nlicense: [\n---\n")
    assert "not a valid model card" in refused("owner/x", copy)
    (copy / "README.md").write_text("---\nlicense: my-own\n---\n")
    assert "the hub refuses the model card" in refused("owner/x", copy)
    (copy / "README.md").unlink()
    assert "has no README.md" in refused("owner/x", copy)
    data = bytearray((copy / "aspect.safetensors").read_bytes())
    data[-3] ^= 1
    (copy / "aspect.safetensors").write_bytes(data)
    assert "aspect.safetensors does not match its digest" in refused("owner/x", copy, DataError)
    monkeypatch.setenv("HF_TOKEN", "another")
    assert "the hub does not accept the token" in refused("owner/x")
    monkeypatch.delenv("HF_TOKEN")
    assert refused("owner/x") == "hf://owner/x: no token of the hub: `hf auth login` gets one, or set HF_TOKEN"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "the hub is turned off by HF_HUB_OFFLINE" in refused("owner/x")


def test_without_a_network_it_is_tried_again_and_said(hub, shared_model, monkeypatch, caplog):
    monkeypatch.setattr(transfers, "WAITS_S", (0.0, 0.0))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="hf://owner/x: .*Connection refused"):
        push(shared_model, "owner/x")
    assert caplog.text.count("trying again in 0 s") == 2


def test_a_branch_must_be_there(hub, shared_model, shared_run, tmp_path):
    push(shared_model, "owner/branches")
    with pytest.raises(InputError, match="has no revision 'dev'"):
        push(export(shared_run, tmp_path / "new"), "owner/branches@dev")
