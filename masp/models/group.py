"""Several soft prompts around one frozen language model, behind one pass of what comes before them.

In layout `after_image` everything before the soft prompt is frozen and the same for all of them. It runs once per
batch, without gradient; then the members run one after another behind its keys and values, which they only read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from masp.models.forward import run_prefix, run_suffix
from masp.models.losses import losses_of_rows
from masp.models.sequence import Batch
from masp.models.trainable import AspectModules, SoftPrompt
from masp.vlm.caches import read_only
from masp.vlm.language import LanguageHalf


class GroupModel(nn.Module):
    """Members of a group: each a soft prompt of its own, with the same aspect modules and language model.

    Args:
        language: Language half of the VLM.
        aspect_modules: Frozen aspect modules; None for prompts without aspect tokens.
        soft_prompts: Soft prompt of each member.
    """

    def __init__(
        self, language: LanguageHalf, aspect_modules: AspectModules | None, soft_prompts: Sequence[SoftPrompt]
    ):
        super().__init__()
        self.language = language
        self.aspect_modules = None if aspect_modules is None else aspect_modules.requires_grad_(False)
        self.members = nn.ModuleList(soft_prompts)

    def parts(self) -> dict[str, nn.Module]:
        """What is trained: member by number."""
        return {str(number): member for number, member in enumerate(self.members)}

    def forward(
        self,
        batches: Sequence[Batch],
        members: Sequence[int] = (),
        prefix: Any = None,
        gradients: Sequence[Tensor | None] | None = None,
    ) -> Any:
        """Run what all members share, or some members behind it, or hand over gradients.

        Args:
            batches: A batch with a prefix, of any member; or for each of `members` its own, whose features are not
                looked at.
            members: Numbers of the members, which run one after another; none for the prefix.
            prefix: What the prefix left.
            gradients: Gradient of each member, `[P, D]` fp32; None for one that does not move.

        Returns:
            What the prefix leaves; of each member the losses of the rows `[B]`, fp32; for gradients a number whose
            derivative they are.
        """
        if gradients is not None:
            held = (
                (soft_prompt().float(), gradient) for soft_prompt, gradient in zip(self.members, gradients, strict=True)
            )
            return sum((value * (0.0 if gradient is None else gradient)).sum() for value, gradient in held)
        if not members:
            return self._prefix(batches[0])
        passes = [
            (run_suffix(self.language, batch, None, self.members[member](), read_only(prefix, place)), batch)
            for place, (batch, member) in enumerate(zip(batches, members, strict=True))
        ]
        return losses_of_rows(self.language, passes)

    @torch.no_grad()
    def _prefix(self, batch: Batch) -> Any:
        tokens = batch.aspect_tokens
        if tokens is None and self.aspect_modules is not None:
            tokens = self.aspect_modules(batch.features, batch.feature_mask)
        cache = self.language.new_cache()
        run_prefix(self.language, batch, tokens, None, cache)
        return cache
