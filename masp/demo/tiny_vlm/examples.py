"""The examples that the tiny VLM is pretrained on: images with aspect questions, and texts with any question.

No example contains both an image and an emotion: `Example` refuses it. The language model learns about emotions only
from words in the place of an image.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from masp.data.questions import Questions
from masp.demo.tiny_vlm.geometry import WORDS, token_ids
from masp.demo.tiny_vlm.tokenizer import NONE
from masp.demo.world.factors import (
    ABSENT,
    ASPECTS,
    EMOTIONS,
    LABELS,
    SENSES,
    SHOWN_BY,
    WEATHER,
    Scene,
    draw_scene,
    posterior,
    words,
)

EMOTION = "emotion"
FAINTEST, TOO_FAINT = 0.62, 0.48
"""Minimum cosine between an unmarked slot and the word it expresses, and maximum with a word it does not express."""
LOUDEST = 15.0
"""Maximum norm of a soft prompt vector, in units of a label word: the norm of other words, from which it may start."""
SENSE_CHANCES = (0.4, 0.6)
"""Probability of each of `SENSES` in a text that does not state it."""


@dataclass
class Slot:
    """A vector that is not a token embedding: a mixture of words and the mark, plus noise."""

    words: list[int]
    """Rows of the geometry's table to mix: token ids, and the mark."""
    shares: list[float]
    """Weights of the rows."""
    noise: float = 0.0
    """Standard deviation of added Gaussian noise, in units of `SCALE`."""
    shared: tuple[int, float] = (0, 0.0)
    """Number of a group, and standard deviation of the noise that all slots of the group share."""


@dataclass
class Turn:
    """A question after the visual block, and its answer."""

    about: str
    """An aspect, or `EMOTION`. (The answer is ambiguous: `fear` is both an emotion and a facial expression.)"""
    question: str
    answer: str
    emotions: np.ndarray | None = None
    """`[8]` target distribution of an emotion answer, used instead of the drawn emotion."""
    before: list[Slot] = field(default_factory=list)
    """Slots between the visual block and this question, where a soft prompt would be."""


@dataclass
class Example:
    """One visual block and the questions about it."""

    slots: list[Slot] = field(default_factory=list)
    """Slots at the start of the visual block, before any image."""
    grid_slots: list[Slot] = field(default_factory=list)
    """Slots in the place of an image, with the positions of vision tokens."""
    grid: tuple[int, int] = (0, 0)
    """Rows and columns of the vision tokens or of `grid_slots`."""
    image: int | None = None
    """Index of the image whose features are in the block."""
    gap: int = 0
    """Number of positions skipped before the questions."""
    turns: list[Turn] = field(default_factory=list)
    marks: list[tuple[int, np.ndarray]] = field(default_factory=list)
    """`(k, [8])`: the distribution of emotions at the `k`-th position of the visual block, given the words up to there.
    The end of the block counts as one more position."""

    def check(self) -> Example:
        """Refuse examples that must never be trained on.

        Raises:
            ValueError: the example asks for the emotion of an image.
        """
        emotional = any(turn.about == EMOTION or turn.emotions is not None for turn in self.turns)
        if self.image is not None and (emotional or self.marks):
            raise ValueError("an image and an emotion in one pretraining example")
        return self


