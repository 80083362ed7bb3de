"""What stage 1 would find against the language model as it is, and what should be answered to that.

Stage 1 looks for aspect tokens by gradient descent and takes whatever the language model answers to, whether or not it
means anything to it elsewhere. So aspect modules learn against it all through the last part of its pretraining, on
vectors that imitate vision tokens. To what they find and is no word, the answer is `none`; what tells a word, tells it
in a text as well. Pictures have no part in this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from masp.demo.tiny_vlm.batch import Packed, Packer, embed, hidden_states
from masp.demo.tiny_vlm.batch import losses as losses_of
from masp.demo.tiny_vlm.examples import FAINTEST, TOO_FAINT, Example, Examples, Slot, Turn
from masp.demo.tiny_vlm.geometry import LOUDER, WORDS, Geometry
from masp.demo.tiny_vlm.tokenizer import NONE
from masp.demo.world.factors import LABELS, SENSES, Scene, words
from masp.models.aspect_modules import AspectModules
from masp.taxonomy import ASPECTS

WIDTH = 5
"""Aspect tokens per aspect."""
CHANCE_TAKEN = 0.8
"""How often the tokens that were found for an aspect stand in a text."""
AXES = {aspect: [k for k, (factor, _) in enumerate(WORDS) if factor == aspect] for aspect in ASPECTS}


class Adversary:
    """Aspect modules that learn as stage 1 does, but at a constant rate and from anew every so often."""

    def __init__(self, hidden: int, longest: int, rng: np.random.Generator):
        self.hidden, self.longest, self.rng = hidden, longest, rng
        self._begin()

    def _begin(self) -> None:
        self.steps_left = int(self.rng.integers(self.longest // 4, self.longest))
        self.modules = AspectModules(ASPECTS, self.hidden, WIDTH)
        rate = float(np.exp(self.rng.uniform(np.log(1e-3), np.log(6e-3))))
        self.optimizer = torch.optim.AdamW(self.modules.parameters(), lr=rate)

    def step(self) -> None:
        """Follow the gradients that have been gathered."""
        torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps_left -= 1
        if self.steps_left == 0:
            self._begin()


@dataclass
class Found:
    """The aspect tokens of one scene."""

    scene: Scene
    grid: tuple[int, int]
    grid_slots: list[Slot]
    tokens: Tensor
    """`[A, WIDTH, D]`."""


class Adversaries:
    """Several adversaries of one language model."""

    def __init__(
        self, model, packer: Packer, examples: Examples, geometry: Geometry, noise: torch.Generator,
        count: int = 3, num_scenes: int = 4, longest: int = 300,
    ):  # fmt: skip
        """Begin with fresh ones.

        Args:
            model: the tiny VLM.
            count: adversaries.
            num_scenes: scenes per adversary and step.
            longest: most steps after which one begins from anew.
        """
        self.model, self.packer, self.examples, self.geometry, self.noise = model, packer, examples, geometry, noise
        hidden = geometry.codes.shape[1]
        self.adversaries = [Adversary(hidden, longest, examples.rng) for _ in range(count)]
        self.num_scenes = num_scenes
        self.left = torch.full((hidden,), 1 / LOUDER)
        self.left[geometry.mark] = 1.0

    def losses(self) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Let the adversaries take a step, and ask about what they have found.

        Returns:
            The language model's loss in answering about aspects, its loss in telling emotions, and figures: `hits`,
            the share of tokens that made it answer as they should, and `fooled`, the share of those that tell no word
            and are answered otherwise.
        """
        found = [self._look(adversary) for adversary in self.adversaries for _ in range(self.num_scenes)]
        asked = [
            (f.tokens[k], self.examples.aspect_turn(aspect, f.scene.label(aspect)), self.examples.gap())
            for f in found
            for k, aspect in enumerate(ASPECTS)
            if f.scene.label(aspect) is not None
        ]
        wanted, missed = self._answers(asked)
        parameters = [p for adversary in self.adversaries for p in adversary.modules.parameters()]
        gradients = torch.autograd.grad(wanted * len(self.adversaries), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for adversary in self.adversaries:
            adversary.step()
        clear = []
        for tokens, turn, gap in asked:
            told = self.verdict(tokens, turn.about)
            if told is not None:
                clear.append((tokens.detach(), Turn(turn.about, turn.question, words(told)), gap))
        figures = {"hits": 1 - missed.float().mean().item(), "fooled": 0.0}
        answers = wanted.new_zeros(())
        if clear:
            answers, wrong = self._answers(clear)
            silent = torch.tensor([turn.answer == NONE for _, turn, _ in clear])
            figures["fooled"] = (wrong & silent).sum().item() / max(1, int(silent.sum()))
        return answers, self._emotions(found), figures

    def told(self, tokens: Tensor) -> Tensor:
        """How much of each of `WORDS` the loudest of the tokens `[..., WIDTH, D]` tells; 1 is about the word itself."""
        layer, codes = self.model.model.language_model.layers[0], self.geometry.codes
        with torch.no_grad():
            constant = layer.self_attn.o_proj.weight[:, 0]
            made = layer.mlp(layer.post_attention_layernorm(tokens + constant))
            return (made @ (codes / codes.pow(2).sum(-1, keepdim=True)).T).amax(-2)

    def verdict(self, tokens: Tensor, aspect: str, alone: bool = False) -> str | None:
        """What aspect tokens `[WIDTH, D]` tell: a label of the aspect or `NONE`; None if that is doubtful.

        Args:
            tokens: of the aspect.
            aspect: that is asked about.
            alone: words of other factors make it doubtful as well.
        """
        told = self.told(tokens)
        own, foreign = told[AXES[aspect]], told.clone()
        foreign[AXES[aspect]] = 0.0
        if alone and foreign.max() > TOO_FAINT**2:  # a word's code is on by its share of the energy
            return None
        first, second = own.topk(2).values.tolist()
        if first >= FAINTEST**2 and second <= TOO_FAINT**2:
            return LABELS[aspect][int(own.argmax())]
        return NONE if first <= TOO_FAINT**2 else None

    def _look(self, adversary: Adversary) -> Found:
        scene = self.examples.scene()
        grid, slots = self.examples.strewn(scene)
        packed = self.packer.pack([Example(slots=slots)])
        seen = embed(self.model, packed, None, self.geometry.table, self.noise)[:, : len(slots)]
        return Found(scene, grid, slots, adversary.modules(seen, torch.ones(seen.shape[:2], dtype=torch.bool))[0])

    def _answers(self, asked: list[tuple[Tensor, Turn, int]]) -> tuple[Tensor, Tensor]:
        """Mean loss of each aspect's question behind its tokens alone, and which were answered wrongly, `[N]`.

        Args:
            asked: Aspect tokens `[WIDTH, D]`, question and gap, `N` times.
        """
        empty = [Slot([0], [0.0])] * WIDTH
        examples = [Example(slots=empty, turns=[turn], gap=gap) for _, turn, gap in asked]
        packed = self.packer.pack(examples)
        each, wrong = self._each(
            packed, torch.stack([tokens for tokens, _, _ in asked]), torch.ones(len(examples), WIDTH, 1)
        )
        failures = torch.zeros(len(examples)).index_add_(0, packed.supervised // packed.words.shape[1], wrong)
        return (each * packed.weights).sum() / packed.weights.sum(), failures > 0

    def texts(self, found: list[Found]) -> tuple[list[Example], Tensor]:
        """Texts that ask for the emotion, and `[len(found), A, WIDTH, 1]`: 1.0 where what was found stands in them.

        Where it is clear what an aspect's tokens tell, that is known; else the text's own slots tell the scene's label.
        """
        draw, examples, taken = self.examples, [], torch.zeros(len(found), len(ASPECTS), WIDTH, 1)
        for number, f in enumerate(found):
            labels, slots = list(f.scene.labels), []
            for k, aspect in enumerate(ASPECTS):
                label = f.scene.label(aspect)
                slots += draw.noise_slots(WIDTH, k) if label is None else draw.label_slots(aspect, label, WIDTH)
                told = self.verdict(f.tokens[k], aspect, alone=True)
                if told is not None and draw.rng.random() < CHANCE_TAKEN:
                    taken[number, k] = 1.0
                    labels[k] = -1 if told == NONE else LABELS[aspect].index(told)
            senses = (SENSES[0], (None, SENSES[1])[draw.rng.integers(2)])
            turns = [draw.emotion_turn(Scene(tuple(labels)), sense) for sense in senses]
            examples.append(Example(slots=slots, grid_slots=f.grid_slots, grid=f.grid, turns=turns, gap=draw.gap()))
        return examples, taken

    def _emotions(self, found: list[Found]) -> Tensor:
        """Mean loss of the emotion in `texts`."""
        examples, taken = self.texts(found)
        packed = self.packer.pack(examples)
        tokens = torch.stack([f.tokens.detach().flatten(0, 1) for f in found])
        each, _ = self._each(packed, tokens, taken.flatten(1, 2))
        return (each * packed.weights).sum() / packed.weights.sum()

    def _each(self, packed: Packed, tokens: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of every supervised position, and 1.0 where the likeliest token is another, both `[N]`.

        Args:
            packed: the batch.
            tokens: `[B, S, D]` for the first `S` positions.
            taken: `[B, S, 1]`, 1.0 where they stand, 0.0 where the batch's own slots do.
        """
        base = embed(self.model, packed, None, self.geometry.table, self.noise)
        count = tokens.shape[1]
        first = torch.where(taken > 0, tokens, base[:, :count])

        def fainter(_, args):
            x = args[0]
            if x.shape[:2] != packed.words.shape[:2]:  # the opening, which all rows share
                return None
            return torch.cat([x[:, :count] - taken * tokens * (1 - self.left), x[:, count:]], 1), *args[1:]

        # Behind the first layer tokens are as faint beside its codes as `make_louder` will make them.
        handle = self.model.model.language_model.layers[1].register_forward_pre_hook(fainter)
        try:
            x = torch.cat([first, base[:, count:]], 1)
            hidden, _ = hidden_states(self.model, packed, x, self.packer.opening)
        finally:
            handle.remove()
        wrong = (self.model.lm_head(hidden).argmax(-1) != packed.targets).float()
        return losses_of(self.model, packed, hidden, self.packer.emotions), wrong
