"""Load one half of a VLM with transformers, leaving the other half's weights on disk."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Literal

import torch

from masp.errors import InputError
from masp.models.families import load_config, resolve_folder


def part_class(base: type, part: Literal["vision", "language"]) -> type:
    """Derive from a transformers VLM class one that holds only a half.

    The other half is built without storage (transformers constructs on the meta device) and dropped before loading,
    so its keys in the checkpoint are merely unexpected: safetensors never reads them.
    """

    class Part(base):
        if part == "vision":
            _keys_to_ignore_on_load_unexpected = [
                r"language_model\.",
                r"^lm_head\.",
                r"^model\.(layers|norm|embed_tokens)",
            ]
            _tied_weights_keys = {}
        else:
            _keys_to_ignore_on_load_unexpected = [r"visual\."]

        def __init__(self, config):
            super().__init__(config)
            if part == "vision":
                del self.model.language_model, self.lm_head
            else:
                del self.model.visual

        def get_input_embeddings(self):
            return None if part == "vision" else self.model.language_model.embed_tokens

        def get_output_embeddings(self):
            return None if part == "vision" else self.lm_head

    # transformers looks weight-name conversions up by class name, and only for classes of its own modules
    Part.__name__ = Part.__qualname__ = base.__name__
    Part.__module__ = base.__module__
    return Part


@contextmanager
def quiet_transformers():
    """Silence transformers' own loading report: half of the checkpoint is unexpected on purpose, and we check it."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_part(
    path: str, part: Literal["vision", "language"], dtype: torch.dtype, device: str, attention: str
) -> torch.nn.Module:
    """Load a half of the VLM at `path` (folder or hub name), frozen, in eval mode.

    Raises:
        InputError: no such VLM, an unsupported family, or weights that do not fit the configuration.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText

    folder = resolve_folder(path)
    config = load_config(folder)
    base = AutoModelForImageTextToText._model_mapping[type(config)]
    try:
        with quiet_transformers():
            model, info = part_class(base, part).from_pretrained(
                folder, config=config, dtype=dtype, attn_implementation=attention, output_loading_info=True
            )
    except (OSError, SafetensorError, RuntimeError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"vlm.path: the weights in {folder} cannot be loaded: {reason}") from None
    if info["missing_keys"] or info["mismatched_keys"]:
        names = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise InputError(
            f"vlm.path: the weights in {folder} do not fit its config.json: {len(names)} tensors are missing or have "
            f"another shape, first {names[0]}"
        )
    return model.to(device).eval().requires_grad_(False)
