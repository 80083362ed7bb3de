"""Verifies a VLM by measurement: what it says of one image whole, against what its halves say.

The stock model of transformers runs from pixels; ours encodes, keeps the features as a cache in fp32 would, and runs
the language half over them, whole and behind a frozen prefix.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from masp.cache.codec import restore, store
from masp.errors import InputError
from masp.files.text import shown
from masp.models.forward import run
from masp.models.sequence import build_sequence, make_batch
from masp.vlm.families import SYSTEM_TURN, load_config, model_class, resolve_directory
from masp.vlm.features import Features, ImageLayout
from masp.vlm.files.directory import CONFIG, read_json
from masp.vlm.files.errors import plain_vlm_errors
from masp.vlm.files.template import chat_turn
from masp.vlm.language import LanguageHalf, load_language_half
from masp.vlm.loading import AttentionError, quiet_transformers
from masp.vlm.preprocessor import Preprocessor, load_preprocessor
from masp.vlm.processor import call, load_processor, marker_of
from masp.vlm.prompt import Prompt, load_prompt
from masp.vlm.vision import load_vision_half

QUESTION = "Which emotion does this image evoke? Choose one of: joy, fear."
SIZE = (150, 100)
"""Width and height of the image."""
HEADERS = (SIZE, (60, 75), (224, 224))
"""Sizes at which tokens predicted from a header are compared with those of an image."""
STOCK, PREFIX = 2e-6, 1e-5
"""Largest allowed differences of logits of size 2 and less in fp32; of larger ones, in proportion."""


@dataclass(frozen=True)
class FamilyCheck:
    """What was found."""

    family: str | None
    """`model_type`; None if config.json does not say it."""
    supported: bool
    reason: str | None
    """Why it is refused, or does not pass."""
    stock_difference: float | None = None
    """Largest difference between the logits of the stock model and ours."""
    prefix_difference: float | None = None
    """The same between a frozen prefix and the whole sequence at once; None where nothing can run before the rest."""
    tokens: int | None = None
    """Vision tokens of the image."""
    tokens_predicted: int | None = None
    """The same, predicted from its header."""
    passed: bool = False


@dataclass(frozen=True)
class Halves:
    """Memory of the weights of each half, in bytes."""

    vision: int
    language: int


def check_family(path: str, attention: str | None = None, device: str = "cpu") -> tuple[FamilyCheck, Halves | None]:
    """Compare a VLM's own forward pass with ours, on one image in fp32. One model is in memory at a time.

    Args:
        path: Directory of the VLM, or its hub name.
        attention: Implementation of attention, `sdpa` or `eager`; None for `sdpa` where the VLM has it.
        device: `cpu` or `cuda`.

    Returns:
        The result, which says a refusal too; and the memory of both halves, None if it is refused.
    """
    family = None
    try:
        directory = resolve_directory(path)
        stated = (read_json(directory, CONFIG) or {}).get("model_type")
        family = stated if isinstance(stated, str) else None
        try:
            return _measured(path, directory, attention or "sdpa", device)
        except AttentionError:
            if attention is not None:
                raise
        return _measured(path, directory, "eager", device)
    except InputError as error:
        return FamilyCheck(family, False, str(error)), None


def _measured(path: str, directory: Path, attention: str, device: str) -> tuple[FamilyCheck, Halves]:
    config = load_config(directory)
    prompt, preprocessor, image = load_prompt(path), load_preprocessor(path), _image(*SIZE)
    inputs, layout = preprocessor(image)
    vision = load_vision_half(path, torch.float32, device, attention)
    (features,) = vision.encode([inputs], [layout])
    size_of_vision = _bytes(vision.model)
    del vision
    features = restore(store(features, "fp32"))
    stock = _stock_logits(directory, config, prompt, image, attention, device).cpu()
    gc.collect()  # the whole VLM, which is none of the halves that loading looks for
    language = load_language_half(path, torch.float32, device, attention)
    whole, behind = _our_logits(language, prompt, features, layout, device)
    scale = max(1.0, float(stock.abs().max()) / 2)
    stock_difference = _difference(whole, stock) if whole.shape == stock.shape else float("inf")
    prefix_difference = None if behind is None else _difference(behind, whole[-len(behind) :])
    wrong = _wrong(stock_difference, prefix_difference, scale, preprocessor)
    result = FamilyCheck(
        family=config.model_type,
        supported=True,
        reason=wrong,
        stock_difference=stock_difference,
        prefix_difference=prefix_difference,
        tokens=layout.num_tokens,
        tokens_predicted=preprocessor.num_tokens(*SIZE),
        passed=wrong is None,
    )
    return result, Halves(size_of_vision, _bytes(language.model))


def _image(width: int, height: int) -> Image.Image:
    """A smooth image of all colors, always the same."""
    small = np.random.default_rng(0).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def _stock_logits(
    directory: Path, config: Any, prompt: Prompt, image: Image.Image, attention: str, device: str
) -> Tensor:
    """Logits `[L, V]` of the stock model for the whole prompt, from pixels."""
    processor = load_processor(directory, config)
    tokenizer, marker, has_system = processor.tokenizer, marker_of(processor), config.model_type in SYSTEM_TURN
    named = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    turn = chat_turn(directory, marker, named, has_system)
    text = turn.before + marker + turn.between + QUESTION + turn.closing
    adds = not has_system and not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))
    out = call(processor, text, image, add_special_tokens=adds)
    with plain_vlm_errors(f"the stock model in {directory} cannot run"), quiet_transformers():
        model = model_class(config).from_pretrained(
            directory, config=config, dtype=torch.float32, attn_implementation=attention, use_safetensors=True,
            trust_remote_code=False,
        )  # fmt: skip
        model = model.to(device).eval()
        given = {name: tensor.to(device) for name, tensor in out.items() if isinstance(tensor, Tensor)}
        given = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in given.items()}
        with torch.inference_mode():
            return model(**given, use_cache=False).logits[0].float()


@torch.inference_mode()
def _our_logits(
    language: LanguageHalf, prompt: Prompt, features: Features, layout: ImageLayout, device: str
) -> tuple[Tensor, Tensor | None]:
    """Logits of the whole sequence `[L, V]`, and those behind a frozen prefix, None where there can be none."""
    sequence = build_sequence(
        prompt, QUESTION, None, num_aspect_tokens=0, image=layout, num_soft_tokens=0, layout="after_image"
    )
    found: list[Tensor | None] = []
    for frozen in (False, True):
        batch = make_batch(prompt, [sequence], [features], row_image=[0], frozen_prefix=frozen)
        if frozen and batch.prefix is None:
            found.append(None)
            continue
        batch = batch.to(device, torch.float32)
        found.append(language.logits(run(language, batch, None, None))[0].cpu())
    whole, behind = found
    assert whole is not None
    return whole, behind


def _wrong(stock: float, prefix: float | None, scale: float, preprocessor: Preprocessor) -> str | None:
    """What is beyond its bound; None if nothing is."""
    if not stock <= STOCK * scale:
        return f"logits differ from the stock model's by {stock:.2g} (at most {STOCK * scale:.2g} is rounding)"
    if prefix is not None and not prefix <= PREFIX * scale:
        return f"logits behind a frozen prefix differ by {prefix:.2g} (at most {PREFIX * scale:.2g} is rounding)"
    for width, height in HEADERS:
        real, predicted = preprocessor(_image(width, height))[1].num_tokens, preprocessor.num_tokens(width, height)
        if real != predicted:
            return f"an image of {width} x {height} has {real} tokens, but its header says {predicted}"
    return None


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.cpu() - other.cpu()).abs().max())


def _bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def describe(result: FamilyCheck, halves: Halves | None) -> Sequence[str]:
    """The result in lines for people."""
    if not result.supported or halves is None:
        return [f"refused: {result.reason}"]
    prefix = "none can run apart" if result.prefix_difference is None else f"{result.prefix_difference:.1e}"
    return [
        f"{shown(result.family)}: {'verified' if result.passed else f'DIFFERS: {result.reason}'}",
        f"{'stock model':<14} largest difference of logits {result.stock_difference:.1e}",
        f"{'frozen prefix':<14} {prefix}",
        f"{'tokens':<14} {result.tokens} of {SIZE[0]} x {SIZE[1]} pixels, {result.tokens_predicted} by the header",
        f"{'memory, fp32':<14} vision half {halves.vision / 1e9:.2f} GB, language half {halves.language / 1e9:.2f} GB",
    ]
