"""What an evaluation computes: tokens and FLOP of every question that it asks, with either scoring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from masp.artifacts.trained import NONE, prompt_aspects
from masp.config import Config, load_aspects
from masp.config.feature_source import evaluation_source
from masp.config.schema import Split
from masp.data.questions import questions_of
from masp.evaluation.aspects import closed_answers
from masp.evaluation.explain import answering, left_out
from masp.evaluation.explanations.evaluation import explains
from masp.evaluation.prompts import FIRST, VALIDATION, other_wordings
from masp.evaluation.target import map_categories, parse_map
from masp.models.candidates import candidate_tree
from masp.plan.rates import Rate, Rates
from masp.plan.tokens import PlannedImage, TextTokens, answers_of, tally, text_tokens
from masp.plan.work import StageEstimate, StageWork, groups_flops
from masp.results.explanations.explanations_file import NUM_SAMPLE
from masp.vlm.cost.flops import Encoder, Language, aspect_module_flops, language_flops
from masp.vlm.families import Family, family_of


@dataclass(frozen=True)
class AnswerTokens:
    """The tokens that run behind a question to score what may be answered."""

    depths: dict[int, int]
    """Number of tokens of the answer before a token -> how many such tokens run."""
    num_logits: int
    """Positions that are projected to the vocabulary, the question's last one included."""

    @property
    def num_tokens(self) -> int:
        """How many tokens run."""
        return sum(self.depths.values())


@dataclass(frozen=True)
class EvaluationWork:
    """The work of an evaluation."""

    num_images: int
    """Images that are scored, each once."""
    num_validation_images: int
    """Images of the validation split that are scored beside them (`evaluate.validation`)."""
    num_wordings: int
    """Wordings of the question that the images are scored with."""
    num_explained: int
    """Images whose predictions are explained beside the scores (`evaluate.explain`)."""
    num_sequences: int
    """Questions that are asked about images, over all wordings, both splits and explanations."""
    tokens: float
    """Tokens that the language model reads."""
    flops: float
    """FLOP of the language model and the aspect modules."""
    encoder_flops: float
    """FLOP of the encoder, with `evaluate.source: live` or without a cache."""

    @property
    def num_passes(self) -> int:
        """How often features are read or encoded."""
        return self.num_images * self.num_wordings + self.num_validation_images + self.num_explained


@dataclass(frozen=True)
class EvaluationEstimate:
    """The work of an evaluation, and how long it takes at some rate."""

    stage: str
    """`evaluate.stage`."""
    split: str
    """`evaluate.split`."""
    scoring: str
    """`evaluate.scoring`; in stage 1 the answers of an aspect decide."""
    num_images: int
    num_validation_images: int
    num_wordings: int
    num_explained: int
    num_sequences: int
    tokens_per_image: float
    """Tokens that the language model reads per image and wording."""
    flops_per_image: float
    """FLOP per image and wording."""
    flops: float
    """FLOP of the whole evaluation."""
    hours: float
    images_per_s: float
    """Images per second, each as often as it has wordings."""
    reads_bytes_per_s: float
    """What the cache must deliver; 0 where the encoder runs instead."""
    rate: Rate


def estimate_evaluation(
    config: Config, work: EvaluationWork, rate: Rate, encoder: Rate, bytes_per_image: float
) -> EvaluationEstimate:
    """Combine the work of an evaluation with rates.

    Args:
        config: Run configuration.
        work: Work of the evaluation; it may have no images.
        rate: How fast the language model is, in FLOP.
        encoder: How fast the encoder is.
        bytes_per_image: Mean bytes that the cache holds of an image.
    """
    passes, flops = work.num_passes, work.flops + work.encoder_flops
    hours = rate.hours(work.flops, work.tokens) + encoder.hours(work.encoder_flops, 0.0)
    images_per_s = passes / (hours * 3600) if hours else 0.0
    return EvaluationEstimate(
        stage=config.evaluate.stage,
        split=config.evaluate.split,
        scoring=config.evaluate.scoring,
        num_images=work.num_images,
        num_validation_images=work.num_validation_images,
        num_wordings=work.num_wordings,
        num_explained=work.num_explained,
        num_sequences=work.num_sequences,
        tokens_per_image=work.tokens / passes if passes else 0.0,
        flops_per_image=flops / passes if passes else 0.0,
        flops=flops,
        hours=hours,
        images_per_s=images_per_s,
        reads_bytes_per_s=images_per_s * bytes_per_image if evaluation_source(config) == "cache" else 0.0,
        rate=rate,
    )


