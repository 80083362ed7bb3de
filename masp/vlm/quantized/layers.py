"""Layers of a frozen decoder that keep their weights in 8 or 4 bits, quantized one by one as they are read.

torchao's own 4-bit tensors exist for GPUs alone, and their products have no gradient. Here integers and scales are
ordinary frozen parameters, which ZeRO, `recompute_layers` and `Module.to` treat like any others, and become a matrix
for the time of a product. A batch has hundreds of tokens, so the product takes longer than that; and unlike a product
of quantized activations it does not depend on what else is in the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from masp.config.schema import Quantization
from masp.vlm.quantized.rounding import Kind, Rounded, can_be_rounded, restored, rounded


class _Quantizing(nn.Module):
    """What layers have that quantize a weight the moment they are given it.

    In place of the parameter NAME they then have `NAME_values`, `NAME_scale` and in `int4` `NAME_zero_point`, and the
    attribute NAME is the matrix, made anew whenever it is asked for.
    """

    kind: Kind
    tables: dict[str, torch.Size]
    """Shapes of the weights that are quantized, by name."""

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name not in self.tables or param is None or param.is_meta:
            super().register_parameter(name, param)
            return
        found = rounded(param.detach().flatten(0, -2), self.kind)
        self._parameters.pop(name, None)
        # transformers marks the parameters that it has read; a layer with this mark it does not look at again
        vars(self)["_is_hf_initialized"] = True
        for part, tensor in vars(found).items():
            if tensor is not None:
                frozen = nn.Parameter(tensor.contiguous(), requires_grad=False)
                frozen._is_hf_initialized = True  # type: ignore[attr-defined]
                super().register_parameter(f"{name}_{part}", frozen)

    def matrix(self, name: str) -> Tensor:
        """A weight in its own shape and dtype; on the meta device until it has been read."""
        found = self._parameters
        if (unread := found.get(name)) is not None:
            return unread
        values, scale = found[f"{name}_values"], found[f"{name}_scale"]
        assert values is not None and scale is not None  # both were registered
        return restored(Rounded(values, scale, found.get(f"{name}_zero_point")), self.kind).view(self.tables[name])


def _weight(name: str) -> property:
    return property(lambda layer: layer.matrix(name))


class QuantizedLinear(_Quantizing, nn.Linear):
    """A linear layer that quantizes its weight."""

    weight = _weight("weight")

    def forward(self, input: Tensor) -> Tensor:
        return _Product.apply(input, self)


class _Product(torch.autograd.Function):
    """A product whose matrix is made anew for the gradient, not kept from the forward pass."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return functional.linear(input, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ ctx.layer.weight, None


def make_quantized(decoder: nn.Module, quantization: Quantization) -> None:
    """Give the layers of a decoder, whose weights have not been read yet, weights that are quantized when they are.

    That is linear layers, and the tables `[experts, rows, columns]` of mixtures of experts. The embedding table and
    the vocabulary projection are outside of the layers and stay as they are: the table is only looked up, and the
    projection decides between categories by small differences.

    The matrix of a linear layer lives for the time of a product; those of experts, which transformers multiply, live
    until the gradient is there, unless the layers are recomputed.

    Args:
        decoder: The decoder stack, on the meta device.
        quantization: Value of `vlm.quantization`.
    """
    if quantization == "none":
        return
    for module in list(decoder.get_submodule("layers").modules()):
        if type(module) is nn.Linear:
            tables = {"weight": module.weight}
            base: type = QuantizedLinear
        elif isinstance(module, _ConvNd):
            continue
        else:
            tables = {name: p for name, p in module._parameters.items() if p is not None and p.dim() == 3}
            base = type(module)
        shapes = {name: p.shape for name, p in tables.items() if can_be_rounded(p.shape[-1], quantization)}
        if not shapes:
            continue
        vars(module).update(kind=quantization, tables=shapes)
        # a class of the same name, for code that asks for the layer's class
        if base is QuantizedLinear:
            module.__class__ = base
        else:
            module.__class__ = type(base.__name__, (_Quantizing, base), {name: _weight(name) for name in shapes})
