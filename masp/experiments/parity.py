"""Compare with outputs of the published implementation, going through the cache as any run does.

A case is a folder with `images/*.png`, `aspect.pth`, `soft_prompt.pt` and `golden.json`; see `compare`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch

from masp.artifacts.store import load_aspects, load_soft_prompt
from masp.cache.reader import Cache, open_cache
from masp.config import Config, load_config
from masp.data.keys import sample_key
from masp.errors import InputError
from masp.extraction.job import extract
from masp.models.forward import Stage1Model, Stage2Model, num_logits
from masp.models.generation import generate
from masp.models.sequence import build_sequence, make_batch
from masp.vlm.language import load_language_half
from masp.vlm.prompt import load_prompt

LAYOUT = "released"
TOLERANCES = {
    "stage1_loss": 2e-4,
    "stage2_loss": 2e-4,
    "soft_prompt_grad_norm": 1e-3,
    "soft_prompt_grad_row_norms": 1e-3,
    "first_logits": 2e-4,
}
"""Largest differences: absolute for losses and logits, relative for gradient norms."""
MAX_SIDE = 1024
"""The published implementation first brings the longer side of an image to at most this many pixels."""


def compare(case: Path, vlm: str) -> dict:
    """Recompute a case and report the largest differences.

    Args:
        case: the folder of the case.
        vlm: folder of the VLM that it was made with.

    Returns:
        A difference per entry of `TOLERANCES`, `generated_ids_equal`, how many of each were compared, and `passed`.

    Raises:
        InputError: the case lacks a file, or does not fit the VLM.
    """
    try:
        golden = json.loads((case / "golden.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"--case: {case}/golden.json cannot be read: {error}") from None
    if not isinstance(golden, dict):
        raise InputError(f"--case: {case}/golden.json must hold an object")
    if not (case / "images").is_dir():
        raise InputError(f"--case: {case} has no folder images")
    with tempfile.TemporaryDirectory() as folder:
        config = _config(case, vlm, Path(folder))
        extract(config)
        return _Comparison(case, vlm, golden, open_cache(config.cache.dir)).run()


def _config(case: Path, vlm: str, folder: Path) -> Config:
    """A dataset of the case's images (whose category plays no part), and a cache beside it."""
    images = folder / "data" / "test" / "none"
    shutil.copytree(case / "images", images)
    return load_config(
        None,
        [
            f"vlm.path={vlm}",
            f"vlm.max_side={MAX_SIDE}",
            f"dataset.root={folder / 'data'}",
            "dataset.name=folder",
            f"cache.dir={folder / 'cache'}",
            "cache.dtype=fp32",
            "cache.num_shards=1",
            "extract.num_workers=0",
            "extract.device=cpu",
            "extract.max_bad_fraction=0",
        ],
    )


class _Comparison:
    def __init__(self, case: Path, vlm: str, golden: dict, cache: Cache):
        self.golden, self.aspects = golden, golden["note"]["aspects"]
        self.language, self.prompt = load_language_half(vlm), load_prompt(vlm)
        hidden = self.language.hidden_size
        self.modules, _ = load_aspects(str(case / "aspect.pth"), self.aspects, hidden)
        self.soft_prompt, _ = load_soft_prompt(str(case / "soft_prompt.pt"), hidden)
        self.num_soft = len(self.soft_prompt.weight)
        samples = [cache.read(row) for row in range(len(cache))]
        self.samples = {s.key: s for s in samples}
        self.differences = dict.fromkeys(TOLERANCES, 0.0)

    def run(self) -> dict:
        rows = num_logits(LAYOUT, self.prompt, self.language.vocab_size, self.num_soft)
        stage1 = Stage1Model(self.language, self.modules)
        for entry in self.golden["stage1"]:
            self._stage1(stage1, entry)
        stage2 = Stage2Model(self.language, self.modules, self.soft_prompt, rows)
        for entry in self.golden["stage2"]:
            self._stage2(stage2, entry)
        named = [token for entry in self.golden["evaluate"] for token, _ in entry["first_logits_top10"]]
        if rows is not None and max(named, default=0) >= rows:  # that case was evaluated with the whole vocabulary
            stage2.num_logits = None
        answers = [self._evaluate(stage2, entry) for entry in self.golden["evaluate"]]
        equal = all(answers)
        passed = equal and all(self.differences[name] < bound for name, bound in TOLERANCES.items())
        counts = {f"num_{name}": len(self.golden[name]) for name in ("stage1", "stage2", "evaluate")}
        return {**self.differences, "generated_ids_equal": equal, **counts, "passed": passed}

    def _note(self, name: str, difference: float) -> None:
        # not max(): a NaN must not pass unseen
        self.differences[name] = difference if not difference <= self.differences[name] else self.differences[name]

    def _sample(self, entry: dict):
        key = sample_key("test", f"none/{entry['image']}")
        if key not in self.samples:
            raise InputError(f"--case: golden.json names image {entry['image']!r}, which the case does not hold")
        return self.samples[key]

    def _batch(self, entry: dict, answer: str | None, aspect: str | None):
        sample = self._sample(entry)
        tokens = self.modules.num_queries
        sequence = build_sequence(
            self.prompt,
            entry["question"],
            answer,
            num_aspect_tokens=tokens if aspect else tokens * len(self.aspects),
            grid=None if aspect else sample.grid,
            num_soft_tokens=0 if aspect else self.num_soft,
            layout=LAYOUT,
        )
        asked = [self.aspects.index(aspect)] if aspect else None
        return make_batch([sequence], [sample.features], row_image=[0], row_aspect=asked)

    @torch.no_grad()
    def _stage1(self, model: Stage1Model, entry: dict) -> None:
        loss = model(self._batch(entry, entry["answer"], entry["aspect"])).item()
        self._note("stage1_loss", abs(loss - entry["loss"]))

    def _stage2(self, model: Stage2Model, entry: dict) -> None:
        self.soft_prompt.zero_grad()
        (loss,) = model(self._batch(entry, entry["answer"], None))
        loss.backward()
        assert self.soft_prompt.weight.grad is not None  # backward has set it
        gradient = self.soft_prompt.weight.grad.double()
        self._note("stage2_loss", abs(loss.item() - entry["loss"]))
        self._note("soft_prompt_grad_norm", _relative(gradient.norm().item(), entry["soft_prompt_grad_norm"]))
        for ours, theirs in zip(gradient.norm(dim=1).tolist(), entry["soft_prompt_grad_row_norms"], strict=True):
            self._note("soft_prompt_grad_row_norms", _relative(ours, theirs))

    def _evaluate(self, model: Stage2Model, entry: dict) -> bool:
        (ids,), logits = generate(
            model, self._batch(entry, None, None), max(1, len(entry["generated_ids"])), self.prompt.stop
        )
        for token, value in entry["first_logits_top10"]:
            self._note("first_logits", abs(logits[0, token].item() - value))
        return ids == entry["generated_ids"]


def _relative(ours: float, theirs: float) -> float:
    return abs(ours - theirs) / abs(theirs)