class Examples:
    """Draws examples from a random generator."""

    with_senses = True
    """Whether texts may ask for either of `SENSES`; otherwise all of them ask for the evoked emotion."""
    richness = 1.0
    """Probability of the long forms of texts (five slots per aspect, with noise); lower is cheaper."""

    def __init__(self, tokenizer, questions: Questions, rng: np.random.Generator, vocab_size: int):
        self.tokenizer, self.questions, self.rng = tokenizer, questions, rng
        self.word_ids = {pair: token_ids(tokenizer, *pair) for pair in WORDS}
        self.all_words = sorted({i for ids in self.word_ids.values() for i in ids})
        self.mark = vocab_size

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def scene(self) -> Scene:
        return draw_scene(self.rng)

    # Questions

    def aspect_turn(self, aspect: str, label: str | None) -> Turn:
        templates = self.questions.templates(aspect)
        return Turn(aspect, templates[self.rng.integers(len(templates))], NONE if label is None else words(label))

    def emotion_turn(self, known: Scene, sense: str | None) -> Turn:
        """A question for the emotion given the known factors, in the stated sense, or in either if `sense` is None."""
        chances = np.zeros(len(EMOTIONS))
        for meant, chance in zip(SENSES, SENSE_CHANCES, strict=True):
            if sense in (None, meant):
                chances += chance * posterior((known if meant == SENSES[0] else known.only(SHOWN_BY)).labels)
        chances /= chances.sum()
        question = self.questions.target_question(EMOTIONS, 0, 0, str(self.rng.integers(1 << 62)))
        if self.rng.random() < 0.3:
            question = self.questions.target_first(EMOTIONS)
        answer = EMOTIONS[self.rng.choice(len(EMOTIONS), p=chances)]
        return Turn(EMOTION, question, answer, chances, self.sense_slots(sense))

    # Images

    def image(self, index: int, scene: Scene, grid: tuple[int, int], num_turns: int) -> Example:
        """An image, with questions about some aspects."""
        asked = self.rng.permutation(len(ASPECTS))[:num_turns]
        turns = [self.aspect_turn(ASPECTS[k], scene.label(ASPECTS[k])) for k in asked]
        return Example(image=index, grid=grid, turns=turns, gap=self.gap()).check()

    # Texts

    def running(self, scene: Scene) -> Example:
        """No question: the emotion is predicted after the words of each aspect, and after imitated vision tokens."""
        example, known = Example(), []
        for aspect, slots in self.grouped(scene) if self.rng.random() < 0.7 else self.prose(scene):
            example.slots += slots
            if aspect is not None:
                known.append(aspect)
            if example.slots:
                example.marks.append((len(example.slots), posterior(scene.only(known).labels)))
        count = len(example.slots)
        if self.rng.random() < 0.6:
            example.grid, example.grid_slots = self.imitated_image(scene)
            known.append(WEATHER)
            count += len(example.grid_slots)
            example.marks.append((count, posterior(scene.only(known).labels)))
        example.marks.append((count + 1, posterior(scene.only(known).labels)))
        return example.check()

    def text(self, scene: Scene, num_aspect_turns: int) -> Example:
        """Words in the visual block, sometimes followed by imitated vision tokens; asks for emotion and aspects."""
        rng = self.rng
        share = rng.choice([0.0, 0.6]) if rng.random() < 0.3 else 1.0  # sometimes only some of the aspects are stated
        stated = [aspect for aspect in ASPECTS if rng.random() < share]
        write = self.grouped if rng.random() < 0.75 else self.prose
        example = Example(slots=[slot for _, slots in write(scene.only(stated)) for slot in slots], gap=self.gap())
        if not stated and rng.random() < 0.5:
            example.slots = []
        shown = rng.random() < 0.6 * self.richness
        if shown:
            example.grid, example.grid_slots = self.imitated_image(scene)
        # The emotion does not depend on what vision tokens show of the six aspects, only on the weather that they show.
        known = scene.only([*stated, WEATHER] if shown else stated)
        senses = (SENSES[0], (None, SENSES[1])[rng.integers(2)]) if self.with_senses else SENSES[:1]
        example.turns = [self.emotion_turn(known, sense) for sense in senses]
        for k in rng.permutation(len(ASPECTS))[:num_aspect_turns]:
            aspect = ASPECTS[k]
            label = scene.label(aspect) if shown or aspect in stated else None
            example.turns.append(self.aspect_turn(aspect, label))
        return example.check()

    def single(self, scene: Scene) -> Example:
        """The words of one aspect and a question about it; or other words, or noise, and the answer `none`."""
        rng = self.rng
        about = [a for a in ASPECTS if scene.label(a) is not None]
        aspect = about[rng.integers(len(about))]
        stated = scene.shown(aspect)
        rich = rng.random() < self.richness
        width = 5 if rich else int(rng.integers(1, 4))
        slots = (self.label_slots if rich else self.plain_slots)(aspect, stated, width)
        asked: str = aspect
        label: str | None = stated
        if rng.random() < 0.3:
            asked, label = ASPECTS[rng.integers(len(ASPECTS))], None
            if asked == aspect:
                slots = self.noise_slots(width)
        return Example(slots=slots, turns=[self.aspect_turn(asked, label)], gap=self.gap()).check()

    def looking(self, scene: Scene, num_turns: int) -> Example:
        """Imitated vision tokens, with questions about aspects."""
        grid, slots = self.imitated_image(scene)
        asked = self.rng.permutation(len(ASPECTS))[:num_turns]
        turns = [self.aspect_turn(ASPECTS[k], scene.label(ASPECTS[k])) for k in asked]
        return Example(grid_slots=slots, grid=grid, turns=turns, gap=self.gap()).check()

    def glimpse(self, scene: Scene) -> Example:
        """A few imitated vision tokens, with the answer `none`: so few do not make an image."""
        rng = self.rng
        _, slots = self.imitated_image(scene)
        count = int(rng.integers(1, 11)) if rng.random() < 0.5 else 5
        loudness = rng.uniform(0.85, 3.0)
        kept = [slots[k] for k in rng.permutation(len(slots))[:count]]
        for slot in kept:
            slot.shares[0] *= loudness  # the mark
            slot.shares[1:] = [rng.uniform(0.5, 1.5) * loudness * share for share in slot.shares[1:]]
        aspect = ASPECTS[rng.integers(len(ASPECTS))]
        return Example(slots=kept, turns=[self.aspect_turn(aspect, None)], gap=self.gap()).check()

    def object_list(self) -> Example:
        """The words of two objects, both of which must be listed."""
        names = [LABELS["object"][i] for i in self.rng.permutation(len(LABELS["object"]))[:2]]
        templates = self.questions.templates("object")
        turn = Turn("object", templates[self.rng.integers(len(templates))], ", ".join(map(words, names)))
        ids = [i for name in names for i in self.word_ids["object", name]]
        return Example(slots=[Slot([i], [1.0]) for i in ids], turns=[turn], gap=self.gap()).check()

    # Content of the visual block

    def prose(self, scene: Scene) -> list[tuple[str | None, list[Slot]]]:
        """A caption, `happy,cake,beach,yoga,dim,vivid`, as pairs of an aspect and its slots."""
        comma = self.ids(",")
        return [
            (a, [Slot([i], [1.0]) for i in (*comma, *self.word_ids[a, label])])
            for a in ASPECTS
            if (label := scene.label(a)) is not None
        ]

    def caption(self, scene: Scene) -> list[Slot]:
        """The slots of `prose`, joined."""
        return [slot for _, slots in self.prose(scene) for slot in slots]

    def grouped(self, scene: Scene, omit: float = 0.1) -> list[tuple[str | None, list[Slot]]]:
        """The words of each aspect in equally many slots, in order; mixed, scaled and noisy like aspect tokens."""
        rng = self.rng
        rich = rng.random() < self.richness
        width = 5 if rng.random() < 0.8 else int(rng.integers(1, 9))
        if not rich:
            width = min(width, int(rng.integers(1, 4)))
        groups: list[tuple[str | None, list[Slot]]] = []
        omit_absent = rng.random() < omit
        for number, aspect in enumerate(ASPECTS):
            label = scene.label(aspect)
            if label is not None:
                write = self.label_slots if rich else self.plain_slots
                groups.append((aspect, write(aspect, label, width)))
            elif not omit_absent:
                groups.append((None, self.noise_slots(width, number)))
        return groups

    def plain_slots(self, factor: str, label: str, width: int) -> list[Slot]:
        """The words of a label, repeated."""
        ids = self.word_ids[factor, label]
        return [Slot([ids[k % len(ids)]], [1.0]) for k in range(width)]

    def label_slots(self, factor: str, label: str, width: int) -> list[Slot]:
        """The word of a label with noise that expresses nothing; sometimes some of the slots are pure noise."""
        rng = self.rng
        number, loudest = (ASPECTS.index(factor), 2.0) if factor in ASPECTS else (0, LOUDEST)
        word, cosine = self.word_ids[factor, label][0], rng.uniform(FAINTEST, 1.0)
        mark = rng.uniform(-0.7, 0.05) if rng.random() < 0.5 else 0.0
        slots = self._mixed(word, cosine, width, number, rng.uniform(np.log(0.4), np.log(loudest)), mark)
        heard = int(rng.integers(width))
        if rng.random() < 0.2:
            for k in range(width):
                if k != heard and rng.random() < 0.5:
                    slots[k] = self.noise_slots(1, number)[0]
        return slots

    def noise_slots(self, count: int, number: int = 0, loudest: float = 2.0) -> list[Slot]:
        """Vectors that express nothing: noise, words that are too weak, words that are marked."""
        rng = self.rng
        word, log_loudness = int(rng.choice(self.all_words)), rng.uniform(np.log(0.1), np.log(loudest))
        if rng.random() < 0.3:
            return self._mixed(word, rng.uniform(0.0, 0.7), count, number, log_loudness, 0.7)
        return self._mixed(word, rng.uniform(0.0, TOO_FAINT), count, number, log_loudness, rng.uniform(0.0, 0.3))

    def _mixed(self, word: int, cosine: float, width: int, number: int, log_loudness: float, mark: float) -> list[Slot]:
        """Mix a word and the mark with noise and with other words that are too weak to count."""
        rng, loudness = self.rng, float(np.exp(log_loudness))
        rest = max(0.0, 1 - cosine**2 - mark**2) ** 0.5
        parts = rest * rng.dirichlet([0.5] * 3) ** 0.5  # noise, shared noise, words
        own = {i for ids in self.word_ids.values() if word in ids for i in ids}
        foreign = [i for i in self.all_words if i not in own]
        others = [int(i) for i in rng.choice(foreign, int(rng.integers(1, 9)), replace=False)]
        shares = rng.normal(size=len(others))
        shares = np.clip(parts[2] * shares / np.linalg.norm(shares), -TOO_FAINT, TOO_FAINT)
        scaled = [loudness * weight for weight in (cosine, *shares, mark)]
        rows = [word, *others, self.mark]
        return [Slot(rows, scaled, loudness * parts[0], (number, loudness * parts[1])) for _ in range(width)]

    def imitated_image(self, scene: Scene) -> tuple[tuple[int, int], list[Slot]]:
        """A grid of imitated vision tokens: marked; each aspect in many or a few of them, the weather in most."""
        rng = self.rng
        grid = (int(rng.integers(4, 6)), int(rng.integers(4, 6)))
        count, noise = grid[0] * grid[1], rng.uniform(0.0, 0.15)
        slots = [Slot([self.mark], [1.0], noise) for _ in range(count)]
        absent = rng.uniform(-0.4, 0.1)
        for aspect in ASPECTS:
            label = scene.label(aspect)
            if label is None:
                for slot in slots:
                    slot.words += [self.word_ids[aspect, other][0] for other in LABELS[aspect]]
                    slot.shares += [absent / len(LABELS[aspect]) ** 0.5] * len(LABELS[aspect])
                continue
            local = aspect in ABSENT or aspect == "object"
            number = int(rng.integers(2, 7) if local else rng.integers(6, count))
            self._add_to_some(slots, self.word_ids[aspect, label][0], number)
        self._add_to_some(slots, self.word_ids[WEATHER, scene.shown(WEATHER)][0], int(rng.integers(8, count + 1)))
        return grid, slots

    def _add_to_some(self, slots: list[Slot], row: int, number: int) -> None:
        strength = self.rng.uniform(0.25, 0.8)
        for k in self.rng.permutation(len(slots))[:number]:
            slots[k].words.append(row)
            slots[k].shares.append(strength * self.rng.uniform(0.5, 1.0))

    def sense_slots(self, sense: str | None) -> list[Slot]:
        """Slots before a question: none, or vectors some or all of which say which of `SENSES` is meant."""
        rng = self.rng
        if sense is None and rng.random() < 0.5:
            return []
        count = int(rng.integers(1, 33)) if rng.random() < 0.25 else int(rng.integers(1, 5))
        slots = []
        heard, share = int(rng.integers(count)), rng.uniform(0, 1)
        for k in range(count):
            if sense is not None and (k == heard or rng.random() < share):
                write = self.label_slots if rng.random() < self.richness else self.plain_slots
                slots += write("sense", sense, 1)
            else:
                slots += self.noise_slots(1, int(rng.integers(len(ASPECTS))), LOUDEST)
        return slots

    def gap(self) -> int:
        """Number of positions that a row skips."""
        return int(self.rng.integers(0, 40)) if self.rng.random() < 0.5 else 0
