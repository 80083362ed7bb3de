"""How many floating-point operations the frozen VLM takes. Pure arithmetic.

The sizes of the Qwen2 families are read from the configuration; what other VLMs take per token is counted
(`masp.vlm.cost.counting`).

What is counted: a matrix product of a parameter with a token is 2 FLOP per parameter; layers that are frozen but under
a gradient cost 4 (forward, and the gradient of their input; none for the weights). Attention is counted apart: 4
FLOP per query, key and channel forward (scores, weighted sum), and twice that again backward. Only what the mathematics
needs counts: causal attention over earlier positions, logits at supervised positions, no padding. Embedding look-ups,
norms, activations, softmax, rotary positions and the optimizer are left out (below 1 % at real sizes).

Sources: Kaplan et al. 2020 (arXiv 2001.08361, table 1) for 2 FLOP per parameter and token and 4 per attended pair and
channel; Qwen2-VL (arXiv 2409.12191) and Qwen2.5-VL (arXiv 2502.13923) for the encoders. The tests compare these
formulas with the operations that torch counts while the models run.
"""

from __future__ import annotations

import bisect
import statistics
from dataclasses import dataclass
from typing import Any, overload

from torch import Tensor
from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError

from masp.vlm.features import Grid


@dataclass(frozen=True)
class VisionShape:
    """The encoder with its merger."""

    depth: int
    width: int
    mlp_parameters: int
    """Weights of one block's MLP."""
    patch_values: int
    """Numbers in one patch: channels * frames * height * width."""
    merge_size: int
    """Patches per side that become one vision token."""
    out_width: int
    """D."""
    num_full_blocks: int
    """Blocks in which every patch attends to the whole image."""
    window: int | None
    """Vision tokens per side of the window that the other blocks attend in; None where there are none."""

    @property
    def block_parameters(self) -> int:
        """Weights of one block: query, key, value, output and the MLP."""
        return 4 * self.width**2 + self.mlp_parameters

    @property
    def merger_parameters(self) -> int:
        """Weights of the merger; it runs once per vision token, all else once per patch."""
        merged = self.width * self.merge_size**2
        return merged**2 + merged * self.out_width

    @property
    def num_parameters(self) -> int:
        """Weights of the whole encoder, without biases and norms."""
        return self.depth * self.block_parameters + self.patch_values * self.width + self.merger_parameters


@dataclass(frozen=True)
class LanguageShape:
    """The decoder and its projection to the vocabulary."""

    num_layers: int
    width: int
    """D."""
    num_heads: int
    num_kv_heads: int
    head_width: int
    mlp_width: int
    vocabulary: int

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer: query and output, key and value, and the gated MLP's three matrices."""
        attention = 2 * self.width * self.head_width * (self.num_heads + self.num_kv_heads)
        return attention + 3 * self.width * self.mlp_width

    @property
    def num_parameters(self) -> int:
        """Weights that a token meets, the vocabulary's projection included."""
        return self.num_layers * self.layer_parameters + self.width * self.vocabulary

    @property
    def token_flops(self) -> float:
        """FLOP of all layers per token, without attended pairs."""
        return 2.0 * self.num_layers * self.layer_parameters

    @property
    def gradient_token_flops(self) -> float:
        """The same forward and backward."""
        return 2 * self.token_flops

    @property
    def pairs(self) -> tuple[PairCost, ...]:
        """What attention takes."""
        return (PairCost(4.0 * self.num_layers * self.num_heads * self.head_width),)


@dataclass(frozen=True)
class PairCost:
    """What the layers of one kind take for attention."""

    flops: float
    """FLOP of all these layers per query and key."""
    window: int | None = None
    """Keys that a query sees at most, itself included; None: all earlier ones."""
    chunk: int | None = None
    """Keys are seen within chunks of so many; None: everywhere."""


@dataclass(frozen=True)
class LanguageCost:
    """What a decoder takes, as it was counted."""

    width: int
    """D."""
    vocabulary: int
    token_flops: float
    """FLOP of all layers per token, without attended pairs."""
    gradient_token_flops: float
    """The same forward and backward, with the gradient of the input."""
    pairs: tuple[PairCost, ...]
    is_estimate: bool
    """Whether the VLM could not be counted, so that its number of weights stands for it."""


Language = LanguageShape | LanguageCost


