"""The examples that the tiny VLM is pretrained on: pictures with aspect questions, and texts with any question.

Never does an example hold a picture and an emotion: `Example` refuses it. What the language model knows about emotions
it knows from words that stand where a picture would.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from masp.data.categories import ASPECTS
from masp.data.demo.tokenizer import NONE
from masp.data.demo.world import EMOTIONS, LABELS, Scene, draw_scene, posterior, words
from masp.data.questions import Questions

EMOTION = "emotion"
LEVEL_ASPECTS = ("brightness", "colorfulness")


@dataclass
class Slot:
    """One vector of the visual block that is no vision token: a mixture of words, plus noise."""

    words: list[int]
    """Token ids that are mixed."""
    shares: list[float]
    """Their weights."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on top."""
    shared: tuple[int, float] = (0, 0.0)
    """Standard deviation of noise that all slots of the same number share."""


@dataclass
class Turn:
    """A question behind the visual block, and its answer."""

    about: str
    """An aspect, or `EMOTION`. (The answer does not tell: `fear` is an emotion and an expression.)"""
    question: str
    answer: str
    emotions: np.ndarray | None = None
    """`[8]` target distribution of an emotion answer, instead of the drawn one alone."""


@dataclass
class Example:
    """One visual block and what is asked about it."""

    num_vectors: int = 0
    """Vectors from outside that open the visual block, placed as words are."""
    slots: list[Slot] = field(default_factory=list)
    """The words of the visual block, before any picture."""
    grid_slots: list[Slot] = field(default_factory=list)
    """Vectors that say nothing, placed as vision tokens are."""
    grid: tuple[int, int] = (0, 0)
    """Rows and columns of the vision tokens or of `grid_slots`."""
    picture: int | None = None
    """Index of the picture whose features stand in the block."""
    filler: list[Slot] = field(default_factory=list)
    """Vectors between the visual block and the question, where a soft prompt would stand."""
    gap: int = 0
    """Positions skipped before the question."""
    turns: list[Turn] = field(default_factory=list)
    marks: list[tuple[int, np.ndarray]] = field(default_factory=list)
    """`(k, [8])`: after `k` slots, the distribution of emotions given the aspects told so far."""

    def check(self) -> Example:
        """Refuse what must never be learnt.

        Raises:
            ValueError: an emotion is asked about a picture.
        """
        emotional = any(turn.about == EMOTION or turn.emotions is not None for turn in self.turns)
        if self.picture is not None and (emotional or self.marks):
            raise ValueError("a picture and an emotion in one pretraining example")
        return self


def _join(parts: list[tuple[str | None, list[Slot]]]) -> list[Slot]:
    return [slot for _, slots in parts for slot in slots]


