"""Run by torchrun on every rank: loads language halves partitioned over the ranks, and writes measurements as JSON.

Arguments: `tensors` or `memory`, the output directory, and directories of VLMs.
"""

import gc
import json
import sys
import threading
from pathlib import Path

import torch

from masp.config.schema import EngineConfig, StageConfig
from masp.distributed.ranks import join, read_ranks
from masp.errors import InputError
from masp.training.engine import Partition, deepspeed_config
from masp.vlm.language import Tokens, load_language_half


def config(precision: str) -> dict:
    return deepspeed_config(EngineConfig(zero_stage=3, precision=precision), StageConfig())


def live_bytes() -> int:
    """Size of all storages that tensors refer to, except those from before `gc.freeze`."""
    kinds = (torch.Tensor, torch.nn.Parameter)  # exact types: `isinstance` would trigger lazy imports
    tensors = [found for found in gc.get_objects() if type(found) in kinds and not found.is_meta]
    tensors += [t.ds_tensor for t in tensors if getattr(t, "ds_tensor", None) is not None]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class Watched(Partition):
    """Measures the memory of this process before and after each parameter is partitioned."""

    def __init__(self):
        super().__init__(config("fp32"))
        self.most = self.largest = 0
        gc.collect()
        gc.freeze()

    def cut(self, parameter: torch.nn.Parameter) -> None:
        self.largest = max(self.largest, parameter.nbytes)
        self.most = max(self.most, live_bytes())
        super().cut(parameter)
        self.most = max(self.most, live_bytes())


def tensors(vlm: str) -> dict:
    partition = Watched()
    try:
        half = load_language_half(vlm, partition=partition)
    except InputError as error:
        try:
            load_language_half(vlm)
        except InputError as expected:
            return {"errors": [str(error), str(expected)]}
    parameters = dict(half.named_parameters())
    seen = {
        "most_bytes": partition.most,
        "largest_bytes": partition.largest,
        "whole_bytes": 4 * sum(p.ds_numel for p in parameters.values()),
        "part_bytes": sum(p.ds_tensor.nbytes for p in parameters.values()),
        "bytes_outside_parts": sum(p.nbytes for p in parameters.values()),
        "frozen": not any(p.requires_grad for p in parameters.values()),
    }
    expected = load_language_half(vlm)
    seen["tied"] = [h.head.weight is h.table for h in (half, expected)]
    seen["names"] = sorted(parameters) == sorted(name for name, _ in expected.named_parameters())
    with partition.whole(parameters.values()):
        seen["equal"] = all(torch.equal(parameters[name], p) for name, p in expected.named_parameters())
    seen["buffers"] = [torch.equal(a, b) for a, b in zip(half.buffers(), expected.buffers(), strict=True)]
    ids = torch.arange(half.vocab_size)[None]
    tokens = Tokens(ids, torch.ones_like(ids) == 1, torch.zeros_like(ids) == 1)
    with partition.whole(half.model.get_input_embeddings().parameters()):
        seen["constants"] = torch.equal(half.embed(tokens), expected.embed(tokens))
    return seen


def anonymous_bytes() -> int:
    """Resident memory that is not backed by a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def memory(vlm: str) -> dict:
    import transformers.models.qwen2_vl.modeling_qwen2_vl  # noqa: F401, so that its own memory is not counted

    partition = Partition(config("bf16"))
    ended, peak, before = threading.Event(), 0, anonymous_bytes()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.002):
            peak = max(peak, anonymous_bytes() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        half = load_language_half(vlm, torch.bfloat16, partition=partition)
    finally:
        ended.set()
        thread.join()
    return {"peak_bytes": peak, "whole_bytes": 2 * sum(p.ds_numel for p in half.parameters())}


ranks = read_ranks()
join(ranks, "cpu")
work = {"tensors": tensors, "memory": memory}[sys.argv[1]]
seen = {Path(vlm).name: work(vlm) for vlm in sys.argv[3:]}
(Path(sys.argv[2]) / f"rank-{ranks.rank}.json").write_text(json.dumps(seen))
