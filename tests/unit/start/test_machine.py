"""Settings follow from the machine, and equal machines give equal settings."""

import os

import pytest
import torch

from masp.start.machine import Machine, this_machine

CPU = Machine(num_cores=2, memory_gb=25, gpu=None, gpu_memory_gb=0, has_bf16=False)
GPU = Machine(num_cores=16, memory_gb=128, gpu="NVIDIA H100", gpu_memory_gb=80, has_bf16=True)


@pytest.mark.parametrize(
    ("machine", "num_bytes", "precision"),
    [
        (GPU, 15_000_000_000, "bf16"),
        (Machine(8, 32, "Tesla T4", 16, has_bf16=False), None, "fp16"),
        (CPU, None, "fp32"),
        (CPU, 4_500_000, "fp32"),
        (CPU, 15_000_000_000, "bf16"),  # 30 GB in fp32
    ],
)
def test_the_number_format_is_one_that_it_computes_in_and_has_memory_for(machine, num_bytes, precision):
    assert machine.precision(num_bytes) == precision


def test_workers_and_threads_leave_no_core_twice():
    assert (CPU.num_workers, CPU.num_threads) == (0, 2)
    assert (GPU.num_workers, GPU.num_threads) == (8, 2)
    assert Machine(64, 500, None, 0, False).num_threads == 16
    assert Machine(1, 4, None, 0, False).num_threads == 1


def test_this_machine_is_what_torch_and_the_system_say():
    found = this_machine()
    assert found.num_cores == len(os.sched_getaffinity(0)) and found.memory_gb > 0
    assert (found.gpu is not None) == torch.cuda.is_available()
    assert str(found) == str(this_machine())


def test_it_is_described_without_its_name():
    assert str(CPU) == "no GPU, 2 cores, 25 GB of memory"
    assert str(GPU) == "NVIDIA H100 (80 GB), 16 cores, 128 GB of memory"
