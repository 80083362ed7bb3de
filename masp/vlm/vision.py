"""The vision half of a VLM: image -> pixel values -> features, as the language half takes them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from masp.errors import InputError
from masp.files.text import first_line, shown
from masp.vlm.families import (
    JOINED,
    LAST_AXIS,
    PROJECTED,
    ZEROED,
    Family,
    describe,
    inner_class,
    load_config,
    model_class,
    resolve_directory,
)
from masp.vlm.features import Features, Grid, ImageLayout, Runs
from masp.vlm.files.directory import IMAGES
from masp.vlm.files.errors import plain_vlm_errors
from masp.vlm.loading import load_part
from masp.vlm.processor import (
    BLANK,
    blank,
    call,
    image_span,
    load_image_processor,
    load_processor,
    marker_of,
    runs_of,
    special_ids,
    tensors_for,
    write_out,
)

Inputs = Mapping[str, torch.Tensor]
"""What `get_image_features` of a VLM takes for one image, by name."""

_TRIED = ((1024, 768), (640, 427), (1024, 300), (90, 60))
"""Sizes at which a processor's own count of tokens must be right before it is believed for all others."""
_QWEN = ("qwen2_vl", "qwen2_5_vl")
MAX_SIDE = 1 << 13
"""Pixels to whose square an image processor may enlarge an image: 0.8 GB of fp32."""
_GRIDS_ON_CPU = frozenset((*_QWEN, *"qwen3_vl qwen3_vl_moe qwen3_5 qwen3_5_moe qwen4_exp".split()))
"""Encoders of which every layer asks for the lengths of the images: on a GPU, that would be waited for."""


@dataclass(frozen=True)
class _Rule:
    """What a processor writes around an image's placeholders, and how many tokens more than those it counts."""

    more: int
    before: Runs
    behind: Runs

    def layout(self, stated: int, placeholder: int) -> ImageLayout:
        """How an image lies in a prompt of which the processor says this count."""
        count = stated - self.more
        around = self.before or self.behind
        return ImageLayout(count, None, (*self.before, (placeholder, count), *self.behind) if around else None)


