"""The soft prompt: a few learned vectors, a parameter of its own and never rows of the embedding table."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
            of tokens drawn at random) or `question` (embeddings of `text_ids`, repeated to length).
        num_tokens: Length of the soft prompt.
        embeddings: Word embeddings of the VLM `[V, D]`.
        text_ids: Token ids that `question` starts from.
        generator: CPU generator of the random draws.

    Returns:
        `[num_tokens, D]`, fp32.
    """
    if kind == "question":
        ids = torch.tensor([text_ids[i % len(text_ids)] for i in range(num_tokens)])
        return embeddings[ids.to(embeddings.device)].float()
    if kind == "vocabulary":
        ids = torch.randint(len(embeddings), (num_tokens,), generator=generator)
        return embeddings[ids.to(embeddings.device)].float()
    noise = torch.randn(num_tokens, embeddings.shape[1], generator=generator)
    return noise.to(embeddings.device) * embeddings.float().std()
