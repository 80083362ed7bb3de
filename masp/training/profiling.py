"""What training steps cost: floating-point operations for the log's utilization, and `masp train --profile`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from masp.models.sequence import IGNORED, Batch
from masp.vlm.flops import LanguageShape, aspect_module_flops, language_flops

FIRST_STEPS, NUM_STEPS = 3, 5
"""Steps left to warm up, and steps traced."""


class Profile:
    """Traces a few steps of this process with torch's profiler. Use as a context manager, and call `step` after each.

    Leaves `profile/trace.json` (for https://ui.perfetto.dev or chrome://tracing) and `profile/table.txt`, the
    operations by their time.

    Args:
        folder: of the stage.
    """

    def __init__(self, folder: Path):
        self.folder = folder / "profile"
        self.folder.mkdir(exist_ok=True)
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        plan = schedule(wait=FIRST_STEPS - 1, warmup=1, active=NUM_STEPS, repeat=1)
        self._by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        self._profile = profile(activities=activities, schedule=plan, on_trace_ready=self._write)

    def _write(self, profile) -> None:
        profile.export_chrome_trace(str(self.folder / "trace.json"))
        (self.folder / "table.txt").write_text(profile.key_averages().table(sort_by=self._by, row_limit=40))

    def step(self) -> None:
        """Another step was taken."""
        self._profile.step()

    def __enter__(self) -> Profile:
        self._profile.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._profile.__exit__(*error)


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
        device_name: as `torch.cuda.get_device_name` says.
        precision: `bf16`, `fp16` or `fp32`; of the last no peak is known, since TF32 may or may not be in use.
    """
    if precision == "fp32":
        return None
    if precision == "bf16" and any(name in device_name for name in ("V100", "T4")):
        return None  # emulated
    return next((1e12 * tflops for name, tflops in PEAK_TFLOPS.items() if name in device_name), None)


def device_peak(device: str, precision: str) -> float | None:
    """The same for this process's device."""
    if device != "cuda":
        return None
    return peak_flops(torch.cuda.get_device_name(), precision)


def batch_flops(language: LanguageShape, batch: Batch, num_queries: int, num_aspects: int) -> float:
    """FLOP of forward and backward pass of a batch; padding counts nothing.

    Args:
        language: the language model's sizes.
        batch: of either stage.
        num_queries: of each aspect module.
        num_aspects: aspect modules that run per image in stage 2; in stage 1 one per row.
    """
    real = batch.weights > 0
    suffix = batch.suffix.mask.sum(1)[real].double()
    labels = (batch.labels != IGNORED).sum(1)[real].double()
    prefix = suffix * 0
    if batch.prefix is not None:  # a shared one is held as one row
        prefix = batch.prefix.mask.sum(1).double().expand(len(real))[real]
    total = language_flops(language, prefix=prefix, suffix=suffix, num_logits=labels, gradient=True).sum()
    if batch.shared_prefix and len(suffix):  # run once for all rows
        total -= (len(suffix) - 1) * language_flops(language, prefix=float(prefix[0]), suffix=0, gradient=False)
    tokens = batch.feature_mask.sum(1)[batch.row_image][real].double()
    trained = batch.row_aspect is not None
    per_row = 1 if trained else num_aspects * (batch.aspect_tokens is None)
    total += (per_row * aspect_module_flops(language.width, num_queries, tokens, gradient=trained)).sum()
    return float(total)
