"""Sides of a comparison that take turns on a device: rates, FLOP and peak memory; and the limits of the device."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from masp.files.text import first_line


def synchronize(device: str) -> None:
    """Wait for the GPU, if the device is one."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: str, times: int) -> float:
    """Duration in seconds of the fastest of `times` runs."""
    found = []
    for _ in range(times):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        found.append(time.perf_counter() - started)
    return min(found)


def limits(device: str, size: int, megabytes: int) -> dict[str, float]:
    """Measure the limits of the device: a bf16 matrix product, a copy within its memory, and a copy to it.

    Args:
        device: `cpu` or `cuda`.
        size: Size of the square matrices.
        megabytes: Megabytes to copy.
    """
    from masp.training.logs import device_peak

    kind = {"dtype": torch.bfloat16, "device": device}
    a, b = torch.randn(size, size, **kind), torch.randn(size, size, **kind)
    out = torch.empty_like(a)
    repeats = 10 if device == "cuda" else 1

    def product() -> None:
        for _ in range(repeats):
            torch.mm(a, b, out=out)

    product()
    found = {"matmul_tflops": repeats * 2 * size**3 / seconds_of(product, device, 5) / 1e12}
    source = torch.empty(megabytes * 1_000_000, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    copied = seconds_of(lambda: target.copy_(source), device, 5)
    found["copy_gb_per_s"] = 2 * megabytes / 1e3 / copied  # read and written
    if device == "cuda":
        pinned = torch.empty(megabytes * 1_000_000 // 8, dtype=torch.uint8).pin_memory()
        part = target[: len(pinned)]
        part.copy_(pinned)
        found["to_device_gb_per_s"] = megabytes / 8e3 / seconds_of(lambda: part.copy_(pinned), device, 5)
    peak = device_peak(device, "bf16")
    found["data_sheet_tflops"] = peak / 1e12 if peak else None
    return found


class Memory:
    """Peak memory: of torch's tensors on a GPU, resident memory of the process on a CPU."""

    def __init__(self, device: str):
        self.device = device

    def held(self) -> int:
        """Bytes of tensors on the GPU now; 0 on a CPU."""
        if self.device != "cuda":
            return 0
        gc.collect()
        return torch.cuda.memory_allocated()

    def forget(self) -> None:
        """Reset the peak."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:  # resets VmHWM of this process
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Peak in bytes since `forget`."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


@dataclass
class Done:
    """What a side did in one turn."""

    samples: int
    tokens: float
    flops: float
    seconds: float


class Side:
    """One way to run a part of the pipeline.

    Args:
        run: Runs it for at least the given number of seconds.
        once: Runs one step, for a profile; None if it has no steps.
        close: Frees its resources.
        warm_ups: Number of runs that are not counted.
    """

    def __init__(
        self,
        run: Callable[[float], Done],
        once: Callable | None = None,
        close: Callable[[], None] | None = None,
        warm_ups: int = 2,
    ):
        self.run, self.once, self.warm_ups = run, once, warm_ups
        self.close = close or (lambda: None)
        self.own_bytes = 0
        """Bytes it holds between runs on a GPU."""


def stepwise(step: Callable[[], int], counted, device: str, close: Callable[[], None] | None = None) -> Side:
    """A side that runs one step after another.

    Args:
        step: Runs one step; returns its number of samples.
        counted: Object with the `num_tokens` and `flops` of all steps so far.
        device: Device to synchronize with at the end.
        close: Frees its resources.
    """

    def run(seconds: float) -> Done:
        tokens, flops, samples = counted.num_tokens, counted.flops, 0
        synchronize(device)
        started = time.perf_counter()
        while not samples or time.perf_counter() - started < seconds:
            samples += step()
        synchronize(device)
        return Done(samples, counted.num_tokens - tokens, counted.flops - flops, time.perf_counter() - started)

    return Side(run, step, close)


def measure_sides(
    builders: dict[str, Callable[[], Side]], device: str, rounds: int, seconds: float, traces: Path | None
) -> dict[str, dict]:
    """Build all sides, warm up each of them, then let them take turns.

    Args:
        builders: Side -> function that builds it.
        device: `cpu` or `cuda`.
        rounds: Number of turns of each side.
        seconds: Minimum duration of a turn.
        traces: Path prefix for profiles of one step each; None for no profiles.

    Returns:
        Side -> medians over the rounds, or `error` if it could not be measured.
    """
    from masp.errors import MaspError

    memory = Memory(device)
    sides: dict[str, Side] = {}
    found: dict[str, dict] = {}
    done: dict[str, list[tuple[Done, int]]] = {}

    def attempt(name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except (torch.OutOfMemoryError, ImportError, MaspError) as error:
            no_memory = isinstance(error, torch.OutOfMemoryError)
            found[name] = {"error": "not enough GPU memory" if no_memory else first_line(error)}
            if name in sides:
                sides.pop(name).close()

    def prepare(name: str) -> None:
        before = memory.held()
        sides[name] = builders[name]()
        for _ in range(sides[name].warm_ups):
            sides[name].run(0.0)
        sides[name].own_bytes = memory.held() - before

    def measure(name: str) -> None:
        others = memory.held() - sides[name].own_bytes
        memory.forget()
        result = sides[name].run(seconds)
        done.setdefault(name, []).append((result, memory.peak() - max(others, 0)))

    try:
        for name in builders:
            attempt(name, lambda name=name: prepare(name))
        for _ in range(rounds):
            for name in list(sides):
                attempt(name, lambda name=name: measure(name))
        if traces:
            for name, side in sides.items():
                if side.once:
                    write_trace(side.once, traces.with_name(f"{traces.name}-{name}.json"), device)
    finally:
        for side in sides.values():
            side.close()
    for name in builders:
        if name not in found:
            found[name] = medians(done[name])
    return found


def medians(results: list[tuple[Done, int]]) -> dict:
    """Medians of the rates of a side over its rounds."""

    def middle(value: Callable[[Done], float]) -> float:
        return statistics.median(value(d) for d, _ in results)

    return {
        "samples_per_s": middle(lambda d: d.samples / d.seconds),
        "tokens_per_s": middle(lambda d: d.tokens / d.seconds),
        "tflops": middle(lambda d: d.flops / d.seconds / 1e12),
        "peak_memory_gb": max(peak for _, peak in results) / 1e9,
        "rounds_samples_per_s": [d.samples / d.seconds for d, _ in results],
    }


def write_trace(once: Callable, path: Path, device: str) -> None:
    """Write a trace of torch's profiler for https://ui.perfetto.dev, and a table of the operations next to it."""
    from torch.profiler import ProfilerActivity, profile

    path.parent.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as found:
        once()
        synchronize(device)
    found.export_chrome_trace(str(path))
    by = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    path.with_suffix(".txt").write_text(found.key_averages().table(sort_by=by, row_limit=40))
