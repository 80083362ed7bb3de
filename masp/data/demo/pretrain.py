"""Pretrains the tiny VLM in four phases: words, places, sight, and all together.

Words: texts only; word embeddings are fixed (`embeddings.py`). Places: texts in which a word counts only where its
aspect stands. Sight: the vision encoder alone, each aspect read off its features by attention and compared with the
word embeddings of the labels, which puts features on the scale and into the space of words, as a projector does in
larger VLMs. Together: pictures with aspect questions, texts beside. No phase ever shows a picture with an emotion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masp.data.categories import ASPECTS
from masp.data.demo.batch import Packer, embed, hidden_states, losses
from masp.data.demo.embeddings import draw_geometry
from masp.data.demo.examples import Example, Examples
from masp.data.demo.model import VOCAB_SIZE, build_model, encode
from masp.data.demo.muon import Muon
from masp.data.demo.tokenizer import NONE, build_tokenizer
from masp.data.demo.world import LABELS, Scene, words
from masp.data.questions import Questions

Report = Callable[[str, int, int, dict], None]
"""Called with a phase's name, steps done, steps in all, and figures."""


@dataclass(frozen=True)
class Plan:
    """How long each phase lasts, in steps, and its batches."""

    running_steps: int = 900
    """Texts without a question, the emotion told from word to word: short and dense, so first."""
    words_steps: int = 2400
    """Texts with questions."""
    places_steps: int = 800
    """Texts with words out of place."""
    sight_steps: int = 2500
    together_steps: int = 800
    sight_batch: int = 32
    together_pictures: int = 16
    together_texts: int = 16
    picture_turns: int = 3
    """Aspects asked about a picture at once."""
    num_pictures: int = 26000

    def scaled(self, by: float) -> Plan:
        """The same plan with all steps and pictures times `by`."""
        counts = {f.name: getattr(self, f.name) for f in fields(self) if f.name.endswith("steps")}
        counts["num_pictures"] = self.num_pictures
        return replace(self, **{name: max(1, round(count * by)) for name, count in counts.items()})


class Pictures:
    """Drawn pictures grouped by size, so that a batch has one size."""

    def __init__(self, by_size: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]):
        self.by_size = by_size
        counts = np.array([len(pixels) for pixels, _ in by_size.values()])
        self.chances = counts / counts.sum()

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Pixels `[count, h, w, 3]` uint8 and labels `[count, 6]` in the order of `ASPECTS`."""
        pixels, labels = list(self.by_size.values())[rng.choice(len(self.chances), p=self.chances)]
        rows = rng.integers(0, len(pixels), count)
        return torch.from_numpy(pixels[rows]), torch.from_numpy(labels[rows]).long()


class Sight(nn.Module):
    """Reads each aspect off the features, only in pretraining: attention, then nearness to the labels' words."""

    def __init__(self, label_words: list[Tensor]):
        super().__init__()
        self.queries = nn.Parameter(0.3 * torch.randn(len(ASPECTS), label_words[0].shape[1]))
        self.scale = nn.Parameter(torch.tensor(8.0))
        for k, table in enumerate(label_words):
            self.register_buffer(f"words{k}", table)

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[B, T, D]`, labels `[B, 6]` (-1 absent) -> loss summed over aspects, and hits `[B, 6]`."""
        weights = torch.einsum("btd,ad->bat", features, self.queries).softmax(-1)
        pooled = weights @ features
        loss, hits = features.new_zeros(()), []
        for k in range(len(ASPECTS)):
            table = getattr(self, f"words{k}")
            scores = self.scale * pooled[:, k] @ table.T / table.shape[1]
            target = torch.where(labels[:, k] < 0, len(table) - 1, labels[:, k])
            loss = loss + F.cross_entropy(scores, target)
            hits.append(scores.argmax(-1) == target)
        return loss, torch.stack(hits, 1)


def off_scale(features: Tensor) -> Tensor:
    """How far features are from the word embeddings' scale, which is one."""
    return (features.pow(2).mean(-1).sqrt() - 1).pow(2).mean()


class Trainer:
    """The model, its data and the phases."""

    def __init__(self, questions: Questions, seed: int, report: Report = lambda *_: None):
        torch.manual_seed(seed)
        self.questions, self.report = questions, report
        self.tokenizer = build_tokenizer(questions, VOCAB_SIZE)
        self.model = build_model(self.tokenizer)
        self.packer = Packer(self.tokenizer)
        self.examples = Examples(self.tokenizer, questions, np.random.default_rng([seed, 1]))
        self.seed, self.rng = seed, np.random.default_rng([seed, 2])
        self.noise = torch.Generator().manual_seed(seed)
        self.sight: Sight | None = None
        table = self.language.embed_tokens.weight
        geometry = draw_geometry(self.tokenizer, self.examples.all_words, *table.shape, self.noise)
        table.data.copy_(geometry.table)
        self.loudness = geometry.noise

    @property
    def language(self) -> nn.Module:
        return self.model.model.language_model

    @property
    def vision(self) -> nn.Module:
        return self.model.model.visual

    def example_loss(self, examples: list[Example], features: Tensor | None = None) -> Tensor:
        """Mean loss per question."""
        packed = self.packer.pack(examples)
        embeddings = embed(self.model, packed, features, self.noise, self.loudness)
        hidden = hidden_states(self.model, packed, embeddings, self.packer.opening)
        each = losses(self.model, packed, hidden, self.packer.emotions)
        return (each * packed.weights).sum() / packed.weights.sum()

    def text_batches(self, size: int, running: float) -> Iterator[list[Example]]:
        """Batches of texts of like length, a share `running` of them without a question."""
        draw = self.examples
        while True:
            pool = []
            for _ in range(4 * size):
                kind, scene = draw.rng.random(), draw.scene()
                if kind < running:
                    pool.append(draw.running(scene))
                elif kind < running + 0.67 * (1 - running):
                    pool.append(draw.text(scene, int(draw.out_of_place or draw.rng.random() < 0.3)))
                elif kind < running + 0.97 * (1 - running):
                    pool.append(draw.single(scene))
                else:
                    pool.append(draw.object_list())
            pool.sort(key=self.packer.length)
            batches = [pool[k : k + size] for k in range(0, len(pool), size)]
            for k in draw.rng.permutation(len(batches)):
                yield batches[k]

    # Phases

    def learn_words(self, plan: Plan) -> None:
        """Texts alone: first without questions, then with."""
        self._begin(1)
        total = plan.running_steps + plan.words_steps
        self._freeze(vision=True)
        optimizer = self._optimizer(language=3e-3)
        self.examples.richness = 0.15
        batches = self.text_batches(64, running=1.0)
        for step in range(total):
            if step == plan.running_steps:
                batches = self.text_batches(32, running=0.15)
            if step == plan.running_steps + plan.words_steps // 4:
                self.examples.richness = 1.0
            loss = self.example_loss(next(batches))
            optimizer.step(loss, step, total, decay=plan.words_steps / (2 * total))
            self.report("words", step + 1, total, {"loss": loss.item()})

    def learn_places(self, plan: Plan) -> None:
        """Texts alone, in which a word counts only where its aspect stands."""
        self._begin(4)
        self._freeze(vision=True)
        self.examples.richness, self.examples.out_of_place = 1.0, True
        optimizer = self._optimizer(language=2e-3)
        batches = self.text_batches(32, running=0.1)
        for step in range(plan.places_steps):
            loss = self.example_loss(next(batches))
            optimizer.step(loss, step, plan.places_steps, decay=0.6)
            self.report("places", step + 1, plan.places_steps, {"loss": loss.item()})

    def learn_sight(self, plan: Plan, pictures: Pictures) -> None:
        """The vision encoder alone."""
        self._begin(2)
        self.sight = Sight(self._label_words())
        self._freeze(vision=False, language=True)
        optimizer = self._optimizer(vision=3e-3)
        for step in range(plan.sight_steps):
            pixels, labels = pictures.draw(plan.sight_batch, self.rng)
            features, _ = encode(self.model, pixels)
            loss, hits = self.sight(features, labels)
            optimizer.step(loss + 0.5 * off_scale(features), step, plan.sight_steps, decay=0.5)
            figures = {"loss": loss.item(), "right": hits.float().mean().item()}
            self.report("sight", step + 1, plan.sight_steps, figures)

    def learn_together(self, plan: Plan, pictures: Pictures) -> None:
        """Pictures with aspect questions, and texts."""
        self._begin(3)
        self._freeze(vision=False)
        self.examples.richness, self.examples.out_of_place = 1.0, True
        mark = self.language.embed_tokens.weight[self.examples.mark].detach()
        with torch.no_grad():
            self.vision.merger.mlp[-1].bias += mark
        optimizer = self._optimizer(language=2e-3, vision=1e-3)
        texts = self.text_batches(plan.together_texts, running=0.15)
        for step in range(plan.together_steps):
            pixels, labels = pictures.draw(plan.together_pictures, self.rng)
            features, (_, rows, columns) = encode(self.model, pixels)
            seen, _ = self.sight(features, labels)
            examples = [
                self.picture_example(k, Scene(tuple(labels[k].tolist())), (rows // 2, columns // 2), plan)
                for k in range(len(pixels))
            ]
            asked = self.example_loss(examples, features)
            told = self.example_loss(next(texts))
            loss = 0.3 * seen + 0.5 * off_scale(features - mark) + plan.picture_turns * asked + told
            optimizer.step(loss, step, plan.together_steps, decay=0.6)
            figures = {"asked": asked.item(), "told": told.item(), "seen": seen.item()}
            self.report("together", step + 1, plan.together_steps, figures)

    def picture_example(self, index: int, scene: Scene, grid: tuple[int, int], plan: Plan) -> Example:
        """A picture and aspect questions; at times words of some aspects stand before its features."""
        draw = self.examples.picture_with_words if self.examples.rng.random() < 0.15 else self.examples.picture
        return draw(index, scene, grid, plan.picture_turns)

    def _label_words(self) -> list[Tensor]:
        """Per aspect `[labels + 1, D]`: the mean embedding of each label's words, at scale one; the last says none."""
        table = self.language.embed_tokens.weight.detach()
        found = []
        for aspect in ASPECTS:
            means = [table[self.packer.ids(words(label))].mean(0) for label in (*LABELS[aspect], NONE)]
            stacked = torch.stack(means)
            found.append(stacked / stacked.pow(2).mean(-1, keepdim=True).sqrt())
        return found

    def _begin(self, phase: int) -> None:
        """Seed all generators: a phase depends on what it starts from, not on what was drawn before it."""
        torch.manual_seed(self.seed + phase)
        self.noise.manual_seed(self.seed + phase)
        self.rng = np.random.default_rng([self.seed, 2, phase])
        self.examples.rng = np.random.default_rng([self.seed, 1, phase])

    def _freeze(self, vision: bool, language: bool = False) -> None:
        self.model.requires_grad_(not language)
        self.vision.requires_grad_(not vision)
        self.language.embed_tokens.weight.requires_grad_(False)

    def _optimizer(self, language: float = 0.0, vision: float = 0.0) -> _Optimizer:
        return _Optimizer(self.model, self.sight, language, vision)


class _Optimizer:
    """Muon for the layers' matrices, AdamW for all else that is trained."""

    def __init__(self, model, sight: Sight | None, language: float, vision: float):
        apart = ("embed_tokens", "lm_head", "patch_embed", "merger")
        matrices: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        rest = [] if sight is None else list(sight.parameters())
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.ndim == 2 and not any(part in name for part in apart):
                matrices["visual" in name].append(parameter)
            else:
                rest.append(parameter)
        self.optimizers = [
            *(Muon(group, rate) for group, rate in ((matrices[True], vision), (matrices[False], language)) if group),
            torch.optim.AdamW(rest, lr=2e-3 if sight is None else 1e-3, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self.groups = [(group, group["lr"]) for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, loss: Tensor, step: int, total: int, decay: float) -> None:
        """One step: the rate warms up over 50 steps and falls to zero over the last `decay` of all."""
        share = min(1.0, (step + 1) / 50, (total - step) / (decay * total))
        for group, rate in self.groups:
            group["lr"] = rate * share
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
