"""Names of devices and number formats in the configuration -> torch's."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from masp.errors import InputError


def pick_device(name: str, key: str) -> str:
    """`cpu` or `cuda` for `auto`, `cpu` or `cuda`.

    Args:
        name: the configured value.
        key: its dotted name, for the error.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{key} = 'cuda': torch sees no GPU here; valid are auto and cpu")
    return name


def encoder_dtype(cache_dtype: str, device: str) -> str:
    """In which of `bf16`, `fp16` and `fp32` the encoder runs for a cache of this `cache.dtype`.

    What is kept in 8 bits is computed in the format that the device is fast in and that loses less than the 8 bits do.
    Since that depends on the device, it is part of the fingerprint's machine part.
    """
    if cache_dtype in ("fp8", "int8"):
        return "bf16" if device == "cuda" else "fp32"
    return cache_dtype


def torch_dtype(name: str):
    """The torch dtype of `bf16`, `fp16` or `fp32`."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]


def peak_memory_bytes(device: str) -> int:
    """The most memory in use so far: of the GPU by torch's tensors, or resident of this process on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@contextmanager
def plain_memory_errors(remedy: str) -> Iterator[None]:
    """Turn a lack of memory, on a GPU or in the process, into one line for the user.

    Args:
        remedy: which setting to change, and what is kept.

    Raises:
        InputError: instead of what torch raises.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise InputError(f"not enough GPU memory: {remedy}") from None
    except MemoryError:
        raise InputError(f"not enough memory: {remedy}") from None
    except RuntimeError as error:
        if not _is_cpu_out_of_memory(error):
            raise
        raise InputError(f"not enough memory: {remedy}") from None


_CPU_ALLOCATOR = "DefaultCPUAllocator: "
"""Begins the reason in torch 2.13's message: "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't
allocate memory: you tried to allocate 4000000000000000 bytes. Error code 12 (Cannot allocate memory)"."""


def _is_cpu_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch found no memory on a CPU: it raises a plain RuntimeError then, `OutOfMemoryError` only on GPUs."""
    return _CPU_ALLOCATOR in str(error)
