"""A VLM's stock processor of transformers with the parts that an image needs: tokenizer and image processor.

Without torchvision transformers has no processors for videos, and so refuses to load a processor that could take one.
The classes here are the stock ones with nothing in place of parts that images do not need.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, PreTrainedTokenizerBase, ProcessorMixin
from transformers.models.auto.image_processing_auto import (
    IMAGE_PROCESSOR_MAPPING_NAMES,
    get_image_processor_class_from_name,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name

from masp.errors import InputError
from masp.files.text import shown
from masp.vlm.families import QWEN2, Family
from masp.vlm.files.directory import IMAGES, KEY, PROCESSOR, TOKENIZER, read_json
from masp.vlm.files.errors import missing_package, needs, plain_vlm_errors
from masp.vlm.files.tokenizer import load_tokenizer

BLANK = (224, 224)
"""Size of the image by which a processor is examined, and of what replaces an image that cannot be read."""
CHEAP = {"do_rescale": False, "do_normalize": False, "resample": 0}
"""Settings that change pixel values only, for images of which only the size matters."""
MAX_SIDE = 1 << 13
"""Pixels to whose square an image processor may enlarge an image: 0.8 GB of fp32."""
_FLAT = frozenset({"GotOcr2Processor"})
"""Classes of processors that take a list of lists of images for the pages of one sample."""


# Of an image 1 or 3 pixels wide it says that it has to guess which axis is that of the channels. It guesses the first,
# where it has moved them itself.
logging.getLogger("transformers.image_utils").setLevel(logging.ERROR)


class _Absent:
    """In place of a part of a processor that images do not need."""

    model_input_names = ()

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def load_image_processor(directory: Path) -> Any:
    """The VLM's image processor (Pillow backend); transformers does not type its settings.

    Raises:
        InputError: The directory has none that can be used; names a package that it needs.
    """
    what = f"{directory} has no usable image processor"
    with plain_vlm_errors(what):
        if (package := missing_package(_image_processor_classes(directory))) is not None:
            raise InputError(f"{KEY}: {what}: {needs(package)}")
        return AutoImageProcessor.from_pretrained(directory, backend="pil", trust_remote_code=False)


def _image_processor_classes(directory: Path) -> Iterator[Any]:
    """What transformers has of the image processor that the files name: classes, or stand-ins of such as cannot be
    imported; Pillow's first."""
    nested = (read_json(directory, PROCESSOR) or {}).get("image_processor")
    stated = [(read_json(directory, IMAGES) or {}).get("image_processor_type")]
    stated += [nested.get("image_processor_type")] if isinstance(nested, dict) else []
    name = next((name for name in stated if isinstance(name, str)), "").removesuffix("Fast")
    for backends in IMAGE_PROCESSOR_MAPPING_NAMES.values():
        if name in backends.values():
            names = [backends.get("pil"), *backends.values()]
            yield from (get_image_processor_class_from_name(each) for each in names if each)


def check_agreement(directory: Path, config: Any, image_processor: Any) -> None:
    """What the image processor and the encoder both state is the same in both.

    Raises:
        InputError: It differs.
    """
    vision = getattr(config, "vision_config", None)
    for name, other in (
        ("patch_size", "patch_size"), ("temporal_patch_size", "temporal_patch_size"),
        ("merge_size", "spatial_merge_size"),
    ):  # fmt: skip
        needed, stated = getattr(vision, other, None), getattr(image_processor, name, None)
        if type(needed) is int and type(stated) is int and stated != needed:
            raise InputError(
                f"vlm.path: {directory}: {name} = {stated!r} in preprocessor_config.json, but the encoder of "
                f"config.json needs {needed}: this image processor belongs to another VLM"
            )


def pixel_limits(image_processor: Any) -> dict[str, int | None]:
    """The image processor's limits of pixels; None where it has none."""
    stated = getattr(image_processor, "size", None)
    return {
        name: stated.get(name) if isinstance(stated, Mapping) else getattr(stated, name, None)
        for name in ("shortest_edge", "longest_edge")
    }


def set_pixel_limits(image_processor: Any, family: Family, min_pixels: int | None, max_pixels: int | None) -> None:
    """Set limits of an image's pixels; None for the image processor's own.

    Raises:
        InputError: They contradict each other, or the image processor has none. ValueError: Its own are not usable.
    """
    size = pixel_limits(image_processor)
    if family.model_type in QWEN2 and None in size.values():
        raise ValueError(f"size = {shown(image_processor.size)}: must have shortest_edge and longest_edge")
    if family.merge_size is None or None in size.values():
        for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
            if value is not None:
                raise InputError(
                    f"vlm.{name}: {value}: the image processor of {family.model_type!r} models has no such limit; "
                    "remove it (vlm.max_side limits the size of every image)"
                )
        return
    shortest: Any = min_pixels if min_pixels is not None else size["shortest_edge"]
    longest: Any = max_pixels if max_pixels is not None else size["longest_edge"]
    if shortest > longest:
        raise InputError(f"vlm.min_pixels: {shortest} is above the largest number of pixels, {longest}")
    image_processor.size = {"shortest_edge": shortest, "longest_edge": longest}


def check_sizes(image_processor: Any, family: Family, where: str) -> None:
    """Refuse sizes to which every image would be enlarged, and that no memory holds.

    Args:
        image_processor: Image processor, with its limits of pixels set.
        family: Facts of the VLM.
        where: File or setting that states them, for the message.

    Raises:
        InputError: Names the size.
    """
    is_area = family.merge_size is not None and None not in pixel_limits(image_processor).values()
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


