"""Devices and number formats by their names in the configuration; running out of memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from masp.errors import InputError


def pick_device(name: str, key: str) -> str:
    """Choose `cpu` or `cuda`; `auto` takes a GPU if there is one.

    Args:
        name: Value of the setting: `auto`, `cpu` or `cuda`.
        key: Dotted name of the setting, for the error.

    Raises:
        InputError: It is `cuda`, and this machine has no GPU.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{key} = 'cuda': torch finds no GPU here; must be auto or cpu")
    return name


def encoder_dtype(cache_dtype: str, device: str) -> str:
    """Number format (`bf16`, `fp16` or `fp32`) in which the encoder runs for a `cache.dtype`.

    For 8-bit caches it is the one that is fast on the device and loses less than the 8 bits do. Since that depends on
    the device, it belongs to the machine part of the fingerprint.
    """
    if cache_dtype in ("fp8", "int8"):
        return "bf16" if device == "cuda" else "fp32"
    return cache_dtype


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of `bf16`, `fp16` or `fp32`."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]


def peak_memory_bytes(device: str) -> int:
    """Peak memory in bytes: that of torch's tensors on a GPU, the resident set of this process on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@contextmanager
def plain_memory_errors(remedy: str) -> Iterator[None]:
    """Turn running out of memory, on a GPU or in the process, into one line for the user.

    Args:
        remedy: Which setting to change, and what is kept.

    Raises:
        InputError: Instead of the error of torch or Python.
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
"""Start of the reason in torch 2.13's error: "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't
allocate memory: you tried to allocate 4000000000000000 bytes. Error code 12 (Cannot allocate memory)"."""


def _is_cpu_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of CPU memory: it raises a plain RuntimeError then, `OutOfMemoryError` only on GPUs."""
    return _CPU_ALLOCATOR in str(error)
