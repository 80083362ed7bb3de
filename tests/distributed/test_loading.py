"""ZeRO 3: no rank ever holds the language model, from the first tensor that is read on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.runs import REPOSITORY
from tests.tiny import make_vlm

SCRIPT = Path(__file__).with_name("loading_of_a_rank.py")
HEAD = "lm_head.weight"


def of_ranks(what: str, folder: Path, *vlms: Path, **env: str) -> list[dict]:
    """What each of two ranks saw."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])} | env
    argv = [*command, what, str(folder), *map(str, vlms)]
    done = subprocess.run(argv, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def other_head(folder: Path, tied: bool, change) -> Path:
    """A VLM whose vocabulary projection is what `change` makes of the word embeddings; None: absent."""
    make_vlm(folder)
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = tied
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    table = next(tensor for name, tensor in weights.items() if name.endswith("embed_tokens.weight"))
    weights[HEAD] = change(table)
    weights = {name: tensor.contiguous() for name, tensor in weights.items() if tensor is not None}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.full
def test_each_parameter_is_divided_before_the_next_is_read(tmp_path):
    vlms = [
        make_vlm(tmp_path / "qwen2_vl", layers=8),
        make_vlm(tmp_path / "qwen2_5_vl", "qwen2_5_vl", layers=8),
        other_head(tmp_path / "tied", True, lambda table: None),
        other_head(tmp_path / "tied_and_both_there", True, lambda table: table.clone()),
        other_head(tmp_path / "said_to_be_tied", True, lambda table: table + 1),
        other_head(tmp_path / "absent", False, lambda table: None),
        other_head(tmp_path / "misshapen", False, lambda table: table[1:].clone()),
    ]
    for seen in of_ranks("tensors", tmp_path, *vlms):
        for name in ("absent", "misshapen"):
            found, expected = seen[name]["errors"]
            assert found == expected and found.startswith("vlm.path: the weights in")
        loaded = {name: one for name, one in seen.items() if "errors" not in one}
        assert len(loaded) == 5
        for name, one in loaded.items():
            assert one["equal"] and one["names"] and one["buffers"] and all(one["buffers"]), (name, one)
            assert one["part_bytes"] == one["whole_bytes"] / 2 and one["frozen"], (name, one)
            assert one["bytes_outside_parts"] == 0, (name, one)
            assert one["tied"] == [name in ("tied", "tied_and_both_there")] * 2, (name, one)
        for name in ("qwen2_vl", "qwen2_5_vl"):
            one = loaded[name]
            # the parts, and beside them the one that was read, on its way; 4 KiB are for buffers and what is not frozen
            assert one["most_bytes"] <= one["part_bytes"] + 2 * one["largest_bytes"] + 4096, one
            assert one["most_bytes"] < one["whole_bytes"], one


@pytest.mark.full
def test_of_every_kind_of_family(tmp_path, family_vlm):
    """Tied heads, tables of the other half, constants, experts, per-layer tables, states."""
    families = "gemma3 gemma4_e granite4_vision qwen3_5 qwen3_vl qwen3_vl_moe qwen4_exp paligemma minicpmv4_6"
    for seen in of_ranks("tensors", tmp_path, *map(family_vlm, families.split())):
        for name in families.split():
            one = seen[name]
            assert one["equal"] and one["names"] and all(one["buffers"]) and one["frozen"], (name, one)
            assert one["constants"] and one["tied"][0] == one["tied"][1], (name, one)
            # what is not divisible by the number of ranks is padded
            assert 0.5 <= one["part_bytes"] / one["whole_bytes"] < 0.51, (name, one)
            assert one["bytes_outside_parts"] == 0 and one["most_bytes"] < one["whole_bytes"], (name, one)


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_the_memory_of_a_rank_stays_below_the_models(tmp_path):
    vlm = make_vlm(tmp_path / "vlm", hidden=1024, layers=14)  # 532 MB in fp32, 266 in bf16
    # A real model's tensors are above the size from which malloc gives memory back at once; so are these then.
    for seen in of_ranks("memory", tmp_path, vlm, MALLOC_MMAP_THRESHOLD_=str(2**20)):
        one = seen["vlm"]
        assert one["whole_bytes"] > 250e6 and one["peak_bytes"] < 0.7 * one["whole_bytes"], one
