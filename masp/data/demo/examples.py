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

    slots: list[Slot] = field(default_factory=list)
    """The words of the visual block, before any picture."""
    grid_slots: list[Slot] = field(default_factory=list)
    """Vectors that say nothing, placed as vision tokens are."""
    grid: tuple[int, int] = (0, 0)
    """Rows and columns of the vision tokens or of `grid_slots`."""
    picture: int | None = None
    """Index of the picture whose features stand in the block."""
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

    out_of_place = False
    """Whether texts also hold words of one aspect, as loud as any, in the slots of another: places are then learnt."""
    richness = 1.0
    """How often texts get the long forms (five slots per aspect, noise beside them); less is cheaper, to begin with."""

    def __init__(self, tokenizer, questions: Questions, rng: np.random.Generator):
        self.tokenizer, self.questions, self.rng = tokenizer, questions, rng
        self.word_ids = {
            (aspect, i): self.ids(words(label)) for aspect in ASPECTS for i, label in enumerate(LABELS[aspect])
        }
        self.mark = tokenizer.convert_tokens_to_ids("<|image_pad|>")
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
            share = rng.choice([0.0, 0.6])
            scene = Scene(tuple(i if rng.random() < share else -1 for i in scene.labels))
        write = self.grouped if rng.random() < 0.7 else self.prose
        example = Example(slots=_join(write(scene)), gap=self._gap())
        if self.out_of_place and max(scene.labels) < 0 and rng.random() < 0.5:
            example.slots = []  # as before a picture alone
        self._disturb(example)
        example.turns = [self.emotion_turn(scene)]
        told = [a for a in ASPECTS if scene.label(a) is not None]
        if told and num_aspect_turns:
            for k in rng.permutation(len(told))[:num_aspect_turns]:
                example.turns.append(self.aspect_turn(told[k], scene))
        return example.check()

    def single(self, scene: Scene) -> Example:
        """The words of one aspect alone, that aspect asked; or words of another or noise, and the answer is none."""
        told = [a for a in ASPECTS if scene.label(a) is not None]
        aspect = told[self.rng.integers(len(told))]
        alone = Scene(tuple(i if a == aspect else -1 for a, i in zip(ASPECTS, scene.labels, strict=True)))
        slots = next(slots for about, slots in self.grouped(alone) if about == aspect)
        asked = aspect
        if self.rng.random() < 0.4:
            asked, alone = ASPECTS[self.rng.integers(len(ASPECTS))], Scene((-1,) * len(ASPECTS))
            if asked == aspect or {asked, aspect} == set(LEVEL_ASPECTS):  # these two have the same words
                slots = self.noise_slots(5)
        return Example(slots=slots, turns=[self.aspect_turn(asked, alone)], gap=self._gap()).check()

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

    def grouped(self, scene: Scene, omit: float = 0.1) -> list[tuple[str | None, list[Slot]]]:
        """Each aspect's words in the same number of slots, in order: mixed, scaled and noised as aspect tokens are."""
        rng = self.rng
        rich = rng.random() < self.richness
        width = 5 if rng.random() < 0.9 else int(rng.integers(1, 8))
        if not rich:
            width = min(width, int(rng.integers(1, 4)))
        groups = []
        omit_absent = rng.random() < omit
        for number, (aspect, index) in enumerate(zip(ASPECTS, scene.labels, strict=True)):
            if index >= 0:
                label = int(index)
                write = self.label_slots if rich else self.plain_slots
                groups.append((aspect, write(number, label, width)))
            elif not omit_absent:
                groups.append((None, self.noise_slots(width, number)))
        return groups

    def plain_slots(self, number: int, label: int, width: int) -> list[Slot]:
        """The words of a label, over and over."""
        ids = self.word_ids[ASPECTS[number], label]
        return [Slot([ids[k % len(ids)]], [1.0]) for k in range(width)]

    def label_slots(self, number: int, label: int, width: int) -> list[Slot]:
        """The words of a label, disturbed by fainter ones of another label, by words out of place, and by noise."""
        rng = self.rng
        strength = float(np.exp(rng.uniform(np.log(0.5), np.log(2.0))))
        most = min(1.2, 1.5 * strength)
        common, noise = rng.uniform(0, most), rng.uniform(0, most) * rng.uniform()
        ids, labels = self.word_ids[ASPECTS[number], label], LABELS[ASPECTS[number]]
        rival = self.word_ids[ASPECTS[number], int(rng.integers(len(labels)))]
        foreign = [int(i) for i in rng.choice(self.all_words, 2)]
        most = 1.5 if self.out_of_place else 0.8
        loud = strength * rng.uniform(-0.5, 0.5), *(strength * rng.uniform(-most, most, 2))
        mixed = rng.random() < 0.5
        slots = []
        for k in range(width):
            slot = Slot([ids[k % len(ids)]], [strength], noise, (number, common))
            if mixed:
                slot.words, slot.shares = list(ids), list(rng.dirichlet([2.0] * len(ids)) * strength)
            slot.words += [rival[k % len(rival)], *foreign]
            slot.shares += [share * rng.uniform(0.3, 1.0) for share in loud]
            slots.append(slot)
        return slots

    def noise_slots(self, count: int, number: int = 0) -> list[Slot]:
        """Vectors that say nothing: noise, faint mixtures of any words, or both."""
        rng = self.rng
        noise, common = rng.uniform(0.0, 1.2, 2)
        mixed = [int(i) for i in rng.choice(self.all_words, int(rng.integers(0, 5)))]
        shares = rng.uniform(-0.3, 0.3, len(mixed))
        return [Slot(list(mixed), list(shares * rng.uniform(0.3, 1.0)), noise, (number, common)) for _ in range(count)]

    def vision_slots(self, count: int) -> list[Slot]:
        """Marked as vision tokens are: noise, or loud mixtures of the words of some other scene."""
        rng = self.rng
        noise, strength, most = rng.uniform(0.0, 1.0), rng.uniform(0.4, 1.6), int(rng.integers(0, 4))
        other = [ids for key in enumerate(self.scene().labels) if (ids := self._ids_of(*key))]
        slots = []
        for _ in range(count):
            words = [int(rng.choice(other[k])) for k in rng.permutation(len(other))[:most]]
            slots.append(Slot([self.mark, *words], [1.0, *(strength * rng.uniform(0.4, 1.0) for _ in words)], noise))
        return slots

    def _ids_of(self, aspect: int, label: int) -> list[int]:
        return [] if label < 0 else self.word_ids[ASPECTS[aspect], label]

    def scene(self) -> Scene:
        return draw_scene(self.rng)

    def _disturb(self, example: Example) -> None:
        """At times vectors marked as vision tokens, which say nothing about the emotion, stand behind the words."""
        rng = self.rng
        if rng.random() < 0.5 * self.richness:
            example.grid = (int(rng.integers(4, 6)), int(rng.integers(4, 6)))
            example.grid_slots = self.vision_slots(example.grid[0] * example.grid[1])

    def _gap(self) -> int:
        return int(self.rng.integers(0, 40)) if self.rng.random() < 0.5 else 0