class Examples:
    """Draws examples from one generator."""

    richness = 1.0
    """How often texts get the long forms (five slots per aspect, noise beside them); less is cheaper, to begin with."""

    def __init__(self, tokenizer, questions: Questions, rng: np.random.Generator):
        self.tokenizer, self.questions, self.rng = tokenizer, questions, rng
        self.word_ids = {
            (aspect, i): self.ids(words(label)) for aspect in ASPECTS for i, label in enumerate(LABELS[aspect])
        }
        self.all_words = sorted({i for ids in self.word_ids.values() for i in ids})

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    # Questions

    def aspect_turn(self, aspect: str, scene: Scene) -> Turn:
        templates = self.questions.templates(aspect)
        label = scene.label(aspect)
        return Turn(aspect, templates[self.rng.integers(len(templates))], NONE if label is None else words(label))

    def emotion_turn(self, scene: Scene) -> Turn:
        chances = posterior(scene.labels)
        key = str(self.rng.integers(1 << 62))
        question = self.questions.emotion(EMOTIONS, 0, 0, key)
        if self.rng.random() < 0.3:
            question = self.questions.emotion_first(EMOTIONS)
        return Turn(EMOTION, question, EMOTIONS[self.rng.choice(len(EMOTIONS), p=chances)], chances)

    # Pictures

    def picture(self, index: int, scene: Scene, grid: tuple[int, int], num_turns: int) -> Example:
        """A picture alone, some aspects asked."""
        asked = self.rng.permutation(len(ASPECTS))[:num_turns]
        turns = [self.aspect_turn(ASPECTS[k], scene) for k in asked]
        return Example(picture=index, grid=grid, turns=turns, gap=self._gap()).check()

    def picture_with_words(self, index: int, scene: Scene, grid: tuple[int, int], num_turns: int) -> Example:
        """Words of some aspects of the same picture before its features: aspects asked, never the emotion."""
        kept = Scene(tuple(i if self.rng.random() < 0.5 else -1 for i in scene.labels))
        example = self.picture(index, scene, grid, num_turns)
        example.slots = _join(self.grouped(kept))
        return example.check()

    # Texts

    def running(self, scene: Scene) -> Example:
        """Words in the visual block and no question: the emotion is told from each aspect's words onward."""
        example = Example()
        write = self.grouped if self.rng.random() < 0.7 else self.prose
        known = [-1] * len(ASPECTS)
        for aspect, slots in write(scene):
            example.slots += slots
            if aspect is not None:
                known[ASPECTS.index(aspect)] = scene.labels[ASPECTS.index(aspect)]
                example.marks.append((len(example.slots), posterior(known)))
        return example.check()

    def text(self, scene: Scene, num_aspect_turns: int) -> Example:
        """Words in the visual block, the emotion and some aspects asked."""
        rng = self.rng
        if rng.random() < 0.3:  # only some aspects are told
            share = rng.choice([0.0, 0.6, 0.6])
            scene = Scene(tuple(i if rng.random() < share else -1 for i in scene.labels))
        write = self.grouped if rng.random() < 0.7 else self.prose
        example = Example(slots=_join(write(scene)), gap=self._gap())
        self._disturb(example)
        example.turns = [self.emotion_turn(scene)]
        told = [a for a in ASPECTS if scene.label(a) is not None]
        if told and num_aspect_turns:
            for k in rng.permutation(len(told))[:num_aspect_turns]:
                example.turns.append(self.aspect_turn(told[k], scene))
        return example.check()

    def vectors_alone(self, aspect: str, scene: Scene, count: int) -> Example:
        """Vectors from outside, one aspect asked."""
        return Example(num_vectors=count, turns=[self.aspect_turn(aspect, scene)])

    def vectors_for_all(self, scene: Scene, count: int) -> Example:
        """Vectors from outside for all aspects, no picture behind them, the emotion asked."""
        example = Example(num_vectors=count, gap=self._gap(), turns=[self.emotion_turn(scene)])
        self._disturb(example)
        return example.check()

    def single(self, scene: Scene) -> Example:
        """The words of one aspect alone, that aspect asked."""
        told = [a for a in ASPECTS if scene.label(a) is not None]
        aspect = told[self.rng.integers(len(told))]
        alone = Scene(tuple(i if a == aspect else -1 for a, i in zip(ASPECTS, scene.labels, strict=True)))
        slots = _join(self.grouped(alone, omit=1.0))
        return Example(slots=slots, turns=[self.aspect_turn(aspect, alone)], gap=self._gap()).check()

    def object_list(self) -> Example:
        """Two objects told, both to be listed."""
        first, second = self.rng.permutation(len(LABELS["object"]))[:2]
        text = ", ".join(words(LABELS["object"][i]) for i in (first, second))
        templates = self.questions.templates("object")
        turn = Turn("object", templates[self.rng.integers(len(templates))], text)
        return Example(slots=[Slot([i], [1.0]) for i in self.ids(text)], turns=[turn], gap=self._gap()).check()

    def prose(self, scene: Scene) -> list[tuple[str | None, list[Slot]]]:
        """A caption, as pairs of an aspect and its slots."""
        parts = [(a, f"{word} {a}" if a in LEVEL_ASPECTS else word) for a, word in scene.answers().items()]
        return [
            (aspect, [Slot([i], [1.0]) for i in self.ids(f", {text}" if k else text)])
            for k, (aspect, text) in enumerate(parts)
        ]

    def caption(self, scene: Scene) -> list[Slot]:
        """`happy, cake, beach, yoga, low brightness, high colorfulness`: the slots of `prose`, joined."""
        return _join(self.prose(scene))

    def grouped(self, scene: Scene, omit: float = 0.5) -> list[tuple[str | None, list[Slot]]]:
        """Each aspect's words in the same number of slots, in order: mixed, scaled and noised as aspect tokens are."""
        rng = self.rng
        width = int(rng.integers(1, 4))
        if rng.random() < self.richness:
            width = 5 if rng.random() < 0.6 else int(rng.integers(2, 8))
        strength, mixing = float(np.exp(rng.uniform(np.log(0.15), np.log(2.0)))), rng.random() < 0.5
        noise, common = rng.uniform(0, min(1.2, 4 * strength), 2)
        if rng.random() < 0.2:
            strength, noise, common, mixing = 1.0, 0.0, 0.0, False
        groups = []
        omit_absent = rng.random() < omit
        for number, (aspect, index) in enumerate(zip(ASPECTS, scene.labels, strict=True)):
            if index < 0:
                if not omit_absent:
                    groups.append((None, self.noise_slots(width)))
                continue
            ids, slots = self.word_ids[aspect, index], []
            for k in range(width):
                if mixing:
                    shares = rng.dirichlet([0.7] * len(ids)) * strength * rng.uniform(0.5, 1.3)
                    slot = Slot(list(ids), list(shares), noise, (number, common))
                    if rng.random() < 0.5:  # a foreign word, fainter
                        slot.words.append(int(rng.choice(self.all_words)))
                        slot.shares.append(strength * rng.uniform(0, 0.35))
                else:
                    slot = Slot([ids[k % len(ids)]], [strength], noise, (number, common))
                slots.append(slot)
            groups.append((aspect, slots))
        return groups

    def noise_slots(self, count: int) -> list[Slot]:
        """Vectors that say nothing: noise, faint mixtures of any words, or both."""
        rng = self.rng
        noise, strength, mixed = rng.uniform(0.1, 1.5), rng.uniform(0.1, 0.6), int(rng.integers(0, 5))
        return [
            Slot([int(i) for i in rng.choice(self.all_words, mixed)], [strength] * mixed, noise) for _ in range(count)
        ]

    def foreign_slots(self, count: int) -> list[Slot]:
        """Loud mixtures of the words of some other scene, which must not be heeded."""
        rng = self.rng
        other = [ids for key in enumerate(self.scene().labels) if (ids := self._ids_of(*key))]
        noise, strength, most = rng.uniform(0.0, 1.0), rng.uniform(0.4, 1.6), int(rng.integers(1, 4))
        slots = []
        for _ in range(count):
            parts = [other[k] for k in rng.permutation(len(other))[:most]]
            words = [int(rng.choice(part)) for part in parts]
            slots.append(Slot(words, [strength * rng.uniform(0.4, 1.0) for _ in words], noise))
        return slots

    def _ids_of(self, aspect: int, label: int) -> list[int]:
        return [] if label < 0 else self.word_ids[ASPECTS[aspect], label]

    def scene(self) -> Scene:
        return draw_scene(self.rng)

    def _disturb(self, example: Example) -> None:
        """At times something that must not be heeded stands where a picture or a soft prompt would."""
        rng = self.rng
        if rng.random() < 0.5 * self.richness:
            example.grid = (int(rng.integers(4, 6)), int(rng.integers(4, 6)))
            write = self.foreign_slots if rng.random() < 0.6 else self.noise_slots
            example.grid_slots = write(example.grid[0] * example.grid[1])
        if rng.random() < 0.25 * self.richness:
            example.filler = self.noise_slots(int(rng.integers(1, 33)))

    def _gap(self) -> int:
        return int(self.rng.integers(0, 40)) if self.rng.random() < 0.5 else 0