@dataclass
class Preprocessor:
    """The VLM's own processor (Pillow backend); picklable, and needs no weights."""

    processor: Any
    """The stock processor of transformers."""
    family: Family
    names: tuple[str, ...]
    """What `get_image_features` takes."""
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    """Token ids that the processor writes before and after a blank, beside the block."""
    has_plain_block: bool = True
    """Whether an image's block is one placeholder per token, as many as its grid says."""
    _layouts: dict[tuple[int, int], ImageLayout] = field(default_factory=dict)
    _grids: dict[tuple[int, int], Grid | None] = field(default_factory=dict)
    _rule: _Rule | Literal[False] | None = None

    @property
    def image_processor(self) -> Any:
        """The part of the processor that makes pixel values."""
        return self.processor.image_processor

    @property
    def has_pixel_limits(self) -> bool:
        """Whether `vlm.min_pixels` and `vlm.max_pixels` mean something to the image processor."""
        return None not in _limits(self.image_processor).values() and self.family.merge_size is not None

    def __call__(self, image: Image.Image) -> tuple[dict[str, torch.Tensor], ImageLayout]:
        """Prepare one RGB image.

        Returns:
            What the vision half takes of it, and how it lies in a prompt.

        Raises:
            ValueError: The processor cannot take this image.
        """
        if self.has_plain_block:
            out = self.image_processor(images=[image], return_tensors="pt")
            grid = _grid(out)
            assert grid is not None  # examined when it was loaded
            return tensors_for(out, self.names), ImageLayout(self._merged(grid), grid)
        out = call(self.processor, marker_of(self.processor), image, add_special_tokens=False)
        return tensors_for(out, self.names), self._layout(out)

    def _layout(self, out: Any) -> ImageLayout:
        ids = out["input_ids"][0].tolist()
        start, stop = image_span(ids, self.family.image_token_id, special_ids(self.processor.tokenizer))
        if (tuple(ids[:start]), tuple(ids[stop:])) != self.around:
            raise ValueError(
                "the processor writes other text around it than around others (pan and scan?), which no cache holds"
            )
        block = ids[start:stop]
        count = block.count(self.family.image_token_id)
        return ImageLayout(count, _grid(out), None if count == len(block) else runs_of(block))

    def _merged(self, grid: Grid) -> int:
        assert self.family.merge_size is not None  # else blocks are not plain
        return grid[0] * grid[1] * grid[2] // self.family.merge_size**2

    def grid(self, width: int, height: int) -> Grid | None:
        """The grid of an image of this size in pixels, without decoding it; None for a VLM without grids."""
        if (width, height) not in self._grids:
            self._grids[width, height] = self._counted_grid(width, height)
        return self._grids[width, height]

    def _counted_grid(self, width: int, height: int) -> Grid | None:
        processor = self.image_processor
        if type(processor) is Qwen2VLImageProcessorPil:
            patch, merge = processor.patch_size, processor.merge_size
            size = processor.size
            rows, columns = smart_resize(height, width, patch * merge, size["shortest_edge"], size["longest_edge"])
            return 1, rows // patch, columns // patch
        if not self.has_plain_block:
            return None
        return _grid(processor(images=[blank(width, height)], return_tensors="pt"))

    def num_tokens(self, width: int, height: int) -> int:
        """How many vision tokens `T` the language model gets for an image of this size in pixels."""
        return self.planned(width, height).num_tokens

    def planned(self, width: int, height: int) -> ImageLayout:
        """The same as `layout`, a hundred times as fast where the processor's own count of tokens can be relied on."""
        if self.has_plain_block:
            return self.layout(width, height)
        if self._rule is None:
            self._rule = self._examined()
        stated = self._stated(width, height) if isinstance(self._rule, _Rule) else None
        if stated is not None and isinstance(self._rule, _Rule):
            return self._rule.layout(stated, self.family.image_token_id)
        if (width, height) not in self._layouts:
            self._layouts[width, height] = self.layout(width, height)
        return self._layouts[width, height]

    def _examined(self) -> _Rule | Literal[False]:
        """What turns the processor's own count into a layout; False if nothing does at the sizes that are tried."""
        rules = set()
        for size in _TRIED:
            stated, layout = self._stated(*size), self.layout(*size)
            runs = layout.block or ((self.family.image_token_id, layout.num_tokens),)
            places = [place for place, (token, _) in enumerate(runs) if token == self.family.image_token_id]
            if stated is None or layout.grid is not None or len(places) != 1:
                return False
            rules.add(_Rule(stated - layout.num_tokens, runs[: places[0]], runs[places[0] + 1 :]))
        return rules.pop() if len(rules) == 1 else False

    def _stated(self, width: int, height: int) -> int | None:
        """What the processor itself says of such an image; None if it says nothing."""
        try:
            return self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)])["num_image_tokens"][0]
        except (AttributeError, KeyError, TypeError):  # processors without this help, or with half of it
            return None

    def layout(self, width: int, height: int) -> ImageLayout:
        """How an image of this size in pixels lies in a prompt."""
        if self.has_plain_block:
            grid = self.grid(width, height)
            assert grid is not None
            return ImageLayout(self._merged(grid), grid)
        _, out = write_out(self.processor, marker_of(self.processor), blank(width, height), False)
        return self._layout(out)


def _grid(out: Any) -> Grid | None:
    if "image_grid_thw" not in out:
        return None
    t, h, w = (int(n) for n in out["image_grid_thw"][0])
    return t, h, w


