"""VLMs of real sizes whose random weights are drawn on the device that uses them, without a file of weights.

The directory of such a VLM holds its configuration, image processor and tokenizer. In place of the weights it has a
file with the seed that they are drawn from, so that the digest of its "weights" identifies them. `drawn_weights`
replaces `masp.vlm.loading.load_part`, which reads a half from files; everything else is the real code.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from masp.errors import InputError
from masp.files.text import first_line
from masp.vlm.loading import Partition
from tests.vlm_sizes import real_config, save_config_only

NAMES = {"2b": "Qwen2-VL-2B", "7b": "Qwen2-VL-7B"}
MODELS = (*NAMES, "tiny")
TIED = ("2b",)
"""Models whose embedding table is also the vocabulary projection."""
SEED = 0


def vlm_config(model: str):
    """The transformers configuration of one of MODELS; `tiny` is for running on a CPU."""
    from transformers import Qwen2VLConfig

    if model != "tiny":
        config = real_config(NAMES[model])
        config.tie_word_embeddings = model in TIED
        return config
    text = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 128, "vocab_size": 1000,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6},
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    vision = {
        "depth": 2, "embed_dim": 64, "num_heads": 4, "hidden_size": 64, "mlp_ratio": 4, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
    }  # fmt: skip
    return Qwen2VLConfig(text_config=text, vision_config=vision)


def make_vlm(directory: Path, model: str, tokenizer: Path | None) -> Path:
    """Write the directory of a VLM without weights.

    Args:
        directory: Directory to create.
        model: One of MODELS.
        tokenizer: Directory with the files of the family's tokenizer; None for a small one of bytes and a few words,
            with which texts have about twice as many tokens.

    Raises:
        InputError: not a tokenizer of the family.
    """
    from transformers import AutoTokenizer

    from tests.tiny import make_tokenizer

    if tokenizer is None:
        directory.mkdir(parents=True)
        words = make_tokenizer(directory)
    else:
        if not tokenizer.is_dir():
            raise InputError(f"--tokenizer {tokenizer}: no such directory")
        shutil.copytree(tokenizer, directory, copy_function=shutil.copyfile)
        directory.chmod(0o755)  # the source may be read-only
        try:
            words = AutoTokenizer.from_pretrained(directory)
        except (OSError, ValueError) as error:
            raise InputError(f"--tokenizer {tokenizer}: no tokenizer: {first_line(error)}") from None
        template = directory / "chat_template.json"
        if not words.chat_template and template.is_file():
            (directory / "chat_template.jinja").write_text(json.loads(template.read_text())["chat_template"])
    config = vlm_config(model)
    for name, token in (
        ("vision_start", "vision_start"), ("vision_end", "vision_end"), ("image", "image_pad"), ("video", "video_pad"),
    ):  # fmt: skip
        number = words.get_vocab().get(f"<|{token}|>")
        if number is None:
            raise InputError(f"--tokenizer {tokenizer}: has no token <|{token}|>; give one of the Qwen2-VL family")
        setattr(config, f"{name}_token_id", number)
    text = config.text_config
    text.vocab_size = max(text.vocab_size, len(words))
    text.bos_token_id, text.eos_token_id = words.pad_token_id, words.eos_token_id
    from safetensors.torch import save_file

    save_config_only(directory, config)
    save_file({"seed": torch.tensor([float(SEED)])}, directory / "model.safetensors")
    return directory


def _draw(cls: type, config, dtype: torch.dtype, device: str, attention: str) -> torch.nn.Module:
    """A model with weights drawn from SEED on the device that uses them."""
    torch.manual_seed(SEED)
    with torch.device(device):
        return cls._from_config(config, dtype=dtype, attn_implementation=attention)


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
    cls = part_class(model_class(config), part)
    if part == "vision":  # the other half is drawn before it is dropped, and may take 15 GB: make it small
        config = copy.deepcopy(config)
        config.text_config.num_hidden_layers, config.text_config.vocab_size = 1, 8
        config.text_config.layer_types = config.text_config.layer_types[:1]
    return _draw(cls, config, dtype, device, attention).eval().requires_grad_(False)


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
