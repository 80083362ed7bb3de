"""The vision half of a VLM: image -> pixel values -> features, as the language model would get them."""

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
from masp.vlm.features import Features, Grid, ImageLayout
from masp.vlm.loading import load_part


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

    def __call__(self, image: Image.Image) -> tuple[dict[str, torch.Tensor], ImageLayout]:
        """Resize, normalize and cut one RGB image into patches.

        Returns:
            What `get_image_features` takes, by name: `pixel_values [t * h * w, channels * patch volume]` (fp32) and
            `image_grid_thw [1, 3]`; and how the image lies in the prompt.
        """
        out = self.processor(images=[image], return_tensors="pt")
        inputs = {name: out[name] for name in ("pixel_values", "image_grid_thw")}
        t, h, w = (int(n) for n in out["image_grid_thw"][0])
        return inputs, ImageLayout(t * h * w // self.merge_size**2, (t, h, w))

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
    def encode(self, inputs: list[dict[str, torch.Tensor]], layouts: list[ImageLayout]) -> list[Features]:
        """Encode a batch of images.

        Args:
            inputs: Per image what the preprocessor made of it; from page-locked memory it is copied to a GPU beside
                its work.
            layouts: Per image how it lies in the prompt.

        Returns:
            Per image its features in the encoder's dtype, on its device.
        """
        pixels = torch.cat([self._moved(image["pixel_values"]) for image in inputs]).to(self.dtype)
        # The grids stay on the CPU: every layer asks for the lengths of the images, and a GPU would be waited for.
        grid = torch.tensor([layout.grid for layout in layouts], dtype=torch.long)
        out = self.model.model.get_image_features(
            pixel_values=pixels, image_grid_thw=grid, return_dict=True, **self._places(grid)
        )
        return [Features(tokens) for tokens in out.pooler_output]

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
