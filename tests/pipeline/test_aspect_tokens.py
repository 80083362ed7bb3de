"""The second-level cache of aspect tokens gives what the aspect modules give, and is found by their digest alone."""

import json
import shutil

import h5py
import pytest
import torch
from safetensors.torch import load_file

from masp.cli.main import main
from tests.runs import assert_same, numbers


def test_stage2_and_evaluation_from_kept_aspect_tokens(world, trained, tmp_path, monkeypatch, capsys):
    from masp.models.trainable import AspectModules

    cache = tmp_path / "cache"
    shutil.copytree(world.folder / "cache", cache)
    given = (f"checkpoint.aspect={trained / 'stage1' / 'aspect.safetensors'}", f"cache.dir={cache}")
    few = (*given, "stage2.num_epochs=1", "stage2.log_every=1", "stage2.learning_rate=1e-3")
    plain, kept = tmp_path / "plain", tmp_path / "kept"
    for command in (["train", "--stage", "stage2"], ["evaluate"]):
        assert main([*command, *world.settings(plain, *few)]) == 0

    tokens = [*few, "cache.aspect_tokens=true"]
    capsys.readouterr()
    assert main(["train", "--stage", "stage2", *world.settings(kept, *tokens)]) == 2
    assert "cache.aspect_tokens = true: " in capsys.readouterr().err
    assert main(["cache", "aspects", *world.settings(kept, *given)]) == 0
    (path,) = (cache / "aspect-tokens").iterdir()
    with h5py.File(path) as file:
        assert file["tokens"].shape == (31, 3, 5, 32) and json.loads(file.attrs["made_of"])["aspects"]
    assert (
        main(["cache", "aspects", *world.settings(kept, *given)]) == 0 and "is there already" in capsys.readouterr().out
    )

    with monkeypatch.context() as patch:
        patch.setattr(AspectModules, "forward", lambda *_: pytest.fail("the aspect modules must not run"))
        for command in (["train", "--stage", "stage2"], ["evaluate"]):
            assert main([*command, *world.settings(kept, *tokens)]) == 0
    states = [load_file(output / "stage2" / "soft_prompt_folder.safetensors") for output in (plain, kept)]
    assert all(torch.allclose(states[1][name], value, atol=1e-5) for name, value in states[0].items())
    assert_same(*(numbers(output / "evaluate" / "metrics.json") for output in (kept, plain)))

    damaged = shutil.copy(path, tmp_path / "damaged.h5")  # this process may still hold the file open
    with h5py.File(damaged, "a") as file:
        file["tokens"][:, 0, 0, 0] += 1
    damaged.replace(path)
    assert main(["evaluate", *world.settings(kept, *tokens, f"evaluate.output_dir={tmp_path / 'again'}")]) == 3
    assert "does not match its checksum" in capsys.readouterr().err
