"""How many floating-point operations the halves of any VLM take, counted while they run without weights.

A half is built on the meta device, where tensors have shapes and no numbers, and torch counts its matrix products while
it runs there: whole, in a fraction of a second, at any size. Integers (grids, masks, positions) are real, because code
of the encoders branches on them. The rules of what counts are those of `masp.vlm.cost.flops`.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from masp.vlm.cost.flops import (
    Encoder,
    EncoderCurve,
    LanguageCost,
    LanguageShape,
    PairCost,
    VisionShape,
    encoder_flops,
    language_shape,
    shapes,
)
from masp.vlm.families import Family, describe, load_config, model_class, resolve_directory
from masp.vlm.features import ImageLayout
from masp.vlm.language import LanguageHalf, Tokens
from masp.vlm.loading import decoder_of, part_class, quiet_transformers
from masp.vlm.vision import Inputs, VisionHalf

KNOWN = ("qwen2_vl", "qwen2_5_vl")
"""Families whose formulas in `masp.vlm.cost.flops` were compared with what torch counts."""
_LENGTHS = (64, 128)
"""Tokens of two runs; recurrent layers work in chunks of 64."""
_NUM_SIZES = 5
"""Sizes of images that are counted; in between, operations per pixel are nearly linear in the number of pixels."""
_INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class _OnMeta(TorchDispatchMode):
    """Lets real tensors meet those of the meta device: the result is on the meta device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        device = kwargs.get("device")
        if not any(tensor.is_meta for tensor in tensors):
            # masks and positions that are made for the meta device stay real
            return func(*args, **(kwargs if device is None else {**kwargs, "device": torch.device("cpu")}))
        if device is not None:  # what has no numbers cannot get any
            kwargs = {**kwargs, "device": torch.device("meta")}
        if not all(tensor.is_meta for tensor in tensors):
            if func in _INDEXED:  # how many are chosen is known from a real mask alone
                args = (args[0], _numbers(args[1]), *args[2:])
            args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        return func(*args, **kwargs)