@dataclass(frozen=True)
class EncoderCurve:
    """What an encoder takes, as it was counted for a few sizes of images."""

    points: tuple[tuple[float, float], ...]
    """How much the encoder gets of an image (patches, or numbers in its pixel values), ascending, and FLOP for each of
    these."""
    is_estimate: bool
    """Whether the VLM could not be counted, so that its number of weights stands for it."""

    def flops(self, amount: float) -> float:
        """FLOP for one image. Between two points, FLOP per patch are linear: attention adds a square."""
        amounts = [x for x, _ in self.points]
        if len(amounts) == 1:
            return amount * self.points[0][1]
        right = min(max(bisect.bisect_left(amounts, amount), 1), len(amounts) - 1)
        (x0, y0), (x1, y1) = self.points[right - 1 : right + 1]
        return amount * (y0 + (y1 - y0) * (amount - x0) / (x1 - x0))


Encoder = VisionShape | EncoderCurve


def shapes(config) -> tuple[VisionShape, LanguageShape]:
    """Read the sizes out of the configuration of a Qwen2-VL or Qwen2.5-VL."""
    vision = config.vision_config
    windowed = config.model_type == "qwen2_5_vl"
    # the families name the same things differently: in Qwen2.5-VL `hidden_size` is the encoder's own width
    width = vision.hidden_size if windowed else vision.embed_dim
    mlp = 3 * width * vision.intermediate_size if windowed else 2 * width * int(width * vision.mlp_ratio)
    full = len({b for b in vision.fullatt_block_indexes if 0 <= b < vision.depth}) if windowed else vision.depth
    return (
        VisionShape(
            depth=vision.depth,
            width=width,
            mlp_parameters=mlp,
            patch_values=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
            merge_size=vision.spatial_merge_size,
            out_width=vision.out_hidden_size if windowed else vision.hidden_size,
            num_full_blocks=full,
            window=vision.window_size // vision.patch_size // vision.spatial_merge_size if windowed else None,
        ),
        language_shape(config),
    )


def language_shape(config) -> LanguageShape:
    """Read the sizes of a VLM's decoder out of its transformers configuration.

    Of experts, those that a token meets count; layers with a state count as layers with attention.
    """
    text = config.get_text_config()

    def stated(name: str) -> Any:
        try:
            return getattr(text, name, None)
        except AmbiguousGlobalPerLayerAttributeError:  # of most layers
            return statistics.mode(getattr(layer, name) for layer in text.per_layer_config)

    width, experts = stated("moe_intermediate_size"), 0
    for name in ("num_experts_per_tok", "top_k_experts", "moe_k"):
        experts = experts or stated(name) or 0
    if isinstance(width, (list, tuple)):
        width = width[0]
    mlp = width * experts + (stated("shared_expert_intermediate_size") or 0) if width and experts else None
    return LanguageShape(
        num_layers=text.num_hidden_layers,
        width=text.hidden_size,
        num_heads=text.num_attention_heads,
        num_kv_heads=stated("num_key_value_heads") or text.num_attention_heads,
        head_width=stated("head_dim") or text.hidden_size // text.num_attention_heads,
        mlp_width=mlp or stated("intermediate_size"),
        vocabulary=text.vocab_size,
    )


def encoder_flops(vision: VisionShape, grid: Grid) -> float:
    """FLOP of the encoder, merger included, for one image (no gradient).

    Args:
        vision: Sizes of the encoder.
        grid: Patches in time, height and width.
    """
    patches = grid[0] * grid[1] * grid[2]
    tokens = patches // vision.merge_size**2
    per_patch = vision.depth * vision.block_parameters + vision.patch_values * vision.width
    linear = 2.0 * (per_patch * patches + vision.merger_parameters * tokens)
    frame = grid[1] * grid[2]  # attention never leaves a frame
    pairs = vision.num_full_blocks * grid[0] * frame**2
    if vision.window is not None:
        pairs += (
            (vision.depth - vision.num_full_blocks) * grid[0] * _window_pairs(vision.window, vision.merge_size, grid)
        )
    return linear + 4.0 * pairs * vision.width


