"""The vision half of a VLM: image -> pixel values -> features, as the language half takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from masp.errors import InputError
from masp.files.text import first_line
from masp.vlm.families import JOINED, LAST_AXIS, PROJECTED, QWEN2, ZEROED, describe
from masp.vlm.features import Features, ImageLayout
from masp.vlm.loading import load_part

Inputs = Mapping[str, torch.Tensor]
"""What `get_image_features` of a VLM takes for one image, by name."""
_GRIDS_ON_CPU = QWEN2 | frozenset("qwen3_vl qwen3_vl_moe qwen3_5 qwen3_5_moe qwen4_exp".split())
"""Encoders of which every layer asks for the lengths of the images: on a GPU, that would be waited for."""


class VisionHalf:
    """The frozen encoder with its merger or projector."""

    model: Any
    """A transformers VLM without its language model, as `load_part` gives it; transformers does not type its parts."""
    hidden_size: int

    def __init__(self, model: torch.nn.Module):
        self.model = model.eval().requires_grad_(False)
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.family = describe(self.model.config)
        self.hidden_size = self.family.hidden_size

    @torch.inference_mode()
    def encode(self, inputs: Sequence[Inputs], layouts: Sequence[ImageLayout]) -> list[Features]:
        """Encode a batch of images.

        Args:
            inputs: Per image what `Preprocessor` made of it; from page-locked memory it is copied to a GPU beside its
                work.
            layouts: Per image how it lies in a prompt.

        Returns:
            Per image its features in the encoder's dtype, on its device.
        """
        if self.family.model_type not in JOINED:
            return [self._encode([one], [layout])[0] for one, layout in zip(inputs, layouts, strict=True)]
        return self._encode(inputs, layouts)

    def _encode(self, inputs: Sequence[Inputs], layouts: Sequence[ImageLayout]) -> list[Features]:
        kind, counts = self.family.model_type, [layout.num_tokens for layout in layouts]
        joined = {
            name: _joined([self._moved(name, one[name]) for one in inputs], name in LAST_AXIS.get(kind, ()))
            for name in inputs[0]
        }
        joined = {name: t.to(self.dtype) if t.is_floating_point() else t for name, t in joined.items()}
        if kind in _GRIDS_ON_CPU:
            joined |= self._places(joined["image_grid_thw"])
        inner = self.model.base_model
        try:
            out = inner.get_image_features(**joined, return_dict=True)
        except (IndexError, ValueError) as error:  # of its own code, over inputs that its processor made
            shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in joined.items())
            raise InputError(
                f"vlm.path: the encoder of this {kind!r} model rejects the output of its processor ({shapes}): "
                f"{first_line(error)}"
            ) from None
        deep = [
            _flat(maps[1] if isinstance(maps[0], int) else maps)
            for maps in getattr(out, "deepstack_features", None) or ()
        ]
        if kind in ZEROED:
            tokens, *deep = deep
        elif kind in PROJECTED:
            tokens = self.model.multi_modal_projector(_flat(out.last_hidden_state))
        else:
            tokens = _flat(out.pooler_output)
        if len(tokens) != sum(counts):
            raise InputError(
                f"vlm.path: the encoder of this {kind!r} model returns {len(tokens)} features for {sum(counts)} "
                "placeholders: encoder and processor do not match"
            )
        maps = torch.stack(deep).split(counts, dim=1) if deep else [None] * len(counts)
        return [Features(own, None if m is None else m) for own, m in zip(tokens.split(counts), maps, strict=True)]

    def _moved(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """On the encoder's device, from page-locked memory without waiting."""
        if name == "image_grid_thw" and self.family.model_type in _GRIDS_ON_CPU:
            return tensor
        return tensor.to(self.device, non_blocking=True)

    def _places(self, grid: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the encoder would compute from grids on its device: rotary positions, and where it has windows or a
        table of positions, those.

        Args:
            grid: `[I, 3]`, on the CPU.
        """
        vision = self.model.config.vision_config
        found = {"image_position_ids": get_vision_position_ids(grid, vision.spatial_merge_size)}
        lengths: dict[str, torch.Tensor] = {}
        encoder = self.model.base_model.visual
        if hasattr(encoder, "interpolation_mode"):
            found["image_interp_indices"], found["image_interp_weights"] = get_vision_interpolation_indices_and_weights(
                grid,
                encoder.num_grid_per_side,
                encoder.interpolation_mode,
                encoder.interpolation_align_corners,
                vision.spatial_merge_size,
            )
        if self.family.model_type == "qwen2_5_vl":
            found["image_window_index"], lengths["image_cu_window_seqlens"] = get_vision_window_index(
                grid, vision.spatial_merge_size, vision.window_size, vision.patch_size
            )
        if self.device.type == "cuda":
            found = {name: tensor.pin_memory() for name, tensor in found.items()}
        return {name: self._moved(name, tensor) for name, tensor in found.items()} | lengths


def _joined(tensors: Sequence[torch.Tensor], is_last: bool) -> torch.Tensor:
    """The inputs of several images as one: along the first axis, the others padded with zeros to the largest."""
    if is_last:
        return torch.cat(list(tensors), dim=-1)
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        lacking = [largest - size for size, largest in zip(tensor.shape[1:], shape, strict=True)]
        amounts = [amount for lack in reversed(lacking) for amount in (0, lack)]
        padded.append(torch.nn.functional.pad(tensor, amounts) if any(lacking) else tensor)
    return torch.cat(padded)


def _flat(features: Any) -> torch.Tensor:
    """Features of all images `[sum of T, D]`, from a list per image or one tensor `[tiles, n, D]`."""
    return torch.cat(list(features)) if isinstance(features, (list, tuple)) else features.flatten(0, -2)


def load_vision_half(
    path: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu", attention: str = "sdpa"
) -> VisionHalf:
    """Load the encoder alone; the language model's weights are not read from disk."""
    return VisionHalf(load_part(str(path), "vision", dtype, device, attention))