def evaluation_rate(
    config: Config, rates: Rates, stages: Mapping[str, StageWork], estimates: Mapping[str, StageEstimate]
) -> Rate:
    """The rate of the stage that is evaluated, in FLOP.

    Tokens per second of training cannot be taken as they are, since a token costs less without a gradient; FLOP can.

    Args:
        config: Run configuration.
        rates: Rates of encoder and stages.
        stages: Stage -> its work.
        estimates: Stage -> its estimate, whose FLOP are those of the encoder too where it runs in training.
    """
    rate: Rate = getattr(rates, config.evaluate.stage)
    work = stages[config.evaluate.stage]
    if rate.unit == "FLOP":
        return rate
    if not work.tokens:
        return rates.extract
    flops = estimates[config.evaluate.stage].flops if rate.includes_encoder else work.flops
    return Rate(rate.per_second * flops / work.tokens, "FLOP", f"{rate.source}, tokens as FLOP")


def evaluation_work(
    config: Config,
    vision: Encoder,
    language: Language,
    images: Sequence[PlannedImage],
    categories: Sequence[str],
) -> EvaluationWork:
    """Compute the work of the evaluation that `evaluate` asks for.

    Args:
        config: Run configuration, whose `vlm.path` is a directory.
        vision: Sizes of the encoder.
        language: Sizes of the language model.
        images: Images of all splits.
        categories: Categories of the dataset.

    Raises:
        InputError: Questions or `evaluate.category_map` are unusable.
    """
    asked = _Asked(config, language, text_tokens(config.vlm.path), family_of(config.vlm.path))
    work = asked.aspects(images) if config.evaluate.stage == "stage1" else asked.target(images, categories)
    scored, validation, num_wordings, num_explained, num_sequences, tokens, flops = work
    num_scored, encoder = _num(scored), 0.0
    if evaluation_source(config) == "live":
        times = num_wordings + (num_explained / num_scored if num_scored else 0.0)
        encoder = times * groups_flops(vision, scored) + groups_flops(vision, validation)
    return EvaluationWork(
        num_scored, _num(validation), num_wordings, num_explained, num_sequences, tokens, flops, encoder
    )


_Groups = list[tuple[PlannedImage, int]]
"""Images, each with how many there are like it, see `masp.plan.tokens.tally`."""
_Found = tuple[_Groups, _Groups, int, int, int, float, float]
"""Images that are scored, those of the validation split, wordings, explained images, sequences, tokens, FLOP."""


def _num(groups: _Groups) -> int:
    return sum(count for _, count in groups)


