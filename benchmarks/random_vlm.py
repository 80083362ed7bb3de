"""VLMs of real sizes whose random weights are drawn on the device that uses them, without a file of weights.

The directory of such a VLM holds its configuration, processor and tokenizer. In place of the weights it has a file with
the seed that they are drawn from, so that the digest of its "weights" identifies them. `drawn_weights` replaces
`masp.vlm.loading.load_part`, which reads a half from files; everything else is the real code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.vlm_files import write_files
from masp.errors import InputError
from masp.vlm.loading import Partition
from tests.vlm_sizes import SIZES, at_scale, config_of

MODELS = {name.lower(): sizes for name, sizes in SIZES.items()}
SCALES = ("real", "small", "tiny")
"""`small` is what a CPU can train; `tiny` is for tests."""
PUBLISHED = ("qwen2_vl", "qwen2_5_vl")
"""Families that the published procedure (benchmarks/published.py) can be run with."""
SEED = 0


def make_vlm(directory: Path, model: str, tokenizer: Path | None, scale: str = "real", weights: bool = False) -> Path:
    """Write the directory of a VLM.

    Args:
        directory: Directory to create.
        model: One of MODELS.
        tokenizer: Directory with the files of the family's tokenizer; None for a small one of bytes and a few words,
            with which texts have about twice as many tokens.
        scale: One of SCALES.
        weights: Write random weights; otherwise a file that says that there are none.

    Raises:
        InputError: Not a tokenizer of the family.
    """
    from safetensors.torch import save_file

    config = config_of(at_scale(MODELS[model], scale))
    write_files(directory, config, tokenizer)
    if weights:
        draw_whole(str(directory), torch.float32, "cpu").save_pretrained(directory)
    else:
        save_file({"seed": torch.tensor([float(SEED)])}, directory / "model.safetensors")
    return directory


def _draw(cls: Any, config: Any, dtype: torch.dtype, device: str, attention: str) -> Any:
    """A model with weights drawn from SEED on the device that uses them.

    It is built without storage, as transformers builds what it loads: what a half drops is never held.
    """
    with torch.device("meta"):
        model = cls._from_config(config, dtype=dtype, attn_implementation=attention)
    model.to_empty(device=device)
    torch.manual_seed(SEED)
    model.init_weights()  # buffers too: those that no file holds are its work when transformers loads a model
    with torch.no_grad():
        for parameter in model.parameters():  # matrices that begin at zero would hide what is before them
            if parameter.dim() > 1 and not (parameter.is_meta or parameter.any()):
                parameter.normal_(std=0.02)
    return model.eval()


def draw_part(
    path: str,
    part: str,
    dtype: torch.dtype,
    device: str,
    attention: str,
    partition: Partition | None = None,
    quantization: str = "none",
) -> torch.nn.Module:
    """The result of `masp.vlm.loading.load_part`, with random weights.

    Raises:
        InputError: ZeRO-3 or quantization is asked for, which this single-GPU benchmark does not support.
    """
    if quantization != "none":
        raise InputError(f"vlm.quantization = {quantization}: this benchmark draws weights; must be none")
    if partition:
        raise InputError("engine.zero_stage = 3: this benchmark uses one GPU; must be 0 to 2")
    from masp.vlm.families import load_config, model_class, resolve_directory
    from masp.vlm.loading import part_class

    config = load_config(resolve_directory(path))
    return _draw(part_class(model_class(config), part), config, dtype, device, attention).requires_grad_(False)


def draw_whole(path: str, dtype: torch.dtype, device: str) -> torch.nn.Module:
    """The whole VLM with transformers alone, as the published procedure loads it."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(path)
    return _draw(AutoModelForImageTextToText._model_mapping[type(config)], config, dtype, device, "sdpa")


@contextmanager
def drawn_weights() -> Iterator[None]:
    """Context in which both halves of a VLM come from `draw_part`."""
    with mock.patch("masp.vlm.language.load_part", draw_part), mock.patch("masp.vlm.vision.load_part", draw_part):
        yield
