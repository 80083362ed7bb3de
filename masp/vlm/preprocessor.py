"""What a VLM's own processor makes of an image: the encoder's inputs, and where the image's tokens are in a prompt."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from masp.config.schema import VlmConfig
from masp.errors import InputError
from masp.files.text import first_line
from masp.vlm.families import QWEN2, RASTER, Family, describe, inner_class, load_config, model_class, resolve_directory
from masp.vlm.features import Grid, ImageLayout, Runs, token_grid
from masp.vlm.files.directory import IMAGES
from masp.vlm.files.errors import plain_vlm_errors
from masp.vlm.processor import (
    BLANK,
    CHEAP,
    blank,
    call,
    check_agreement,
    check_sizes,
    image_span,
    load_image_processor,
    load_processor,
    marker_of,
    pixel_limits,
    runs_of,
    set_pixel_limits,
    special_ids,
    tensors_for,
    write_out,
)

_TRIED = ((1024, 768), (640, 427), (1024, 300), (90, 60))
"""Sizes at which a processor's own count of tokens must be right before it is believed for all others."""
NO_TOKEN_GRID = "the vision tokens of this VLM do not form one grid over the image, so no attention map can be drawn"
CROPPED = "this VLM sees only the center of an image, the rest of which an attention map would not cover"
_NEAR = 16
"""Levels of 0 to 255 that two ways of scaling a smooth image may differ by."""


class RefusedImage(ValueError):
    """The VLM's processor cannot take an image of this size; the message says why."""


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn the error of a processor over an image into a `RefusedImage`."""
    try:
        yield
    except RefusedImage:
        raise
    except ValueError as error:
        raise RefusedImage(f"refused by the VLM's processor: {first_line(error)}") from None


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
    origin: tuple[str, int | None, int | None]
    """Arguments of `load_preprocessor`, by which another process loads it too."""
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    """Token ids that the processor writes before and after a blank, beside the block."""
    has_plain_block: bool = True
    """Whether an image's block is one placeholder per token, as many as its grid says."""
    _layouts: dict[tuple[int, ...], ImageLayout] = field(default_factory=dict)
    _grids: dict[tuple[int, int], Grid | None] = field(default_factory=dict)
    _rule: _Rule | Literal[False] | None = None

    def __reduce__(self) -> Any:
        return load_preprocessor, self.origin

    @property
    def image_processor(self) -> Any:
        """The part of the processor that makes pixel values."""
        return self.processor.image_processor

    @property
    def has_pixel_limits(self) -> bool:
        """Whether `vlm.min_pixels` and `vlm.max_pixels` mean something to the image processor."""
        return None not in pixel_limits(self.image_processor).values() and self.family.merge_size is not None

    def __call__(self, image: Image.Image) -> tuple[dict[str, torch.Tensor], ImageLayout]:
        """Prepare one RGB image.

        Returns:
            What the vision half takes of it, and how it lies in a prompt.

        Raises:
            RefusedImage: The processor cannot take this image.
        """
        with _refusing():
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
                "it writes different text around this image than around others (pan and scan?); a cache holds no text"
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
        return _grid(processor(images=[blank(width, height)], return_tensors="pt", **CHEAP))

    def num_tokens(self, width: int, height: int) -> int:
        """How many vision tokens `T` the language model gets for an image of this size in pixels."""
        return self.planned(width, height).num_tokens

    def planned(self, width: int, height: int) -> ImageLayout:
        """The same as `layout`, a hundred times as fast where the processor's own count of tokens can be relied on."""
        if self.has_plain_block:
            return self.layout(width, height)
        if self._rule is None:
            self._rule = self._examined()
        with _refusing():
            stated = self._stated(width, height) if isinstance(self._rule, _Rule) else None
        if stated is not None and isinstance(self._rule, _Rule):
            return self._rule.layout(stated, self.family.image_token_id)
        with _refusing():
            key = self._tiles(width, height) or (width, height)
        if key not in self._layouts:
            self._layouts[key] = self.layout(width, height)
        return self._layouts[key]

    def _tiles(self, width: int, height: int) -> tuple[int, ...] | None:
        """Number, rows and columns of an image's tiles where the image processor tells all of them: images that have
        them in common lie in a prompt alike."""
        tell = getattr(self.image_processor, "get_number_of_image_patches", None)
        found = None if tell is None else tell(height, width, {})
        return found if isinstance(found, tuple) else None

    def _examined(self) -> _Rule | Literal[False]:
        """What turns the processor's own count into a layout; False if nothing does at the sizes that are tried."""
        rules = set()
        for size in _TRIED:
            try:
                stated, layout = self._stated(*size), self.layout(*size)
            except RefusedImage:
                return False
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
        """How an image of this size in pixels lies in a prompt.

        Raises:
            RefusedImage: The processor cannot take such an image.
        """
        with _refusing():
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
        check_agreement(directory, config, image_processor)
        set_pixel_limits(image_processor, family, min_pixels, max_pixels)
        where = f"vlm.path: {directory}/{IMAGES}" if min_pixels is None else "vlm.min_pixels"
        check_sizes(image_processor, family, where)
    origin = path, min_pixels, max_pixels
    names = tuple(inspect.signature(inner_class(model_class(config)).get_image_features).parameters)
    if family.model_type in QWEN2:  # whose processor adds nothing to its image processor
        return Preprocessor(_ImageProcessorOnly(image_processor), family, names, origin)
    processor = load_processor(directory, config)
    processor.image_processor = image_processor
    found = Preprocessor(processor, family, names, origin, has_plain_block=False)
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


def load_token_grid(vlm: VlmConfig, setting: str) -> Callable[[ImageLayout], tuple[int, int] | None]:
    """`masp.vlm.features.token_grid` for images of a VLM; refuses one of which no map can be drawn.

    Args:
        vlm: The VLM.
        setting: What asks for maps, for the message.

    Raises:
        InputError: The tokens of an image form no grid over it that is known.
    """
    preprocessor = load_preprocessor(vlm.path, vlm.min_pixels, vlm.max_pixels)
    is_raster = preprocessor.family.model_type in RASTER
    if is_raster and getattr(preprocessor.image_processor, "do_center_crop", False):
        raise InputError(f"{setting}: {CROPPED}")
    grid_of = functools.partial(token_grid, is_square=is_raster and _is_stretched(preprocessor))
    if grid_of(preprocessor.layout(*_TRIED[1])) is None:
        raise InputError(f"{setting}: {NO_TOKEN_GRID}")
    return grid_of


def _is_stretched(preprocessor: Preprocessor) -> bool:
    """Whether the processor makes one square of every image by stretching all of it."""
    for width, height in ((240, 120), (120, 240)):
        # red grows from left to right, green from top to bottom
        red, green = np.meshgrid(_ramp(width), _ramp(height))
        image = Image.fromarray(np.stack([red, green, 0 * red], axis=-1).round().astype(np.uint8))
        out = call(preprocessor.processor, marker_of(preprocessor.processor), image, images_kwargs=dict(CHEAP))
        *tiles, channels, rows, columns = out["pixel_values"].shape
        if math.prod(tiles) != 1 or channels != 3 or rows != columns:
            return False
        pixels, expected = out["pixel_values"].reshape(3, rows, columns).numpy(), _ramp(rows)
        if max(abs(pixels[0] - expected).max(), abs(pixels[1] - expected[:, None]).max()) > _NEAR:
            return False
    return True


def _ramp(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) / count * 255