def _window_pairs(window: int, merge_size: int, grid: Grid) -> int:
    """Pairs of patches that share a window, in one frame; windows at the right and lower edge are cut off."""
    sides = []
    for patches in grid[1:]:
        whole, rest = divmod(patches // merge_size, window)
        sides.append(whole * (window * merge_size) ** 2 + (rest * merge_size) ** 2)
    # the windows are all products of a run of rows and a run of columns, so their squares sum to a product of sums
    return sides[0] * sides[1]


@overload
def language_flops(
    language: Language, *, prefix: float = 0, suffix: float, num_logits: float = 0, gradient: bool
) -> float: ...
@overload
def language_flops(
    language: Language, *, prefix: Tensor, suffix: Tensor, num_logits: Tensor, gradient: bool
) -> Tensor: ...
def language_flops(
    language: Language,
    *,
    prefix: float | Tensor = 0,
    suffix: float | Tensor,
    num_logits: float | Tensor = 0,
    gradient: bool,
) -> float | Tensor:
    """FLOP of one sequence in the language model; of several, given tensors `[N]`, those of each.

    Args:
        language: Sizes of the language model.
        prefix: Number of tokens that run first, without gradient, and leave keys and values.
        suffix: Number of tokens after them.
        num_logits: Number of positions of the suffix that are projected to the vocabulary.
        gradient: Whether the suffix is under a gradient (of its inputs, never of the weights).
    """
    pairs = [(kind.flops, *_pairs(kind, prefix, suffix)) for kind in language.pairs]
    total = language.token_flops * prefix
    for flops, early, _ in pairs:
        total = total + flops * early
    total = total + (language.gradient_token_flops if gradient else language.token_flops) * suffix
    for flops, _, late in pairs:
        total = total + (3 if gradient else 1) * flops * late
    logits = 2.0 * language.width * language.vocabulary * num_logits
    return total + (2 if gradient else 1) * logits


@overload
def _pairs(kind: PairCost, prefix: float, suffix: float) -> tuple[float, float]: ...
@overload
def _pairs(kind: PairCost, prefix: float | Tensor, suffix: float | Tensor) -> tuple[float | Tensor, float | Tensor]: ...
def _pairs(kind: PairCost, prefix: float | Tensor, suffix: float | Tensor) -> tuple[float | Tensor, float | Tensor]:
    """Pairs that causal attention multiplies in the prefix, and in the suffix behind it."""
    if kind.window is None and kind.chunk is None:
        return prefix * (prefix + 1) / 2, suffix * prefix + suffix * (suffix + 1) / 2
    early = _limited_pairs(kind, prefix)
    return early, _limited_pairs(kind, prefix + suffix) - early


def _limited_pairs(kind: PairCost, length: float | Tensor) -> float | Tensor:
    if kind.window is not None:
        full = length.clamp(max=kind.window) if isinstance(length, Tensor) else min(length, kind.window)
        return full * (full + 1) / 2 + (length - full) * kind.window
    assert kind.chunk is not None
    rest = length % kind.chunk
    return (length - rest) * (kind.chunk + 1) / 2 + rest * (rest + 1) / 2


@overload
def aspect_module_flops(width: int, num_queries: int, num_tokens: float, gradient: bool) -> float: ...
@overload
def aspect_module_flops(width: int, num_queries: int, num_tokens: Tensor, gradient: bool) -> Tensor: ...
def aspect_module_flops(width: int, num_queries: int, num_tokens: float | Tensor, gradient: bool) -> float | Tensor:
    """FLOP of one aspect module for one image, as `masp.models.trainable` groups the arithmetic; for each
    of several images where `num_tokens` is a tensor `[N]`.

    Each query meets four `[D, D]` weights (query, key, value, output) and every feature twice (score, weighted mean).
    Training adds twice the former (gradients of input and weights) and once the latter (features need none).

    Args:
        width: D.
        num_queries: N.
        num_tokens: T.
        gradient: Whether it is being trained.
    """
    projections = 4 * 2.0 * num_queries * width**2
    attention = 2 * 2.0 * num_queries * num_tokens * width
    return 3 * projections + 2 * attention if gradient else projections + attention


PEAK_TFLOPS = {
    # by a part of the device's name, more exact ones first: dense, bf16 (fp16 on V100 and T4), from the data sheets
    "GB200": 2500,
    "B200": 2250,
    "B100": 1800,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H20": 148,
    "H800": 989,
    "A100": 312,
    "A800": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "A40": 150,
    "A30": 165,
    "A10G": 70,
    "A10": 125,
    "RTX 6000 Ada": 364,
    "RTX A6000": 155,
    "RTX 4090": 165,
    "RTX 3090": 71,
    "V100": 125,
    "T4": 65,
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """FLOP/s that a GPU could reach at most in half precision; None where it is not known.

    Args:
        device_name: Name of the GPU, as `torch.cuda.get_device_name` gives it.
        precision: `bf16`, `fp16` or `fp32`; of the last no peak is known, since TF32 may or may not be in use.
    """
    if precision == "fp32":
        return None
    if precision == "bf16" and any(name in device_name for name in ("V100", "T4")):
        return None  # emulated
    return next((1e12 * tflops for name, tflops in PEAK_TFLOPS.items() if name in device_name), None)
