"""What is trained around the frozen VLM: the aspect modules of stage 1 and the soft prompt of stage 2.

An aspect module is a few learned queries and one cross-attention, from features to aspect tokens. The soft prompt is a
few learned vectors, a parameter of its own and never rows of the embedding table.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class AspectModule(nn.Module):
    """`z = MHA(q, F, F)` of one aspect, with `torch.nn.MultiheadAttention(D, num_heads=1)`'s parameters.

    The arithmetic is regrouped, exactly: the key projection is applied to the `N` queries instead of the `T` features
    (`(q Wq)(F Wk)^T = (q Wq Wk^T) F^T`), and the value projection to the `N` weighted means (the weights of a query
    sum to one, so the value bias passes through). That replaces `4 T D^2` operations by `4 N D^2 + 4 N T D`.
    Parameters are held directly, not in a child module, so that ZeRO-3 gathers them when this module runs.
    """

    def __init__(self, hidden_size: int, num_queries: int, init_scale: float = 1.0):
        super().__init__()
        attention = nn.MultiheadAttention(hidden_size, num_heads=1, batch_first=True)
        self.query = nn.Parameter(torch.randn(num_queries, hidden_size) * init_scale)
        self.in_proj_weight = attention.in_proj_weight
        self.in_proj_bias = attention.in_proj_bias
        self.out_proj_weight = attention.out_proj.weight
        self.out_proj_bias = attention.out_proj.bias

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Attend to the features.

        Args:
            features: `[B, T, D]`, padded.
            mask: `[B, T]`, true at real features; every row has at least one.

        Returns:
            Aspect tokens `[B, N, D]` and attention weights `[B, N, T]`.
        """
        hidden = features.shape[-1]
        w_query, w_key, w_value = self.in_proj_weight.split(hidden)
        b_query, b_key, b_value = self.in_proj_bias.split(hidden)
        query = torch.addmm(b_query, self.query, w_query.T) * hidden**-0.5
        # The key bias adds the same number to all of a query's scores, which softmax ignores. Its true gradient is
        # zero; left in, rounding noise would be its gradient, and Adam would scale that noise up to full steps.
        scores = (query @ w_key) @ features.transpose(1, 2) + (b_key * 0).sum()
        scores = scores.float().masked_fill(~mask[:, None, :], float("-inf"))
        weights = scores.softmax(-1).to(features.dtype)
        mean = weights @ features
        values = mean @ w_value.T + b_value
        return values @ self.out_proj_weight.T + self.out_proj_bias, weights


class AspectModules(nn.Module):
    """The aspect modules of several aspects, in the order of the configuration."""

    def __init__(
        self,
        aspects: Sequence[str],
        hidden_size: int,
        num_queries: int = 5,
        init_scale: float = 1.0,
        kind: type[AspectModule] = AspectModule,
    ):
        super().__init__()
        self.aspects = tuple(aspects)
        self.hidden_size, self.num_queries = hidden_size, num_queries
        self.by_aspect = nn.ModuleDict({a: kind(hidden_size, num_queries, init_scale) for a in aspects})

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Features `[B, T, D]` with mask `[B, T]` -> aspect tokens `[B, A, N, D]`; every aspect takes part."""
        return torch.stack([module(features, mask)[0] for module in self.by_aspect.values()], dim=1)

    def attention(self, features: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Where each aspect looks: aspect -> weights `[B, N, T]`, each query's summing to one over real features."""
        return {aspect: module(features, mask)[1] for aspect, module in self.by_aspect.items()}


def to_released(modules: AspectModules) -> dict:
    """The released checkpoint's structure: `{"q_view", "cross_attn", "fuser"}`, tensors cloned to the CPU in fp32."""

    def plain(tensor: Tensor) -> Tensor:
        return tensor.detach().float().cpu().clone()

    parameters = {a: dict(m.named_parameters()) for a, m in modules.by_aspect.items()}
    return {
        "q_view": {a: plain(p["query"]) for a, p in parameters.items()},
        "cross_attn": {
            a: {
                "in_proj_weight": plain(p["in_proj_weight"]),
                "in_proj_bias": plain(p["in_proj_bias"]),
                "out_proj.weight": plain(p["out_proj_weight"]),
                "out_proj.bias": plain(p["out_proj_bias"]),
            }
            for a, p in parameters.items()
        },
        "fuser": None,
    }


class SoftPrompt(nn.Module):
    """`P [num_tokens, D]`."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self) -> Tensor:
        return self.weight


def initial_soft_prompt(
    kind: str, num_tokens: int, embeddings: Tensor, text_ids: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    """Initial values of a soft prompt.

    Args:
        kind: Kind of start: `normal` (unit normal times the embeddings' standard deviation), `vocabulary` (embeddings
            of tokens drawn at random), `question` or `padding_rows` (embeddings of `text_ids`, repeated to length).
        num_tokens: Length of the soft prompt.
        embeddings: Word embeddings of the VLM `[V, D]`.
        text_ids: Rows of `embeddings` that `question` or `padding_rows` starts from.
        generator: CPU generator of the random draws.

    Returns:
        `[num_tokens, D]`, fp32.
    """
    if kind in ("question", "padding_rows"):
        ids = torch.tensor([text_ids[i % len(text_ids)] for i in range(num_tokens)])
        return embeddings[ids.to(embeddings.device)].float()
    if kind == "vocabulary":
        ids = torch.randint(len(embeddings), (num_tokens,), generator=generator)
        return embeddings[ids.to(embeddings.device)].float()
    noise = torch.randn(num_tokens, embeddings.shape[1], generator=generator)
    return noise.to(embeddings.device) * embeddings.float().std()