@dataclass(frozen=True)
class _Asked:
    config: Config
    language: Language
    text: TextTokens
    family: Family

    def target(self, images: Sequence[PlannedImage], categories: Sequence[str]) -> _Found:
        settings, questions = self.config.evaluate, questions_of(self.config)
        mapping = parse_map(settings.category_map)
        # what was trained is not known yet, nor what other datasets the map is for
        asked = map_categories(categories, (), mapping, self.config.dataset.name, mapping)

        def of(split: Split) -> _Groups:
            return [
                (p, count) for p, count in tally(images) if p.sample.split == split and p.sample.category in asked.means
            ]

        others = other_wordings(questions, asked.categories) if settings.prompts == "all" else []
        lengths = [self.text.question(w.question(questions, asked.categories)) for w in (FIRST, *others)]
        if settings.scoring == "generate":
            answer = generated_tokens(settings.max_new_tokens)
        else:
            answer = compared_tokens([self.text.answer(c) for c in asked.categories], self.family.has_tree)
        scored = of(settings.split)
        validation = of(VALIDATION) if settings.validation and settings.split != VALIDATION else []
        tokens = flops = 0.0
        for part, asked_lengths in ((scored, lengths), (validation, lengths[:1])):
            kinds: Counter[tuple[int, int]] = Counter()
            for p, number in part:
                kinds[p.num_tokens, p.block_length] += number
            for (num_tokens, block_length), count in kinds.items():
                for length in asked_lengths:
                    around = self._target_length(block_length) + length
                    tokens += count * (around + answer.num_tokens)
                    flops += count * (answer_flops(self.language, around, answer) + self._modules(num_tokens))
                if len(asked_lengths) > 1 and self._shares_prefix:
                    # all wordings come behind one pass of what is before the soft prompt
                    more, before = count * (len(asked_lengths) - 1), self._prefix_length(block_length)
                    tokens -= more * before
                    once = language_flops(self.language, suffix=before, gradient=False) + self._modules(num_tokens)
                    flops -= more * once
        num_sequences = _num(scored) * len(lengths) + _num(validation)
        num_explained = 0
        if explains(self.config) and scored:
            num_explained = min(_num(scored), NUM_SAMPLE) if settings.explain == "sample" else _num(scored)
            answer = compared_tokens([self.text.answer(c) for c in asked.categories], self.family.has_tree)
            sequences, more_tokens, more_flops = self._explanations(images, scored, lengths[0], answer)
            # of the mean image: which ones a sample holds matters little
            share = num_explained / _num(scored)
            num_sequences += num_explained * sequences
            tokens, flops = tokens + share * more_tokens, flops + share * more_flops
        return scored, validation, len(lengths), num_explained, num_sequences, tokens, flops

    def _explanations(
        self, images: Sequence[PlannedImage], scored: _Groups, question: int, answer: AnswerTokens
    ) -> tuple[int, float, float]:
        """Sequences per image, and tokens and FLOP of all, see `masp.evaluation.explain`.

        Args:
            images: Images of all splits.
            scored: Those that are explained.
            question: Tokens of the question about the target.
            answer: What runs to compare the categories.
        """
        config, text, questions = self.config, self.text, questions_of(self.config)
        aspects, queries = prompt_aspects(config), config.aspect_module.num_queries
        parts = left_out(aspects, config.stage2.vision_features)
        how = answering(config, answers_of(images, aspects))
        around = text.opening + text.image_start + text.lead + queries + text.trail + text.image_end + text.closing
        said = []
        for aspect in aspects:
            closed = how.closed.get(aspect)
            of_aspect = generated_tokens(how.longest[aspect] + 1)
            if closed:
                of_aspect = compared_tokens([text.answer(choice) for choice in closed], self.family.has_tree)
            said.append((around + text.question(questions.aspect_first(aspect)), of_aspect))
        tokens = sum(length + of_aspect.num_tokens for length, of_aspect in said) * _num(scored)
        flops = sum(answer_flops(self.language, length, of_aspect) for length, of_aspect in said) * _num(scored)
        for p, count in scored:
            # the prompts of an image are padded to the whole one
            whole = self._target_length(p.block_length) + question
            tokens += count * len(parts) * (whole + answer.num_tokens)
            flops += count * len(parts) * answer_flops(self.language, whole, answer)
            # the modules run for the target and again for each question; maps of attention are the small rest
            module = aspect_module_flops(self.language.width, queries, p.num_tokens, gradient=False)
            flops += count * (len(aspects) * len(aspects) * module + self._modules(p.num_tokens))
        return len(parts) + len(said), tokens, flops

    @property
    def _layout(self) -> str:
        return self.config.checkpoint.layout or self.config.stage2.layout

    @property
    def _shares_prefix(self) -> bool:
        """Whether wordings share a pass of their prefix, see `masp.evaluation.group.members.why_alone`."""
        asked, family = self.config.evaluate, self.family
        is_plain = asked.scoring == "likelihood" and not asked.without and evaluation_source(self.config) == "cache"
        return is_plain and self._layout == "after_image" and not family.runs_whole

    def _target_length(self, block_length: int) -> int:
        """Tokens of the prompt but its question, see `masp.models.sequence`."""
        config, soft = self.config, 0
        if config.checkpoint.soft_prompt != NONE:
            soft = config.stage2.num_soft_prompt_tokens * (2 if self._layout == "released" else 1)
        return self._prefix_length(block_length) + soft + self.text.closing

    def _prefix_length(self, block_length: int) -> int:
        """Tokens of the prompt up to the end of the image, without a soft prompt."""
        config, text = self.config, self.text
        aspects = len(prompt_aspects(config)) * config.aspect_module.num_queries
        image = block_length if config.stage2.vision_features else text.lead + text.trail
        return text.opening + text.image_start + aspects + image + text.image_end

    def _modules(self, num_tokens: int) -> float:
        """FLOP of all aspect modules for one image."""
        config = self.config
        if config.cache.aspect_tokens and config.evaluate.stage == "stage2":
            return 0.0
        module = aspect_module_flops(self.language.width, config.aspect_module.num_queries, num_tokens, gradient=False)
        return len(prompt_aspects(config)) * module

    def aspects(self, images: Sequence[PlannedImage]) -> _Found:
        config, text, questions = self.config, self.text, questions_of(self.config)
        aspects, split = prompt_aspects(config), config.evaluate.split
        scored = [
            (p, count)
            for p, count in tally(images)
            if p.sample.split == split and any(a in p.sample.answers for a in aspects)
        ]
        num_scored = _num(scored)
        asked: Counter[tuple[str, int]] = Counter()
        for p, number in scored:
            asked.update({(a, p.num_tokens): number for a in aspects if a in p.sample.answers})
        seen, defined = answers_of(images, aspects), load_aspects(config.aspect_definitions)
        opening = text.opening + text.image_start + text.lead
        rest = config.aspect_module.num_queries + text.trail + text.image_end + text.closing
        shares_opening = not (self.family.pads_left or self.family.runs_whole)
        tokens = flops = 0.0
        for aspect in aspects:
            counts = {num_tokens: count for (name, num_tokens), count in asked.items() if name == aspect}
            count = sum(counts.values())
            if not count:
                continue
            if closed := closed_answers(defined[aspect], seen[aspect]):
                answer = compared_tokens([text.answer(choice) for choice in closed], self.family.has_tree)
            else:
                answer = generated_tokens(max(len(text.answer(choice)) for choice in seen[aspect]) + 1)
            suffix = rest + text.question(questions.aspect_first(aspect))
            # the questions of a batch that are about this aspect share one pass of the system turn
            together = max(1.0, min(config.evaluate.batch_size, num_scored) * count / num_scored)
            openings = count / together if shares_opening else count
            tokens += count * (suffix + answer.num_tokens) + openings * opening
            flops += count * answer_flops(self.language, opening + suffix, answer)
            flops -= (count - openings) * language_flops(self.language, suffix=opening, gradient=False)
            flops += sum(number * self._modules(num_tokens) for num_tokens, number in counts.items())
        return scored, [], 1, 0, sum(asked.values()), tokens, flops


