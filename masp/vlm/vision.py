"""The vision half of a VLM: image -> pixel values -> features `[T, D]`, as the language model would get them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from masp.errors import InputError
from masp.vlm.families import load_config, plain_vlm_errors, resolve_directory
from masp.vlm.loading import load_part

Grid = tuple[int, int, int]
"""Patches of an image in time, height and width, before the merge."""


class ImageProcessor(Protocol):
    """What MASP uses of an image processor of transformers."""

    patch_size: int
    size: Mapping[str, int]

    def __call__(self, *, images: list[Image.Image], return_tensors: str) -> Mapping[str, torch.Tensor]:
        """Turn images into pixel values and grids."""


@dataclass
class Preprocessor:
    """The VLM's own image processor (Pillow backend); picklable, and needs no weights."""

    processor: ImageProcessor
    merge_size: int

    def __call__(self, image: Image.Image) -> tuple[torch.Tensor, Grid]:
        """Resize, normalize and cut one RGB image into patches.

        Returns:
            Pixel values `[t * h * w, channels * patch volume]` (fp32) and the grid `(t, h, w)`.
        """
        out = self.processor(images=[image], return_tensors="pt")
        t, h, w = (int(n) for n in out["image_grid_thw"][0])
        return out["pixel_values"], (t, h, w)

    def grid(self, width: int, height: int) -> Grid:
        """The grid of an image of this size in pixels, without decoding it."""
        size, patch = self.processor.size, self.processor.patch_size
        rows, columns = smart_resize(
            height, width, patch * self.merge_size, size["shortest_edge"], size["longest_edge"]
        )
        return 1, rows // patch, columns // patch

    def num_tokens(self, width: int, height: int) -> int:
        """How many vision tokens `T` the language model gets for an image of this size in pixels."""
        t, h, w = self.grid(width, height)
        return t * h * w // self.merge_size**2


def load_preprocessor(path: str, min_pixels: int | None = None, max_pixels: int | None = None) -> Preprocessor:
    """Load the VLM's image processor.

    Args:
        path: Directory of the VLM, or its hub name.
        min_pixels: Lower limit of pixels; None for the VLM's own.
        max_pixels: Upper limit of pixels; None for the VLM's own.

    Raises:
        InputError: The directory has no usable image processor or that of another VLM, or the limits contradict each
            other.
    """
    directory = resolve_directory(path)
    config = load_config(directory)
    with plain_vlm_errors(f"{directory} has no usable image processor"):
        processor = AutoImageProcessor.from_pretrained(directory, backend="pil", trust_remote_code=False)
        stated = {name: getattr(processor, name) for name in ("patch_size", "temporal_patch_size", "merge_size")}
        shortest = min_pixels if min_pixels is not None else processor.size["shortest_edge"]
        longest = max_pixels if max_pixels is not None else processor.size["longest_edge"]
        if shortest > longest:
            raise InputError(f"vlm.min_pixels: {shortest} is above the largest number of pixels, {longest}")
        processor.size = {"shortest_edge": shortest, "longest_edge": longest}
    vision = config.vision_config
    wanted = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }
    for name, value in wanted.items():
        if stated[name] != value:
            raise InputError(
                f"vlm.path: {directory}: {name} = {stated[name]!r} in preprocessor_config.json, but the encoder of "
                f"config.json needs {value}: the image processor of another VLM"
            )
    return Preprocessor(processor, config.vision_config.spatial_merge_size)


class VisionHalf:
    """The frozen encoder with its merger or projector."""

    model: Any
    """A transformers VLM without its language model, as `load_part` gives it; transformers does not type its parts."""
    hidden_size: int

    def __init__(self, model: torch.nn.Module):
        self.model = model.eval().requires_grad_(False)
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.hidden_size = self.model.config.text_config.hidden_size

    @torch.inference_mode()
    def encode(self, pixel_values: list[torch.Tensor], grids: list[Grid]) -> list[torch.Tensor]:
        """Encode a batch of images.

        Args:
            pixel_values: Per image `[t * h * w, channels * patch volume]`, fp32; from page-locked memory they are
                copied to a GPU beside its work.
            grids: Per image `(t, h, w)`.

        Returns:
            Per image its features `[T, D]` in the encoder's dtype, on its device.
        """
        pixels = torch.cat([self._moved(values) for values in pixel_values]).to(self.dtype)
        # The grids stay on the CPU: every layer asks for the lengths of the images, and a GPU would be waited for.
        grid = torch.tensor(grids, dtype=torch.long)
        out = self.model.model.get_image_features(
            pixel_values=pixels, image_grid_thw=grid, return_dict=True, **self._places(grid)
        )
        return list(out.pooler_output)

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        """On the encoder's device; from page-locked memory without waiting."""
        return tensor.to(self.device, non_blocking=True)

    def _places(self, grid: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the encoder would compute from grids on its device: rotary positions, and where it has windows, those.

        Args:
            grid: `[I, 3]`, on the CPU.
        """
        vision = self.model.config.vision_config
        found = {"image_position_ids": get_vision_position_ids(grid, vision.spatial_merge_size)}
        lengths: dict[str, torch.Tensor] = {}
        if self.model.config.model_type == "qwen2_5_vl":
            found["image_window_index"], lengths["image_cu_window_seqlens"] = get_vision_window_index(
                grid, vision.spatial_merge_size, vision.window_size, vision.patch_size
            )
        if self.device.type == "cuda":
            found = {name: tensor.pin_memory() for name, tensor in found.items()}
        return {name: self._moved(tensor) for name, tensor in found.items()} | lengths


def load_vision_half(
    path: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu", attention: str = "sdpa"
) -> VisionHalf:
    """Load the encoder alone; the language model's weights are not read from disk."""
    return VisionHalf(load_part(str(path), "vision", dtype, device, attention))
