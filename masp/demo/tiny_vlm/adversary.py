"""Adversarial pretraining: aspect modules that imitate stage 1, and the answers that the language model should give.

Stage 1 finds aspect tokens by gradient descent and exploits whatever makes the language model give the right answer,
whether or not the tokens mean anything to the model elsewhere. During the last part of its pretraining, aspect modules
are therefore trained against it, on vectors that imitate vision tokens. If the tokens they find do not express a word,
the target answer is `none`; if they do, they express the same word in a text. No images are involved.
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
from masp.demo.world.factors import ASPECTS, LABELS, SENSES, Scene, words
from masp.models.trainable import AspectModules

WIDTH = 5
"""Aspect tokens per aspect."""
CHANCE_TAKEN = 0.8
"""Probability that the tokens found for an aspect are used in a text."""
AXES = {aspect: [k for k, (factor, _) in enumerate(WORDS) if factor == aspect] for aspect in ASPECTS}


class Adversary:
    """Aspect modules trained as in stage 1, but at a constant learning rate and restarted from time to time."""

    def __init__(self, hidden: int, longest: int, rng: np.random.Generator):
        self.hidden, self.longest, self.rng = hidden, longest, rng
        self._begin()

    def _begin(self) -> None:
        self.steps_left = int(self.rng.integers(self.longest // 4, self.longest))
        self.modules = AspectModules(ASPECTS, self.hidden, WIDTH)
        rate = float(np.exp(self.rng.uniform(np.log(1e-3), np.log(6e-3))))
        self.optimizer = torch.optim.AdamW(self.modules.parameters(), lr=rate)

    def step(self) -> None:
        """Take an optimizer step with the accumulated gradients."""
        torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps_left -= 1
        if self.steps_left == 0:
            self._begin()


@dataclass
class Found:
    """The aspect tokens found for one scene."""

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
        """Start with fresh adversaries.

        Args:
            model: The tiny VLM.
            count: Number of adversaries.
            num_scenes: Number of scenes per adversary and step.
            longest: Maximum number of steps after which an adversary is restarted.
        """
        self.model, self.packer, self.examples, self.geometry, self.noise = model, packer, examples, geometry, noise
        hidden = geometry.codes.shape[1]
        self.adversaries = [Adversary(hidden, longest, examples.rng) for _ in range(count)]
        self.num_scenes = num_scenes
        self.left = torch.full((hidden,), 1 / LOUDER)
        self.left[geometry.mark] = 1.0

    def losses(self) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Let the adversaries take a step, and ask the language model about the tokens they found.

        Returns:
            The loss of the language model on aspects, its loss on emotions, and figures: `hits`, the share of tokens
            that produced the right answer, and `fooled`, the share of tokens expressing no word that were not
            answered with `none`.
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
            label = self.verdict(tokens, turn.about)
            if label is not None:
                clear.append((tokens.detach(), Turn(turn.about, turn.question, words(label)), gap))
        figures = {"hits": 1 - missed.float().mean().item(), "fooled": 0.0}
        answers = wanted.new_zeros(())
        if clear:
            answers, wrong = self._answers(clear)
            silent = torch.tensor([turn.answer == NONE for _, turn, _ in clear])
            figures["fooled"] = (wrong & silent).sum().item() / max(1, int(silent.sum()))
        return answers, self._emotions(found), figures

    def expressed(self, tokens: Tensor) -> Tensor:
        """For each of `WORDS`, how strongly tokens `[..., WIDTH, D]` express it (maximum); 1 is the word itself."""
        layer, codes = self.model.model.language_model.layers[0], self.geometry.codes
        with torch.no_grad():
            constant = layer.self_attn.o_proj.weight[:, 0]
            made = layer.mlp(layer.post_attention_layernorm(tokens + constant))
            return (made @ (codes / codes.pow(2).sum(-1, keepdim=True)).T).amax(-2)

    def verdict(self, tokens: Tensor, aspect: str, alone: bool = False) -> str | None:
        """What aspect tokens `[WIDTH, D]` express: a label of the aspect or `NONE`; None if that is ambiguous.

        Args:
            tokens: Tokens of the aspect.
            aspect: Aspect of the question.
            alone: Whether words of other factors make it ambiguous as well.
        """
        scores = self.expressed(tokens)
        own, foreign = scores[AXES[aspect]], scores.clone()
        foreign[AXES[aspect]] = 0.0
        if alone and foreign.max() > TOO_FAINT**2:  # the code of a word is scaled by its share of the energy
            return None
        first, second = own.topk(2).values.tolist()
        if first >= FAINTEST**2 and second <= TOO_FAINT**2:
            return LABELS[aspect][int(own.argmax())]
        return NONE if first <= TOO_FAINT**2 else None

    def _look(self, adversary: Adversary) -> Found:
        scene = self.examples.scene()
        grid, slots = self.examples.imitated_image(scene)
        packed = self.packer.pack([Example(slots=slots)])
        seen = embed(self.model, packed, None, self.geometry.table, self.noise)[:, : len(slots)]
        return Found(scene, grid, slots, adversary.modules(seen, torch.ones(seen.shape[:2], dtype=torch.bool))[0])

    def _answers(self, asked: list[tuple[Tensor, Turn, int]]) -> tuple[Tensor, Tensor]:
        """Mean loss of the questions, each with the tokens of its aspect alone, and which answers were wrong, `[N]`.

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
        """Texts that ask for the emotion, and `[len(found), A, WIDTH, 1]`: 1.0 where they use the tokens that were
        found.

        If it is clear what the tokens of an aspect express, the text may use them; otherwise its own slots express the
        label of the scene.
        """
        draw, examples, taken = self.examples, [], torch.zeros(len(found), len(ASPECTS), WIDTH, 1)
        for number, f in enumerate(found):
            labels, slots = list(f.scene.labels), []
            for k, aspect in enumerate(ASPECTS):
                label = f.scene.label(aspect)
                slots += draw.noise_slots(WIDTH, k) if label is None else draw.label_slots(aspect, label, WIDTH)
                found_label = self.verdict(f.tokens[k], aspect, alone=True)
                if found_label is not None and draw.rng.random() < CHANCE_TAKEN:
                    taken[number, k] = 1.0
                    labels[k] = -1 if found_label == NONE else LABELS[aspect].index(found_label)
            senses = (SENSES[0], (None, SENSES[1])[draw.rng.integers(2)])
            turns = [draw.emotion_turn(Scene(tuple(labels)), sense) for sense in senses]
            examples.append(Example(slots=slots, grid_slots=f.grid_slots, grid=f.grid, turns=turns, gap=draw.gap()))
        return examples, taken

    def _emotions(self, found: list[Found]) -> Tensor:
        """Mean loss of the emotion answers in `texts`."""
        examples, taken = self.texts(found)
        packed = self.packer.pack(examples)
        tokens = torch.stack([f.tokens.detach().flatten(0, 1) for f in found])
        each, _ = self._each(packed, tokens, taken.flatten(1, 2))
        return (each * packed.weights).sum() / packed.weights.sum()

    def _each(self, packed: Packed, tokens: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of every supervised position, and 1.0 where the most likely token is wrong, both `[N]`.

        Args:
            packed: The batch.
            tokens: `[B, S, D]` for the first `S` positions.
            taken: `[B, S, 1]`, 1.0 where these tokens are used, 0.0 for the batch's own slots.
        """
        base = embed(self.model, packed, None, self.geometry.table, self.noise)
        count = tokens.shape[1]
        first = torch.where(taken > 0, tokens, base[:, :count])

        def attenuate(_, args):
            x = args[0]
            if x.shape[:2] != packed.words.shape[:2]:  # the opening, shared by all rows
                return None
            return torch.cat([x[:, :count] - taken * tokens * (1 - self.left), x[:, count:]], 1), *args[1:]

        # After the first layer, scale the tokens relative to its codes as `make_louder` will do later.
        handle = self.model.model.language_model.layers[1].register_forward_pre_hook(attenuate)
        try:
            x = torch.cat([first, base[:, count:]], 1)
            hidden, _ = hidden_states(self.model, packed, x, self.packer.opening)
        finally:
            handle.remove()
        wrong = (self.model.lm_head(hidden).argmax(-1) != packed.targets).float()
        return losses_of(self.model, packed, hidden, self.packer.emotions), wrong