def _numbers(indices: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Indices with real masks replaced by the places where they are true."""
    found: list[torch.Tensor | None] = []
    for index in indices:
        is_mask = index is not None and index.dtype == torch.bool and not index.is_meta
        found += index.nonzero(as_tuple=True) if is_mask and index is not None else [index]
    return found


def _counted(function: Callable[[], object]) -> tuple[float, Mapping[str, Mapping[Any, int]]]:
    """FLOP of a function, and by module."""
    with _OnMeta(), FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops()), counter.get_flop_counts()


def _built(config: Any, part: Literal["vision", "language"]) -> Any:
    """A half on the meta device, with attention as plain matrix products and only the experts that a token meets."""
    with torch.device("meta"), quiet_transformers():
        return part_class(model_class(config), part)._from_config(
            copy.deepcopy(config), dtype=torch.float32, attn_implementation="eager", experts_implementation="batched_mm"
        )


def embedding_scale_of(config: Any) -> float:
    """The factor by which a VLM multiplies its word embeddings, see `LanguageHalf.embedding_scale`; no weight is read.

    Args:
        config: Its configuration, of `load_config`.
    """
    table = _built(config, "language").get_input_embeddings()
    return float(getattr(table, "scalar_embed_scale", 1.0))  # its buffer `embed_scale` has no number here


@functools.lru_cache(maxsize=8)
def language_cost(path: str | Path) -> LanguageShape | LanguageCost:
    """What the decoder of the VLM at `path` takes per token and attended pair; by formula where that is known.

    Where it cannot be counted, the cost of reading its weights stands for it (`is_estimate`).

    Raises:
        InputError: The directory or its configuration is of no use.
    """
    config = load_config(resolve_directory(str(path)))
    if config.model_type in KNOWN:
        return language_shape(config)
    family = describe(config)
    half = _built(config, "language").requires_grad_(False).eval()
    try:
        return _counted_language(LanguageHalf(half, counts_only=True), family)
    except Exception:  # code of transformers that needs numbers; an estimate is enough for a plan and a log
        return _estimated_language(half, family)


def _counted_language(half: LanguageHalf, family: Family) -> LanguageCost:
    short, long = (_run(half, length, gradient=False) for length in _LENGTHS)
    layers = dict(zip(_layer_names(half), _layer_kinds(half, family), strict=True))
    by_kind: dict[str, float] = {}
    for name, kind in layers.items():
        square = _square(sum(short[1].get(name, {}).values()), sum(long[1].get(name, {}).values()))
        by_kind[kind] = by_kind.get(kind, 0.0) + square
    square = sum(by_kind.values())
    length = _LENGTHS[1]
    token = long[0] / length - square * length
    with_gradient, _ = _run(half, length, gradient=True)
    limit = family.window, getattr(half.text, "attention_chunk_size", None)
    return LanguageCost(
        width=family.hidden_size,
        vocabulary=family.vocab_size,
        token_flops=token,
        # the attended pairs take twice again what they took forward: gradients of both products' inputs
        gradient_token_flops=with_gradient / length - 3 * square * length,
        pairs=tuple(
            PairCost(
                flops=flops,
                window=limit[0] if kind == "sliding_attention" else None,
                chunk=limit[1] if kind == "chunked_attention" else None,
            )
            for kind, flops in by_kind.items()
            if flops > 0
        ),
        is_estimate=False,
    )


def _square(short: float, long: float) -> float:
    """The part of two counts that grows with the square of the length, per pair."""
    first, second = _LENGTHS
    return max(0.0, (long / second - short / first) / (second - first))


def _layer_names(half: LanguageHalf) -> list[str]:
    names = {id(module): name for name, module in half.named_modules()}
    return [f"{type(half).__name__}.{names[id(layer)]}" for layer in half.decoder.layers]


def _layer_kinds(half: LanguageHalf, family: Family) -> list[str]:
    kinds = getattr(half.text, "layer_types", None) or [next(iter(family.layer_types))] * len(half.decoder.layers)
    return list(kinds)[: len(half.decoder.layers)]


def _run(half: LanguageHalf, length: int, gradient: bool) -> tuple[float, Mapping[str, Mapping[Any, int]]]:
    ids, yes = torch.zeros(1, length, dtype=torch.long), torch.ones(1, length, dtype=torch.bool)
    types = dict.fromkeys((*half.family.mask_types, "moe_mm_token_type_ids"), ids)
    if "moe_mm_token_type_ids" not in half.takes:
        del types["moe_mm_token_type_ids"]
    embeds = torch.empty(1, length, half.hidden_size, device="meta", requires_grad=gradient)

    def run() -> None:
        with torch.set_grad_enabled(gradient):
            out = half(embeds, yes, torch.arange(length).expand(3, 1, -1), None, Tokens(ids, yes, ~yes, types))
            if gradient:
                out.backward(torch.empty_like(out))

    return _counted(run)


def _estimated_language(model: Any, family: Family) -> LanguageCost:
    """2 FLOP per weight of the decoder and token, and attention by the configuration."""
    decoder, text = decoder_of(model), model.config.get_text_config()
    table = model.get_input_embeddings()
    experts = getattr(text, "num_experts_per_tok", None) or getattr(text, "top_k_experts", None)
    number = next((n for name in ("num_experts", "n_routed_experts") if (n := getattr(text, name, None))), None)
    weights = 0.0
    for name, parameter in decoder.named_parameters():
        if parameter is not table.weight:
            share = experts / number if experts and number and ".experts." in f".{name}" else 1.0
            weights += share * parameter.numel()
    heads = text.num_attention_heads
    try:
        width = getattr(text, "head_dim", None) or text.hidden_size // heads
    except (AttributeError, RuntimeError):  # it differs between layers
        width = text.hidden_size // heads
    pair = PairCost(4.0 * len(decoder.layers) * heads * width)
    return LanguageCost(family.hidden_size, family.vocab_size, 2 * weights, 4 * weights, (pair,), is_estimate=True)


def known_encoder(config: Any) -> VisionShape | None:
    """The formula of a VLM's encoder; None if none is known."""
    return shapes(config)[0] if config.model_type in KNOWN else None


def image_flops(encoder: Encoder, layout: ImageLayout) -> float:
    """FLOP of the encoder for an image, by how it lies in a prompt."""
    if isinstance(encoder, VisionShape):
        assert layout.grid is not None  # families with a formula have grids
        return encoder_flops(encoder, layout.grid)
    return encoder.flops(encoder_amount(layout))


def encoder_amount(layout: ImageLayout) -> int:
    """How much the encoder gets of an image: patches, or where they are not known, vision tokens."""
    return layout.num_tokens if layout.grid is None else math.prod(layout.grid)


def encoder_curve(
    path: str | Path,
    sizes: Iterable[tuple[float, tuple[int, int]]],
    prepare: Callable[[int, int], tuple[Inputs, ImageLayout]],
) -> EncoderCurve:
    """What the encoder of the VLM at `path` takes for images, counted at a few sizes.

    Args:
        path: Directory of the VLM, or its hub name.
        sizes: Of each image how much its encoder gets (patches, or numbers in its pixel values), and its width and
            height in pixels.
        prepare: Prepares an image of a width and height.
    """
    by_amount = dict(sorted(dict(sizes).items()))
    amounts = list(by_amount)
    last = len(amounts) - 1
    places = sorted({round(k * last / (_NUM_SIZES - 1)) for k in range(_NUM_SIZES)})
    half = VisionHalf(_built(load_config(resolve_directory(str(path))), "vision"))
    half.device = torch.device("cpu")  # where inputs are real
    points, is_estimate = [], False
    for amount in (amounts[place] for place in places):
        inputs, layout = prepare(*by_amount[amount])
        try:
            flops, _ = _counted(lambda inputs=inputs, layout=layout: half.encode([inputs], [layout]))  # type: ignore[misc]
        except Exception:  # as for the decoder
            flops, is_estimate = _estimated_encoder(half.model, inputs, layout), True
        points.append((amount, flops / amount))
    return EncoderCurve(tuple(points), is_estimate)


def _estimated_encoder(model: nn.Module, inputs: Inputs, layout: ImageLayout) -> float:
    """2 FLOP per weight and patch."""
    vision = getattr(model.config, "vision_config", None)
    side = getattr(vision, "patch_size", None)
    values = sum(tensor.numel() for tensor in inputs.values() if tensor.is_floating_point())
    patches = values / (3 * side**2) if isinstance(side, int) else layout.num_tokens
    return 2.0 * sum(parameter.numel() for parameter in model.parameters()) * patches