def load_processor(directory: Path, config: Any) -> Any:
    """The VLM's processor; transformers does not type its settings.

    Args:
        directory: Directory of the VLM.
        config: Its configuration, of `load_config`.

    Raises:
        InputError: The directory has none that can be used; names a package that it needs.
    """
    parts = {
        "tokenizer": load_tokenizer(directory, config.get_text_config().vocab_size),
        "image_processor": load_image_processor(directory),
    }
    with plain_vlm_errors(f"{directory} has no usable processor"):
        base: Any = _processor_class(directory, config.model_type)

        class Stock(base):
            def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
                """The stock check would refuse what stands for an absent part."""

            def __repr__(self) -> str:
                return f"{base.__name__} for images"

            @classmethod
            def _get_arguments_from_pretrained(cls, *_: Any, **__: Any) -> list[Any]:
                return [parts.get(name) or _Absent() for name in cls.get_attributes()]

        Stock.__name__ = base.__name__  # processors look their settings up by it
        return Stock.from_pretrained(directory, trust_remote_code=False)


def _processor_class(directory: Path, model_type: str) -> type[ProcessorMixin]:
    """The class that transformers has for this type of model; else its class that the directory names."""
    stated = [(read_json(directory, name) or {}).get("processor_class") for name in (PROCESSOR, TOKENIZER)]
    name = PROCESSOR_MAPPING_NAMES.get(model_type) or next((name for name in stated if isinstance(name, str)), None)
    if name is None:
        raise InputError(f"{KEY}: {directory}: transformers has no processor for {model_type!r}, and no file names one")
    found = processor_class_from_name(name) if name in PROCESSOR_MAPPING_NAMES.values() else None
    if (package := missing_package([found])) is not None:
        raise InputError(f"{KEY}: {directory} has no usable processor: {needs(package)}")
    if not isinstance(found, type) or not issubclass(found, ProcessorMixin):
        raise InputError(f"{KEY}: {directory}: processor_class = {shown(name)}: not a processor of transformers")
    return found


class _Recorder:
    """A tokenizer that notes the text that it is given."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.__dict__.update(tokenizer=tokenizer, text=None)

    def __call__(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        self.__dict__["text"] = text
        return self.__dict__["tokenizer"](text, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["tokenizer"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["tokenizer"], name, value)


def marker_of(processor: Any) -> str:
    """The text that a processor takes for the place of an image.

    Raises:
        InputError: It has none.
    """
    marker = getattr(processor, "image_token", None)
    if not isinstance(marker, str) or not marker:
        raise InputError(f"{KEY}: {processor!r} has no image_token, which marks the place of an image in a prompt")
    return marker


def write_out(processor: Any, text: str, image: Image.Image, add_special_tokens: bool) -> tuple[str, Any]:
    """What the processor makes of a text with one image.

    Args:
        processor: Processor, of `load_processor`.
        text: Text with one marker.
        image: RGB image, of which only the size matters.
        add_special_tokens: Whether the tokenizer adds what it puts around every text.

    Returns:
        The text with the marker replaced, and all that the processor returns for it (`input_ids` …).
    """
    tokenizer = processor.tokenizer
    recorder = _Recorder(tokenizer)
    processor.tokenizer = recorder
    try:
        out = call(processor, text, image, add_special_tokens=add_special_tokens, images_kwargs=dict(CHEAP))
    finally:
        processor.tokenizer = tokenizer
    written = recorder.text
    return written if isinstance(written, str) else written[0], out


def call(processor: Any, text: str, image: Image.Image, **settings: Any) -> Any:
    """The processor's output for one text with one image, in torch tensors."""
    # a list of lists: some processors take a plain list for the images of one sample
    images = [image] if type(processor).__name__ in _FLAT else [[image]]
    out = processor(text=[text], images=images, return_tensors="pt", padding=True, **settings)
    out.pop("labels", None)
    return out


def blank(width: int, height: int) -> Image.Image:
    """An image of which only the size matters."""
    return Image.new("RGB", (width, height))


def runs_of(ids: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Run lengths of token ids."""
    found: list[tuple[int, int]] = []
    for token in ids:
        if found and found[-1][0] == token:
            found[-1] = (token, found[-1][1] + 1)
        else:
            found.append((token, 1))
    return tuple(found)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the special tokens, which no text is tokenized to unless it writes them out."""
    return frozenset(number for number, token in tokenizer.added_tokens_decoder.items() if token.special)


def image_span(ids: Sequence[int], placeholder: int, special: frozenset[int]) -> tuple[int, int]:
    """Where the image is in token ids: from the first placeholder to the last, and special tokens directly around them.

    Raises:
        ValueError: The token ids contain no placeholder.
    """
    if placeholder not in ids:
        raise ValueError("the processor writes no image placeholder for an image")
    start = list(ids).index(placeholder)
    stop = len(ids) - list(ids)[::-1].index(placeholder)
    while start and ids[start - 1] in special:
        start -= 1
    while stop < len(ids) and ids[stop] in special:
        stop += 1
    return start, stop


def tensors_for(processor_output: Any, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Those of a processor's tensors that the vision half takes; floating-point numbers as fp32."""
    found = {name: torch.as_tensor(processor_output[name]) for name in names if name in processor_output}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}
