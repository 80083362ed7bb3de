"""Run by torchrun on every rank: trains stage 1 under each ZeRO stage, step by step, and saves what rank 0 has then.

Arguments: the configuration, the output directory, and ZeRO stages, such as `2` or `2-offload`.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from masp.config import load_config
from masp.distributed.ranks import join, read_ranks
from masp.training.engine import Engine, load_trained, make_partition
from masp.training.stages import open_stage
from masp.training.steps import Steps

RATE = 0.01
config, output, ranks = load_config(sys.argv[1], []), Path(sys.argv[2]), read_ranks()
join(ranks, "cpu")
torch.set_num_threads(1)
stage = open_stage("stage1", config, "cpu")


def start(state=None, num_steps=0, counters=None) -> tuple[Engine, Steps]:
    model, prompt = stage.build("cpu", make_partition(config.engine, stage.settings))
    if state:
        load_trained(model, state)
    engine = Engine(model, config.engine, stage.settings, ranks, "cpu")
    if state:
        engine.load_state(state, num_steps, counters)
    return engine, Steps(stage, prompt, ranks.rank, ranks.size)


def take(engine: Engine, steps: Steps, numbers: range) -> list[str]:
    """Take steps; returns what moved though it was absent, or stayed though it was there."""
    wrong, before = [], engine.state()
    for number in numbers:
        step = steps[number]
        engine.accumulate(step.batches, step.total_weight)
        engine.leave_out(step.absent)
        engine.update(RATE)
        after = engine.state()
        for name, tensor in after.items():
            same = name in before and torch.equal(before[name], tensor)
            if same != (engine.part_of[name.split("#")[0]] in step.absent):
                wrong.append(f"{name} in step {number}")
        before = after
    return wrong


for name in sys.argv[3:]:
    zero, _, offload = name.partition("-")
    config.engine = replace(config.engine, zero_stage=int(zero), offload=bool(offload))
    engine, steps = start()
    half, whole = len(steps) // 2, len(steps)
    wrong = take(engine, steps, range(half))
    state, counters = engine.state(), engine.counters()
    wrong += take(engine, steps, range(half, whole))
    expected = engine.state()
    resumed, steps = start(state, half, counters)
    take(resumed, steps, range(half, whole))
    found = resumed.state()
    if ranks.is_rank_0:
        save_file(expected, output / f"{name}.safetensors")
        seen = {
            "wrong": wrong,
            "resumed": found.keys() == expected.keys() and all(torch.equal(found[n], t) for n, t in expected.items()),
            "taken": engine.taken,
            "counters": [asdict(counters), asdict(resumed.counters())],
        }
        (output / f"{name}.json").write_text(json.dumps(seen))