def compared_tokens(candidates: Iterable[Sequence[int]], has_tree: bool) -> AnswerTokens:
    """What runs to compare the likelihoods of answers, see `masp.models.likelihood`.

    Args:
        candidates: Token ids of each.
        has_tree: Whether answers that begin alike share that beginning, in one pass; otherwise each runs alone, but for
            one that an earlier one begins with.
    """
    tree = candidate_tree(list(candidates))
    if has_tree:
        return AnswerTokens(dict(Counter(tree.depth.tolist())), len(tree.ids) + 1)
    done: set[int] = set()
    depths: Counter[int] = Counter()
    for path in tree.paths:
        if not done.issuperset(path):
            depths.update(range(len(path)))
            done.update(path)
    return AnswerTokens(dict(depths), len(tree.ids) + 1)


def generated_tokens(max_new_tokens: int) -> AnswerTokens:
    """What runs to write an answer of the largest length; the last token is not read again."""
    return AnswerTokens(dict.fromkeys(range(max_new_tokens - 1), 1), max_new_tokens)


def answer_flops(language: Language, length: int, answer: AnswerTokens) -> float:
    """FLOP of a prompt and of the tokens that score its answers, without a gradient.

    Args:
        language: Sizes of the language model.
        length: Tokens of the prompt up to its answer.
        answer: What runs behind it. Each of its tokens sees the prompt, and those before it in its own answer.
    """
    flops = language_flops(language, suffix=length, num_logits=answer.num_logits, gradient=False)
    for depth, count in answer.depths.items():
        before = length + depth
        behind = language_flops(language, prefix=before, suffix=1, gradient=False)
        flops += count * (behind - language_flops(language, suffix=before, gradient=False))
    return flops
