"""What this machine has, as far as settings depend on it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from masp.config.schema import Precision


@dataclass(frozen=True)
class Machine:
    """A machine. Nothing in it identifies it: equal machines get equal files."""

    num_cores: int
    """Cores that this process may use."""
    memory_gb: int
    gpu: str | None
    """Name of its first GPU; None without one."""
    gpu_memory_gb: int
    has_bf16: bool
    """Whether the GPU computes in bf16."""

    def precision(self, num_bytes: int | None) -> Precision:
        """Number format of the frozen language model.

        Args:
            num_bytes: Bytes of the VLM's weights, two per weight; None if they are not known.
        """
        if self.gpu is not None:
            return "bf16" if self.has_bf16 else "fp16"
        return "fp32" if num_bytes is None or 2 * num_bytes < 0.6e9 * self.memory_gb else "bf16"

    @property
    def num_workers(self) -> int:
        """Processes that read and decode images beside the one that computes."""
        return max(0, min(8, self.num_cores - 2))

    @property
    def num_threads(self) -> int:
        """CPU threads of the encoder: all cores without a GPU, otherwise what feeding one takes."""
        return max(1, min(2 if self.gpu is not None else 16, self.num_cores))

    def __str__(self) -> str:
        gpu = "no GPU" if self.gpu is None else f"{self.gpu} ({self.gpu_memory_gb} GB)"
        cores = "1 core" if self.num_cores == 1 else f"{self.num_cores} cores"
        return f"{gpu}, {cores}, {self.memory_gb} GB of memory"


def this_machine() -> Machine:
    """Look at the machine that this process runs on."""
    has_gpu = torch.cuda.is_available()
    gpu_bytes = torch.cuda.get_device_properties(0).total_memory if has_gpu else 0
    return Machine(
        num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        gpu=torch.cuda.get_device_name(0) if has_gpu else None,
        gpu_memory_gb=round(gpu_bytes / 1e9),
        has_bf16=has_gpu and torch.cuda.is_bf16_supported(including_emulation=False),
    )
