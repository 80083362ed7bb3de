"""Sides of a comparison that take turns on a device: rates, operations, the peak of memory; and the device's limits."""

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
    """Wait for the GPU, if that is what it is."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: str, times: int) -> float:
    """The fastest of some runs."""
    found = []
    for _ in range(times):
        synchronize(device)
        begun = time.perf_counter()
        work()
        synchronize(device)
        found.append(time.perf_counter() - begun)
    return min(found)


def limits(device: str, size: int, megabytes: int) -> dict[str, float]:
    """What the device can do at best, measured: a bf16 matrix product, a copy in its memory, and one to it.

    Args:
        device: `cpu` or `cuda`.
        size: of the square matrices.
        megabytes: that are copied.
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
    """The peak of what is held. On a GPU by torch's tensors, on a CPU resident by the process."""

    def __init__(self, device: str):
        self.device = device

    def held(self) -> int:
        """Bytes of tensors on the GPU at the moment; 0 on a CPU."""
        gc.collect()
        return torch.cuda.memory_allocated() if self.device == "cuda" else 0

    def forget(self) -> None:
        """Start anew."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:  # of this process, by Linux
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Bytes, since `forget`."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


@dataclass
class Done:
    """What a side did in a while."""

    samples: int
    tokens: float
    flops: float
    seconds: float


class Side:
    """One way to do a part, ready to run.

    Args:
        run: does at least so many seconds' worth of it.
        once: one step, for a profile; None where there is nothing of the kind.
        close: ends it.
        warm_ups: runs that are not counted.
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
        """On a GPU, what it holds between runs."""


def stepwise(step: Callable[[], int], counted, device: str, close: Callable[[], None] | None = None) -> Side:
    """A side that does step after step.

    Args:
        step: one; returns its samples.
        counted: has `num_tokens` and `flops` of all steps so far.
        device: that is waited for at the end.
        close: ends it.
    """

    def run(seconds: float) -> Done:
        tokens, flops, samples = counted.num_tokens, counted.flops, 0
        synchronize(device)
        begun = time.perf_counter()
        while not samples or time.perf_counter() - begun < seconds:
            samples += step()
        synchronize(device)
        return Done(samples, counted.num_tokens - tokens, counted.flops - flops, time.perf_counter() - begun)

    return Side(run, step, close)


def measure_sides(
    builders: dict[str, Callable[[], Side]], device: str, rounds: int, seconds: float, traces: Path | None
) -> dict[str, dict]:
    """Build all sides, let each warm up, then let them take turns.

    Args:
        builders: side -> what builds it.
        device: `cpu` or `cuda`.
        rounds: how often each has its turn.
        seconds: that a turn takes at least.
        traces: beginning of the names of profiles of one step each; None for no profiles.

    Returns:
        Side -> medians over the rounds, or `error` where it could not be had.
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
    """Rates of a side over its rounds."""

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
    """A trace of torch's profiler for https://ui.perfetto.dev, and a table of the operations beside it."""
    from torch.profiler import ProfilerActivity, profile

    path.parent.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as found:
        once()
        synchronize(device)
    found.export_chrome_trace(str(path))
    by = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    path.with_suffix(".txt").write_text(found.key_averages().table(sort_by=by, row_limit=40))
