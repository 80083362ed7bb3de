"""Attention of transformers' models with torch's fused kernels, without repeating the keys of grouped queries."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward

UNSUPPORTED = ("softcap", "position_bias", "cache", "output_attentions", "s_aux")
"""Arguments that transformers' own function handles, or refuses."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What the models call for `sdpa`.

    Where several heads of queries share keys, transformers repeats keys and values for each if there is a mask. Behind
    a long prefix, few queries look at many keys: repeating them, and adding up their gradients, takes as long as the
    attention. Here the queries that share keys become more queries of one head instead.

    Args:
        module: The layer.
        query: `[B, H, L, d]`.
        key: `[B, H / n, S, d]`.
        value: `[B, H / n, S, dv]`.
        attention_mask: `[B or 1, 1 or H, L, S]`, boolean or additive; None for causal attention, or one query.
        dropout: Of the weights.
        scaling: Of the scores; None for `d^-1/2`.
        options: More that transformers gives.

    Returns:
        `[B, L, H, dv]`, and None for the weights.
    """
    heads, length = query.shape[1:3]
    shared = heads // key.shape[1]
    is_plain = not any(options.get(name) is not None for name in UNSUPPORTED if options.get(name) is not False)
    if shared < 2 or length < 2 or attention_mask is None or attention_mask.shape[1] != 1 or not is_plain:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    queries = query.reshape(len(query), key.shape[1], shared * length, query.shape[-1])
    mask = attention_mask.repeat(1, 1, shared, 1)
    found = functional.scaled_dot_product_attention(
        queries, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling
    )
    return found.reshape(len(found), heads, length, value.shape[-1]).transpose(1, 2).contiguous(), None
