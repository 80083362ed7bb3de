"""Several initial values of all aspect modules around one frozen language model: the restarts of stage 1.

What comes before the aspect tokens, the system turn, is frozen. It runs once per batch, without gradient; then the
restarts run one after another behind its keys and values, which they only read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from masp.models.forward import run_prefix, run_suffix
from masp.models.losses import row_losses
from masp.models.sequence import Batch
from masp.models.trainable import AspectModule, AspectModules
from masp.vlm.caches import read_only
from masp.vlm.language import LanguageHalf


def restart_seed(seed: int, number: int) -> int:
    """Seed of the initial values of a restart: `seed` itself for number 0, otherwise drawn from both.

    Drawn, since `seed + number` would give runs with neighboring seeds the same restarts.
    """
    if not number:
        return seed
    return int.from_bytes(hashlib.sha256(f"restart {seed} {number}".encode()).digest()[:4], "big")


class RestartModel(nn.Module):
    """Restarts of stage 1: aspect modules of all aspects for each of several initial values.

    Args:
        language: Language half of the VLM.
        restarts: Aspect modules of each restart, of `HandedModule`s, with the same aspects.
    """

    def __init__(self, language: LanguageHalf, restarts: Sequence[AspectModules]):
        super().__init__()
        self.language = language
        self.restarts = nn.ModuleList(restarts)
        self._modules_of = [dict(modules.by_aspect.items()) for modules in restarts]

    def trained(self) -> nn.Module:
        return self.restarts

    def parts(self) -> dict[str, nn.Module]:
        """What is trained: `<number of the restart>.<aspect>`, each of which may stand still in a step."""
        return {
            f"{number}.{aspect}": module
            for number, modules in enumerate(self._modules_of)
            for aspect, module in modules.items()
        }

    def forward(
        self,
        batch: Batch | None,
        restart: int | None = None,
        prefix: Any = None,
        gradients: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """Run what all restarts share, or a restart behind it, or hand over gradients.

        Args:
            batch: Batch of stage 1.
            restart: Number of the restart; None runs the prefix.
            prefix: What the prefix left.
            gradients: Name of a trained tensor -> its gradient, fp32; tensors without one do not move.

        Returns:
            What the prefix leaves, None where there is none; of a restart the losses of the rows `[B]`, fp32; for
            gradients a number whose derivative they are.
        """
        if gradients is not None:
            return self._handed(gradients)
        assert batch is not None
        if restart is None:
            return self._prefix(batch)
        tokens = self.restarts[restart](batch.features, batch.feature_mask)
        cache = None if prefix is None else read_only(prefix)
        return row_losses(self.language, run_suffix(self.language, batch, tokens, None, cache), batch)

    def _prefix(self, batch: Batch) -> Any:
        if batch.prefix is None:
            return None
        cache = self.language.new_cache()
        run_prefix(self.language, batch, None, None, cache)
        return cache

    def _handed(self, gradients: Mapping[str, Tensor]) -> Tensor:
        total: Any = 0.0
        for number, modules in enumerate(self._modules_of):
            for aspect, module in modules.items():
                name = f"restarts.{number}.by_aspect.{aspect}."
                own = {n.removeprefix(name): value for n, value in gradients.items() if n.startswith(name)}
                total = total + module(own)
        return total


class HandedModule(AspectModule):
    """An aspect module that can also be given gradients, by the names of its tensors.

    Inside its own forward pass, where ZeRO 3 has made its tensors whole.
    """

    def forward(self, features: Tensor | Mapping[str, Tensor], mask: Tensor | None = None) -> Any:
        """As `AspectModule.forward`; for gradients instead of features, a number whose derivative they are."""
        if isinstance(features, Tensor):
            assert mask is not None
            return super().forward(features, mask)
        total = torch.zeros((), device=self.query.device)
        for name, parameter in self.named_parameters():
            gradient = features.get(name)
            total = total + (parameter.float() * (0.0 if gradient is None else gradient)).sum()
        return total
