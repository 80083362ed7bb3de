"""A run as training leaves it, around a tiny VLM, and its export; nothing was trained, the tensors are random."""

import pytest
import torch
from huggingface_hub import constants

from masp.artifacts.store import Lineage, aspect_digest, save_aspects, save_soft_prompt
from masp.cache.fingerprint import machine_part, model_part
from masp.config import load_config, save_config
from masp.inference.sharing.export import export
from masp.models.trainable import AspectModules, SoftPrompt
from masp.runtime.run_directory import RunState, write_status
from masp.vlm.families import family_of
from tests.hub_server import Hub
from tests.runs import make_config_file
from tests.tiny import make_vlm

ASPECTS, CATEGORIES = ("object", "scene"), ("awe", "fear")


def make_shared_run(folder, vlm):
    """Write a run that has finished both stages; returns its directory."""
    file = make_config_file(folder, vlm, folder / "pictures")
    config = load_config(file, [f"aspects=[{','.join(ASPECTS)}]"])
    known = {"model": model_part(config), "machine": machine_part(config).fields}
    hidden_size = family_of(config.vlm.path).hidden_size
    torch.manual_seed(0)
    modules = AspectModules(ASPECTS, hidden_size, num_queries=2)
    for stage in ("stage1", "stage2"):
        (folder / "run" / stage).mkdir(parents=True)
        save_config(config, folder / "run" / stage / "config.yaml")
        write_status(folder / "run" / stage, RunState.FINISHED, 0)
    known |= {"aspects": ASPECTS, "categories": CATEGORIES, "layout": "after_image", "dataset": "folder"}
    save_aspects(modules, folder / "run" / "stage1", Lineage("aspect", "trained", **known))
    lineage = Lineage("soft_prompt", "trained", aspect_digest=aspect_digest(modules), settings={"seed": 3}, **known)
    save_soft_prompt(SoftPrompt(torch.randn(4, hidden_size)), folder / "run" / "stage2", lineage)
    return folder / "run"


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory):
    """Its directory. Read-only."""
    folder = tmp_path_factory.mktemp("shared-run")
    return make_shared_run(folder, make_vlm(folder / "vlm"))


@pytest.fixture(scope="session")
def shared_model(shared_run):
    """What `masp export` makes of it. Read-only."""
    return export(shared_run, shared_run.parent / "exported", vlm="owner/vlm")


@pytest.fixture
def shared_vlm(shared_run):
    return str(shared_run.parent / "vlm")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine, which huggingface_hub asks in this process; its cache is empty."""
    with Hub("token of a test") as hub:
        settings = {"ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
        for name, value in (settings | {"HF_HUB_CACHE": str(tmp_path / "hub")}).items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants._HF_DEFAULT_ENDPOINT, hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub
