"""Pretrains the tiny VLM: the language model on text, the vision encoder on images, then the encoder with both.

Neither half needs the other at first: the fixed geometry of the hidden space defines on which axes vision tokens
represent what is seen, and texts imitate them. At the end, only the vision encoder is trained a little longer, together
with the finished language model. No example contains both an image and an emotion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masp.data.questions import Questions
from masp.demo.tiny_vlm.adversary import Adversaries
from masp.demo.tiny_vlm.batch import Packer, embed, hidden_states, losses
from masp.demo.tiny_vlm.examples import Example, Examples
from masp.demo.tiny_vlm.geometry import SCALE, WORDS, Geometry, draw_geometry, hold, set_first_layer
from masp.demo.tiny_vlm.model import VOCAB_SIZE, build_model, encode
from masp.demo.tiny_vlm.muon import Muon
from masp.demo.tiny_vlm.tokenizer import build_tokenizer
from masp.demo.world.factors import FACTORS, LABELS, Scene

Report = Callable[[str, int, int, dict], None]
"""Called with the name of a phase, the steps done, the total number of steps, and figures."""


@dataclass(frozen=True)
class Plan:
    """Number of steps and batch size of each phase."""

    running_steps: int = 400
    """Texts without a question, in which the emotion is predicted after each word: short and dense, so they come
    first."""
    text_steps: int = 4000
    """Texts with questions."""
    doubts_steps: int = 1500
    """Texts with questions again, at a lower learning rate and with adversaries."""
    sight_steps: int = 3600
    together_steps: int = 1500
    text_batch: int = 32
    sight_batch: int = 32
    together_batch: int = 16
    image_turns: int = 3
    """Number of aspects asked about an image at a time."""
    num_images: int = 26000

    def scaled(self, by: float) -> Plan:
        """The same plan with the numbers of steps and images multiplied by `by`."""
        counts = {f.name: getattr(self, f.name) for f in fields(self) if f.name.endswith("steps")}
        counts["num_images"] = self.num_images
        return replace(self, **{name: max(1, round(count * by)) for name, count in counts.items()})


class ImagesBySize:
    """Drawn images grouped by size, so that all images of a batch have the same size."""

    def __init__(self, by_size: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]):
        self.by_size = by_size
        counts = np.array([len(pixels) for pixels, _ in by_size.values()])
        self.chances = counts / counts.sum()

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Pixels `[count, h, w, 3]` uint8 and labels `[count, 7]` in the order of `FACTORS`."""
        pixels, labels = list(self.by_size.values())[rng.choice(len(self.chances), p=self.chances)]
        rows = rng.integers(0, len(pixels), count)
        return torch.from_numpy(pixels[rows]), torch.from_numpy(labels[rows]).long()


class Sight(nn.Module):
    """Predicts each factor from the features, by attention pooling and the components on the label axes.

    Used only in pretraining.
    """

    SHARPNESS = 12.0
    """Logits per norm of a word along the axis of a label: a confident answer takes about half a word."""

    def __init__(self, hidden: int):
        super().__init__()
        self.queries = nn.Parameter(0.3 * torch.randn(len(FACTORS), hidden))
        first = {f: WORDS.index((f, LABELS[f][0])) for f in FACTORS}
        self.axes = [slice(first[f], first[f] + len(LABELS[f])) for f in FACTORS]

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[B, T, D]`, labels `[B, 7]` (-1 absent) -> loss summed over factors, and hits `[B, 7]`."""
        features = features / SCALE
        weights = torch.einsum("btd,fd->bft", features, self.queries).softmax(-1)
        pooled = weights @ features / features.shape[-1] ** 0.5
        loss, hits = features.new_zeros(()), []
        for k, axes in enumerate(self.axes):
            scores = F.pad(self.SHARPNESS * pooled[:, k, axes], (0, 1))  # the last score: the factor is absent
            target = torch.where(labels[:, k] < 0, scores.shape[1] - 1, labels[:, k])
            loss = loss + F.cross_entropy(scores, target)
            hits.append(scores.argmax(-1) == target)
        return loss, torch.stack(hits, 1)


def off_scale(features: Tensor, mark: int) -> Tensor:
    """Squared relative deviation of the scale of features, without their mark, from that of word embeddings."""
    unmarked = features.pow(2).mean(-1) - features[..., mark].pow(2) / features.shape[-1]
    return (unmarked.clamp_min(1e-8).sqrt() / SCALE - 1).pow(2).mean()


class Trainer:
    """The model, its data and the phases of its training."""

    def __init__(self, questions: Questions, seed: int, report: Report = lambda *_: None):
        torch.manual_seed(seed)
        self.report = report
        self.tokenizer = build_tokenizer(questions, VOCAB_SIZE)
        self.model = build_model(self.tokenizer)
        self.packer = Packer(self.tokenizer)
        self.examples = Examples(self.tokenizer, questions, np.random.default_rng([seed, 1]), VOCAB_SIZE)
        self.seed, self.rng = seed, np.random.default_rng([seed, 2])
        self.noise = torch.Generator().manual_seed(seed)
        table = self.language.embed_tokens.weight
        self.geometry: Geometry = draw_geometry(self.tokenizer, len(table), table.shape[1], self.noise)
        table.data.copy_(self.geometry.table[: len(table)])
        set_first_layer(self.language.layers[0], self.geometry)
        self.vision.merger.mlp[-1].weight.data.mul_(SCALE)
        for layer in self.language.layers[1:]:
            layer.input_layernorm.weight.data[self.geometry.mark] = 10.0  # the mark is weak
        hold(self.model, self.geometry)
        torch.manual_seed(seed + 1)
        self.sight = Sight(table.shape[1])

    # transformers does not type the parts of its models
    @property
    def language(self) -> Any:
        return self.model.model.language_model

    @property
    def vision(self) -> Any:
        return self.model.model.visual

    def example_loss(self, examples: list[Example], features: Tensor | None = None) -> Tensor:
        """Mean loss per question.

        The content must be summarized before the last layer, so that a question can still attend to it. Where the
        emotion is predicted after each word, it is therefore also supervised there.
        """
        packed = self.packer.pack(examples)
        embeddings = embed(self.model, packed, features, self.geometry.table, self.noise)
        hidden, early = hidden_states(self.model, packed, embeddings, self.packer.opening)
        each = losses(self.model, packed, hidden, self.packer.emotions)
        summed = losses(self.model, packed, early, self.packer.emotions)[packed.running]
        weights = packed.weights[packed.running]
        return ((each * packed.weights).sum() + 0.5 * (summed * weights).sum()) / packed.weights.sum()

    def text_batches(self, size: int, running: float) -> Iterator[list[Example]]:
        """Batches of texts of similar length, a share `running` of them without a question."""
        draw = self.examples
        while True:
            pool = []
            for _ in range(4 * size):
                kind, scene = draw.rng.random(), draw.scene()
                if kind < running:
                    pool.append(draw.running(scene))
                elif kind < running + 0.6 * (1 - running):
                    pool.append(draw.text(scene, int(draw.rng.random() < 0.5)))
                elif kind < running + 0.75 * (1 - running):
                    pool.append(draw.single(scene))
                elif kind < running + 0.85 * (1 - running):
                    pool.append(draw.glimpse(scene))
                elif kind < running + 0.98 * (1 - running):
                    pool.append(draw.looking(scene, 2))
                else:
                    pool.append(draw.object_list())
            pool.sort(key=self.packer.length)
            batches = [pool[k : k + size] for k in range(0, len(pool), size)]
            for k in draw.rng.permutation(len(batches)):
                yield batches[k]

    # Phases

    def learn_language(self, plan: Plan) -> None:
        """Train the language model on text alone, first without questions and then with them."""
        self._begin(1)
        total = plan.running_steps + plan.text_steps
        self._train_only(self.language)
        optimizer = _Optimizer({"": self.language, "lm_head": self.model.lm_head}, 3e-3)
        self.examples.richness, self.examples.with_senses = 0.15, False
        batches = self.text_batches(2 * plan.text_batch, running=1.0)
        for step in range(total):
            if step == plan.running_steps:
                batches = self.text_batches(plan.text_batch, running=0.2)
            self.examples.richness = 0.15 if step < plan.running_steps + 0.15 * plan.text_steps else 1.0
            self.examples.with_senses = step >= plan.running_steps + 0.35 * plan.text_steps
            loss = self.example_loss(next(batches))
            optimizer.step(loss, step, total, decay=0.5)
            hold(self.model, self.geometry)
            self.report("language", step + 1, total, {"loss": loss.item()})

    def learn_doubts(self, plan: Plan) -> None:
        """Train the language model again on the same texts, at a lower learning rate, with adversaries against it."""
        self._begin(4)
        self._train_only(self.language)
        optimizer = _Optimizer({"": self.language, "lm_head": self.model.lm_head}, 2e-3)
        batches = self.text_batches(plan.text_batch, running=0.15)
        adversaries = Adversaries(self.model, self.packer, self.examples, self.geometry, self.noise)
        for step in range(plan.doubts_steps):
            loss = self.example_loss(next(batches))
            answers, emotions, figures = adversaries.losses()
            optimizer.step(loss + answers + emotions, step, plan.doubts_steps, decay=0.8)
            hold(self.model, self.geometry)
            self.report("doubts", step + 1, plan.doubts_steps, {"loss": loss.item(), **figures})

    def learn_sight(self, plan: Plan, images: ImagesBySize) -> None:
        """Train the vision encoder alone."""
        self._begin(2)
        self._train_only(self.vision, self.sight)
        optimizer = _Optimizer({"": self.vision, "sight": self.sight}, 3e-3)
        for step in range(plan.sight_steps):
            pixels, labels = images.draw(plan.sight_batch, self.rng)
            features, _ = encode(self.model, pixels)
            loss, hits = self.sight(features, labels)
            optimizer.step(loss + 0.5 * off_scale(features, self.geometry.mark), step, plan.sight_steps, decay=0.5)
            hold(self.model, self.geometry)
            figures = {"loss": loss.item(), "right": hits.float().mean().item()}
            self.report("sight", step + 1, plan.sight_steps, figures)

    def learn_together(self, plan: Plan, images: ImagesBySize) -> None:
        """Train the vision encoder with the frozen language model, on questions about aspects."""
        self._begin(3)
        self._train_only(self.vision, self.sight)
        optimizer = _Optimizer({"": self.vision, "sight": self.sight}, 1e-3)
        for step in range(plan.together_steps):
            pixels, labels = images.draw(plan.together_batch, self.rng)
            features, (_, rows, columns) = encode(self.model, pixels)
            seen, _ = self.sight(features, labels)
            scenes = [Scene(tuple(row.tolist())) for row in labels]
            grid = (rows // 2, columns // 2)
            examples = [self.examples.image(k, scene, grid, plan.image_turns) for k, scene in enumerate(scenes)]
            asked = self.example_loss(examples, features)
            loss = seen + 0.5 * off_scale(features, self.geometry.mark) + plan.image_turns * asked
            optimizer.step(loss, step, plan.together_steps, decay=0.6)
            hold(self.model, self.geometry)
            self.report("together", step + 1, plan.together_steps, {"asked": asked.item(), "seen": seen.item()})

    # Results of a phase

    def language_state(self) -> dict[str, Tensor]:
        """Tensors of the language half."""
        return {k: v.clone() for k, v in self.model.state_dict().items() if ".visual." not in k}

    def sight_state(self) -> dict[str, Tensor]:
        """Tensors of the vision encoder, and of `Sight`, which reads its features in pretraining."""
        state = {k: v.clone() for k, v in self.model.state_dict().items() if ".visual." in k}
        return state | {f"sight.{k}": v.clone() for k, v in self.sight.state_dict().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Load the result of `language_state` or `sight_state`."""
        sight = {k.removeprefix("sight."): v for k, v in state.items() if k.startswith("sight.")}
        if sight:
            self.sight.load_state_dict(sight)
        rest = {k: v for k, v in state.items() if not k.startswith("sight.")}
        unexpected = self.model.load_state_dict(rest, strict=False).unexpected_keys
        if unexpected:
            raise ValueError(f"{unexpected[0]} is not a tensor of this model")

    def _begin(self, phase: int) -> None:
        """Seed all generators, so that a phase depends only on the weights it starts from."""
        torch.manual_seed(self.seed + phase)
        self.noise.manual_seed(self.seed + phase + 1000)  # torch's global generator uses the number without the offset
        self.rng = np.random.default_rng([self.seed, 2, phase])
        self.examples.rng = np.random.default_rng([self.seed, 1, phase])
        self.examples.richness, self.examples.with_senses = 1.0, True

    def _train_only(self, *modules: nn.Module) -> None:
        self.model.requires_grad_(False)
        self.sight.requires_grad_(False)
        for module in modules:
            module.requires_grad_(True)
        self.model.lm_head.requires_grad_(self.language in modules)
        self.language.embed_tokens.requires_grad_(False)
        self.language.layers[0].requires_grad_(False)


class _Optimizer:
    """Muon for the matrices of layers, AdamW for all other trained parameters.

    Weight decay keeps the output of the layers near the scale of the codes, so that later layers can still read them.
    """

    def __init__(self, modules: dict[str, nn.Module], rate: float):
        apart = ("lm_head", "patch_embed", "merger", "sight")
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for prefix, module in modules.items():
            for name, parameter in module.named_parameters(prefix):
                if parameter.requires_grad:
                    layer = parameter.ndim == 2 and not any(part in name for part in apart)
                    (matrices if layer else rest).append(parameter)
        adam = torch.optim.AdamW(rest, lr=rate * 2 / 3, weight_decay=0.0, betas=(0.9, 0.98))
        self.optimizers = [Muon(matrices, rate, weight_decay=0.1), adam]
        self.groups = [(group, group["lr"]) for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, loss: Tensor, step: int, total: int, decay: float) -> None:
        """Take one step; the learning rate warms up over 50 steps and falls to zero in the last `decay` of them."""
        share = min(1.0, (step + 1) / 50, (total - step) / (decay * total))
        for group, rate in self.groups:
            group["lr"] = rate * share
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
