"""Evaluation: score a slice -> ledger -> metrics. Ranks share nothing but files, so none waits for another."""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing, nullcontext
from pathlib import Path

from masp.assemble import load_trained
from masp.config import Config, save_config
from masp.devices import pick_device, plain_memory_errors
from masp.errors import InputError, StoppedEarly
from masp.stopping import StopFlag


def evaluate_dir(config: Config) -> Path:
    """Where ledgers and metrics go."""
    return Path(config.evaluate.output_dir or Path(config.output_dir) / "evaluate")


def evaluate(config: Config, stop: StopFlag | None = None) -> Path | None:
    """Score what this rank's slice still lacks; whichever rank finds all samples scored writes the metrics.

    Args:
        config: of the run; ranks come from the launcher's environment.
        stop: looked at between batches; None lets SIGTERM, SIGINT and SIGUSR2 stop the run.

    Returns:
        `metrics.json`; None if other ranks still have samples to score.

    Raises:
        InputError, DataError: see `masp.errors`. StoppedEarly: a signal asked to stop; the ledger is kept.
    """
    from masp.distributed import read_ranks
    from masp.status import noting_failure, write_status

    ranks = read_ranks()
    folder = evaluate_dir(config)
    with noting_failure(folder):
        metrics = _evaluate(config, folder, ranks, stop)
    if metrics:
        write_status(folder, "finished", 0, str(metrics))
    return metrics


def _evaluate(config: Config, folder: Path, ranks, stop: StopFlag | None) -> Path | None:
    from tqdm import tqdm

    from masp.data.questions import load_questions
    from masp.distributed import claim_gpu
    from masp.feed import open_feed
    from masp.ledger import FOLDER, Ledger, merge_if_complete, missing_keys, slice_keys
    from masp.scorer import Scorer

    feed = open_feed(config)
    questions = load_questions(config.questions)
    trained = load_trained(config, feed.hidden_size, feed.model)
    notes = machine_notes(trained, feed.machine)
    if ranks.is_lead:
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    identity = _identity(config, feed, trained, questions)
    ledgers = folder / FOLDER
    missing = set(missing_keys(ledgers, feed.keys, identity))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if ranks.is_lead:
            save_config(config, folder / "config.yaml")
    except OSError as error:
        raise InputError(f"evaluate.output_dir: {folder} cannot be written: {error.strerror}") from None
    mine = [key for key in slice_keys(feed.keys, ranks.rank, ranks.size) if key in missing]
    if len(missing) < len(feed.keys) and ranks.is_lead:
        print(f"evaluate: {len(feed.keys) - len(missing)} of {len(feed.keys)} samples are scored already")
    if mine:
        if config.engine.num_threads:
            import torch

            torch.set_num_threads(config.engine.num_threads)
        device = pick_device(config.engine.device, "engine.device")
        if device == "cuda":
            claim_gpu(ranks)
        scorer = Scorer(config, trained, questions, feed.categories, device)
        pause_s = 0.1 if sys.stderr.isatty() else 30.0
        bar = tqdm(total=len(mine), desc="evaluate", unit="img", mininterval=pause_s, disable=not ranks.is_lead)
        flag = StopFlag() if stop is None else nullcontext(stop)
        remedy = f"lower evaluate.batch_size, which is {config.evaluate.batch_size}; {ledgers} keeps what is scored"
        batches = closing(feed.batches(mine, config.evaluate.batch_size))
        ledger = Ledger(ledgers, f"rank-{ranks.rank}", identity)
        with ledger, flag as stop, bar, batches as batches, plain_memory_errors(remedy):
            for items in batches:
                scores = scorer.score([i.features for i in items], [i.grid for i in items])
                for item, score in zip(items, scores, strict=True):
                    ledger.append({"sample_key": item.key, "label": item.label, **vars(score)})
                bar.update(len(items))
                if stop:
                    raise StoppedEarly(
                        f"evaluate: stopped on request; {ledgers} keeps what is scored, "
                        "the same command scores the rest"
                    )

    def write(records) -> Path:
        return _write_metrics(config, folder, feed, trained, records, notes)

    path = merge_if_complete(ledgers, feed.keys, identity, write)
    if path is None:
        print(f"evaluate: rank {ranks.rank} is done; other ranks still have samples to score")
    return path


def _identity(config: Config, feed, trained, questions) -> dict:
    """What is evaluated; ranks and batch size do not belong to it."""
    from masp.cache.fingerprint import fingerprint_digest

    return {
        "model": fingerprint_digest(feed.model),
        "samples": feed.data_digest,
        "split": config.evaluate.split,
        "categories": list(feed.categories),
        "question": questions.emotion_first(feed.categories),
        "scoring": config.evaluate.scoring,
        "max_new_tokens": config.evaluate.max_new_tokens if config.evaluate.scoring == "generate" else None,
        "precision": config.engine.precision,
        "source": config.evaluate.source,
        "layout": trained.layout,
        "aspects": list(config.aspects) if trained.aspects is not None else [],
        "aspect_digest": trained.aspect_lineage.digest if trained.aspect_lineage else None,
        "soft_prompt_digest": trained.soft_prompt_lineage.digest if trained.soft_prompt_lineage else None,
    }


def machine_notes(trained, machine: dict) -> list[str]:
    """How the machine that makes the features differs from the one that made those the soft prompt was trained on."""
    from masp.cache.fingerprint import differences

    lineage = trained.soft_prompt_lineage or trained.aspect_lineage
    if lineage is None or lineage.machine is None:
        return []
    return [
        f"features come from another machine than those of training: {name} was {old!r}, is {new!r}"
        for name, old, new in differences(lineage.machine, machine)
    ]


def _write_metrics(config: Config, folder: Path, feed, trained, records, notes: list[str]) -> Path:
    from masp.cache.files import write_bytes
    from masp.metrics import compute_metrics

    metrics = compute_metrics(records, feed.categories, len(feed.keys), config.seed)
    metrics |= {
        "dataset": config.dataset.name,
        "split": config.evaluate.split,
        "scoring": config.evaluate.scoring,
        "source": config.evaluate.source,
        "layout": trained.layout,
        "notes": notes,
        "time": time.time(),
        "lineage": {**trained.lineage(), "features": {"model": feed.model, "machine": feed.machine}},
    }
    path = folder / "metrics.json"
    write_bytes(path, json.dumps(metrics, indent=1).encode() + b"\n")
    low, high = metrics["accuracy_ci95"]
    print(
        f"evaluate: accuracy {metrics['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}) "
        f"on {metrics['num_samples']} images: {path}"
    )
    return path