def load_preprocessor(path: str, min_pixels: int | None = None, max_pixels: int | None = None) -> Preprocessor:
    """Load the VLM's processor.

    Args:
        path: Directory of the VLM, or its hub name.
        min_pixels: Lower limit of pixels; None for the VLM's own.
        max_pixels: Upper limit of pixels; None for the VLM's own.

    Raises:
        InputError: The directory has no usable processor or that of another VLM, or the limits contradict each other or
            mean nothing to it.
    """
    directory = resolve_directory(path)
    config = load_config(directory)
    family = describe(config)
    image_processor = load_image_processor(directory)
    with plain_vlm_errors(f"{directory} has no usable image processor"):
        _check_agreement(directory, config, image_processor)
        _set_limits(image_processor, family, min_pixels, max_pixels)
        where = f"vlm.path: {directory}/{IMAGES}" if min_pixels is None else "vlm.min_pixels"
        _check_sizes(image_processor, family, where)
    names = tuple(inspect.signature(inner_class(model_class(config)).get_image_features).parameters)
    if family.model_type in _QWEN:  # whose processor adds nothing to its image processor
        return Preprocessor(_ImageProcessorOnly(image_processor), family, names)
    processor = load_processor(directory, config)
    processor.image_processor = image_processor
    found = Preprocessor(processor, family, names, has_plain_block=False)
    with plain_vlm_errors(f"{directory} has no usable processor"):
        _, out = write_out(processor, marker_of(processor), blank(*BLANK), False)
        ids, grid = out["input_ids"][0].tolist(), _grid(out)
        start, stop = image_span(ids, family.image_token_id, special_ids(processor.tokenizer))
        found.around = tuple(ids[:start]), tuple(ids[stop:])
        if not any(found.around) and grid is not None and family.merge_size is not None:
            found.has_plain_block = ids == [family.image_token_id] * found._merged(grid)
    return found


@dataclass
class _ImageProcessorOnly:
    """A processor of which only the image processor is used."""

    image_processor: Any


def _check_agreement(directory: Path, config: Any, image_processor: Any) -> None:
    """What the image processor and the encoder both state is the same in both."""
    vision = getattr(config, "vision_config", None)
    for name, other in (
        ("patch_size", "patch_size"), ("temporal_patch_size", "temporal_patch_size"),
        ("merge_size", "spatial_merge_size"),
    ):  # fmt: skip
        needed, stated = getattr(vision, other, None), getattr(image_processor, name, None)
        if type(needed) is int and type(stated) is int and stated != needed:
            raise InputError(
                f"vlm.path: {directory}: {name} = {stated!r} in preprocessor_config.json, but the encoder of "
                f"config.json needs {needed}: the image processor of another VLM"
            )


def _limits(image_processor: Any) -> dict[str, int | None]:
    """The image processor's limits of pixels; None where it has none."""
    stated = getattr(image_processor, "size", None)
    return {
        name: stated.get(name) if isinstance(stated, Mapping) else getattr(stated, name, None)
        for name in ("shortest_edge", "longest_edge")
    }


def _set_limits(image_processor: Any, family: Family, min_pixels: int | None, max_pixels: int | None) -> None:
    size = _limits(image_processor)
    if family.model_type in _QWEN and None in size.values():
        raise ValueError(f"size = {shown(image_processor.size)}: must have shortest_edge and longest_edge")
    if family.merge_size is None or None in size.values():
        for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
            if value is not None:
                raise InputError(
                    f"vlm.{name}: {value}: the image processor of a {family.model_type!r} model has no such limit; "
                    "leave it out (vlm.max_side limits every image)"
                )
        return
    shortest: Any = min_pixels if min_pixels is not None else size["shortest_edge"]
    longest: Any = max_pixels if max_pixels is not None else size["longest_edge"]
    if shortest > longest:
        raise InputError(f"vlm.min_pixels: {shortest} is above the largest number of pixels, {longest}")
    image_processor.size = {"shortest_edge": shortest, "longest_edge": longest}


def _check_sizes(image_processor: Any, family: Family, where: str) -> None:
    """Refuse sizes to which every image would be enlarged, and that no memory holds."""
    is_area = family.merge_size is not None and None not in _limits(image_processor).values()
    for name in ("size", "crop_size", "pad_size", "max_image_size", "image_size"):
        stated = getattr(image_processor, name, None)
        sides = stated if isinstance(stated, Mapping) else getattr(stated, "__dict__", {"": stated})
        if is_area and name == "size":  # numbers of pixels, of which the upper one enlarges nothing
            sides, most, unit = {"shortest_edge": sides["shortest_edge"]}, MAX_SIDE**2, "pixels"
        else:
            most, unit = MAX_SIDE, "pixels per side"
        for key, value in sides.items():
            if isinstance(value, int) and value > most:
                dotted = f"{name}.{key}".removesuffix(".")
                raise InputError(
                    f"{where}: {dotted} = {value:,}: images would be enlarged to it; must be at most {most:,} {unit}"
                )


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
                f"vlm.path: the encoder of this {kind!r} model cannot take what its processor made ({shapes}): "
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
                "placeholders: encoder and processor do not belong together"
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
