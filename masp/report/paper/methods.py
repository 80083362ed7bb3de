"""The methods paragraph of a run, as LaTeX and as Markdown: sentences whose facts are all in the run's files.

A sentence is a template with the names of facts (`masp.report.paper.facts`) in braces. Where a fact of its beginning is
missing, the sentence is left out; where one of a later clause is, that clause is. So nothing is said that no file says.

A name may be followed by how its value is written:

    {name}           a text, a number or a list of names, as the file has it
    {name:image}     a number and its noun, in the plural where it is not 1
    {name:plain}     a number without thousands separators
    {name:percent}   a share in percent, one digit behind the point
    {name:3}         a number with three digits behind the point
    {name:digest}    the first 12 digits of a digest
    {name=value}     nothing; the clause is said only if the fact has this value
    {name!}          nothing; the clause is said only if there is no such fact
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from masp.errors import one_line
from masp.report.export import Table, latex_escaped, visible
from masp.report.paper.facts import Fact, Facts

DIGITS_OF_DIGEST = 12
_FIELD = re.compile(r"\{([\w.]+)(?:=([^{}]*)|:([^{}]*)|(!))?\}")
_EXPONENT = re.compile(r"(-?[0-9.]+)e([+-])0*([0-9]+)")
_PLURALS = {"category": "categories"}


@dataclass(frozen=True)
class Piece:
    """A part of a sentence."""

    text: str
    is_fact: bool = False
    """Whether it comes from a file and may hold anything."""
    is_code: bool = False
    """Whether it is a digest or a setting, written in a fixed width."""


class _Missing(Exception):
    """A clause needs a fact that no file has."""


def methods(facts: Facts) -> list[list[Piece]]:
    """The sentences of the paragraph."""
    numbered = sorted({int(name.split(".")[1]) for name in facts if name.startswith("answers.")})
    templates = [*_SENTENCES, *(_of_answers(number) for number in numbered), *_LAST]
    return [sentence for template in templates if (sentence := _said(template, facts))]


def as_latex(sentences: Sequence[Sequence[Piece]]) -> str:
    r"""The paragraph as LaTeX, to be `\input`; needs no package."""
    lines = ["% The methods of this run, stated from its files alone; written by `masp report --latex`."]
    return "\n".join([*lines, *("".join(map(_latex, sentence)) for sentence in sentences)]) + "\n"


def as_markdown(sentences: Sequence[Sequence[Piece]]) -> str:
    """The paragraph as Markdown."""
    return "\n".join("".join(map(_markdown, sentence)) for sentence in sentences) + "\n"


def digest_table(facts: Facts) -> Table:
    """The whole digests, of which the paragraph gives the beginning."""
    rows = [(title, value) for name, title in _DIGESTS.items() if isinstance(value := facts.get(name), str)]
    return Table("digests", "SHA-256 digests of what the numbers were made from", ("of", "SHA-256"), rows)


def _said(template: Sequence[str], facts: Facts) -> list[Piece]:
    """A sentence with its facts; nothing if it cannot be said."""
    found: list[Piece] = []
    for number, clause in enumerate(template):
        try:
            found += _clause(clause, facts)
        except _Missing:
            if number == 0:
                return []
    ends = "".join(piece.text for piece in found[-2:]).removesuffix("”").endswith((".", "?", "!"))
    return found if ends else [*found, Piece(".")]


def _clause(clause: str, facts: Facts) -> Iterator[Piece]:
    pieces, place = [], 0
    for field in _FIELD.finditer(clause):
        pieces.append(Piece(clause[place : field.start()]))
        place = field.end()
        name, value, how, absent = field[1], field[2], field[3], field[4]
        if absent:
            if name in facts:
                raise _Missing
        elif name not in facts or (value is not None and value != str(facts[name])):
            raise _Missing
        elif value is None:
            pieces += _written(facts[name], how or "")
    yield from (piece for piece in [*pieces, Piece(clause[place:])] if piece.text)


def _written(value: Fact, how: str) -> list[Piece]:
    if isinstance(value, tuple):
        return [Piece(", ".join(map(visible, value)), is_fact=True)]
    if isinstance(value, str):
        is_digest = how == "digest"
        return [Piece(visible(value[:DIGITS_OF_DIGEST] if is_digest else value), is_fact=True, is_code=is_digest)]
    if how == "percent":
        return [Piece(f"{100 * value:.1f}", is_fact=True)]
    if how.isdigit():
        return [Piece(f"{value:.{how}f}", is_fact=True)]
    number = f"{value:,}" if isinstance(value, int) and how != "plain" else repr(value).removesuffix(".0")
    noun = "" if how in ("", "plain") else f" {how}" if value == 1 else f" {_PLURALS.get(how, how + 's')}"
    return [Piece(number, is_fact=True), *([Piece(noun)] if noun else [])]


def _latex(piece: Piece) -> str:
    if not piece.is_fact:
        return piece.text.replace("%", r"\%").replace("_", r"\_")
    if exponent := _EXPONENT.fullmatch(piece.text):
        sign = "-" if exponent[2] == "-" else ""
        return rf"${exponent[1]} \times 10^{{{sign}{exponent[3]}}}$"
    text = latex_escaped(piece.text)
    return rf"\texttt{{{text}}}" if piece.is_code else text


def _markdown(piece: Piece) -> str:
    if not piece.is_fact:
        return piece.text
    if piece.is_code:
        return f"`{piece.text.replace('`', '')}`"
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in one_line(piece.text))


def _training(part: str, what: str, more: Sequence[str] = ()) -> tuple[tuple[str, ...], ...]:
    """The sentences about the training of aspect modules or soft prompt."""

    def of(*clauses: str) -> tuple[str, ...]:
        return tuple(clause.replace("@", part) for clause in clauses)

    return (
        of(
            f"{{@.origin=trained}}{what} trained with AdamW",
            *more,
            " on {@.subset.num_images} of the {@.subset.num_in_split:training image}, {@.subset.min_per_category} or "
            "more per category, chosen by a hash of their keys,",
            " for {@.num_epochs:epoch}",
            " ({@.num_steps:step})",
            " in batches of {@.global_batch_size:image}",
            "{@.position=pair} (each with one of its aspects)",
            " at a learning rate of {@.learning_rate}",
            ", which rose linearly over the first {@.warmup_ratio:percent} % of the steps",
            "{@.schedule=linear} and then fell linearly to zero",
            "{@.schedule=published} and then fell linearly to zero by the rule of transformers",
            ", a weight decay of {@.weight_decay}",
            ", gradients clipped to a norm of {@.max_grad_norm}",
            "{@.clipping=none}, gradients not clipped",
            ", seed {@.seed:plain}",
            ", in {@.engine.precision}",
            ", the language model in {@.vlm.quantization}",
        ),
        of(
            "The loss on at most {@.validation_size:held-out image} was measured every {@.validate_every:step}",
            "; training would end after {@.patience:measurement} without a lower one",
            "; the state after step {@.best_step}, with the lowest, was kept",
        ),
        of(
            "{@.origin=imported}{@.digest:digest} is the digest of an imported file, which says nothing of its training"
        ),
    )


_SENTENCES: tuple[tuple[str, ...], ...] = (
    (
        "We used the frozen vision-language model {vlm.name}",
        " (architecture {vlm.architecture})",
        ", revision {vlm.revision:digest}",
        ", with weights of SHA-256 {features.weights:digest}",
    ),
    ("{source=cache}Its vision features were computed once per image and cached", " in {features.dtype}"),
    ("{source=live}Its vision features were computed from the images in evaluation", ", rounded to {features.dtype}"),
    (
        "The encoder ran in {machine.encoder_dtype}",
        " on {machine.device}",
        " with {features.attention} attention",
    ),
    ("Images were scaled down to at most {features.max_side:pixel} on the longer side",),
    ("The image processor kept their area at {features.min_pixels} or more", " and {features.max_pixels} or fewer",
     " pixels"),
    ("{features.transparency=white}Transparent pixels were pasted on white",),
    ("{features.transparency=drop}Transparency was dropped",),
    ("The language model ran in {precision}", ", with its layers quantized to {quantization}"),
    (
        "The dataset was {dataset.name}",
        ", with {num_categories:category}",
        " ({categories})",
    ),
    ("It has {dataset.train:training image}", ", {dataset.val:validation image}", ", {dataset.test:test image}"),
    ("{dataset.quarantined:image} of it could not be read and took no part",),
    ("The aspects were {aspect.aspects}", ", each with a module of {aspect.aspect_module.num_queries:query vector}"),
    ("Where nobody had annotated them, the vision-language model itself answered {aspect.answered_by_vlm}",),
    *_training("aspect", "In stage 1, the aspect modules were"),
    ("Of {aspect.restarts:initialization} of each aspect module, that with the lowest loss on at most "
     "{aspect.validation_size:held-out image} was kept",),
    *_training(
        "soft_prompt",
        "In stage 2, the soft prompt was",
        (" as {soft_prompt.num_soft_prompt_tokens:vector}", " (initial values: {soft_prompt.soft_prompt_init})"),
    ),
    ("{stage=stage2}{soft_prompt.origin!}{aspect.origin!}Nothing was trained",),
    ("{stage=stage2}{soft_prompt.origin!}{aspect.origin=trained}No soft prompt was used",),
    ("{soft_prompt.origin=trained}{aspect.origin!}No aspect modules were used",),
    ("{soft_prompt.vision_features=false}The language model saw the aspect tokens and no vision features",),
    ("{soft_prompt.supervision=distribution}The soft prompt learned the distribution over the categories",
     " ({soft_prompt.distribution_loss} loss)"),
    ("{soft_prompt.origin=trained}{layout=after_image}The soft prompt followed the image",),
    ("{soft_prompt.origin=trained}{layout=released}The soft prompt preceded the image and followed it again",),
    ("{target!}{stage=stage2}The model was asked on the {split} split: “{question}”",),
    ("{stage=stage2}For the target {target}, the model was asked on the {split} split: “{question}”",),
    ("{stage=stage2}{scoring=likelihood}The category with the largest log-likelihood, summed over its tokens, was its "
     "prediction",),
    ("{stage=stage2}{scoring=generate}The prediction was the line that the model wrote greedily; a line that names no "
     "category counts as wrong",),
    ("Left out of the prompt were {without}",),
    ("Categories of the dataset were counted as others: {category_map}",),
    (
        "{stage=stage2}The model was right on {result.num_correct} of {result.num_samples:image}: an accuracy of "
        "{result.accuracy:percent} %",
        " (95 % interval {result.accuracy.low:percent} to {result.accuracy.high:percent} %, Wilson)",
        ", a balanced accuracy of {result.balanced_accuracy:percent} %",
        ", a macro F1 of {result.macro_f1:percent} %",
        " ({result.macro_f1.low:percent} to {result.macro_f1.high:percent} %, bootstrap over images)",
    ),
    (
        "{stage=stage1}The share of right answers was {result.accuracy:percent} % ({result.num_correct} of "
        "{result.num_samples}",
        "; 95 % interval {result.accuracy.low:percent} to {result.accuracy.high:percent} %, Wilson",
        ")",
    ),
    (
        "{stage=stage2}The negative log-likelihood was {result.nll:3} nats",
        " ({result.nll.low:3} to {result.nll.high:3})",
        ", the Brier score {result.brier:3}",
        " ({result.brier.low:3} to {result.brier.high:3})",
        ", the expected calibration error {result.ece:3}",
        " ({result.ece.low:3} to {result.ece.high:3})",
        "; intervals of these are at 95 %, bootstrap over images, that of the calibration error corrected for its bias",
    ),
    (
        "{result.num_not_scored:image} of the {result.num_in_split} in the split took no part",
        " ({result.num_quarantined} could not be read, {result.num_left_out} were left out by the category map)",
        "; with those counted as wrong, the accuracy is {result.accuracy_of_split:percent} %",
    ),
    (
        "With scores divided by a temperature of {temperature.value:3}",
        ", fitted on {temperature.num_fitted:image} of the {temperature.fitted_on} split",
        ", the calibration error was {temperature.ece:3}",
        " and the negative log-likelihood {temperature.nll:3}",
    ),
    (
        "Against the distributions of the data ({distributions.num_samples:image}), the expected accuracy was "
        "{distributions.expected_accuracy:percent} %",
        ", the Kullback-Leibler divergence {distributions.kl_divergence:3} nats",
        ", the Jensen-Shannon divergence {distributions.js_divergence:3} nats",
        ", the cosine similarity {distributions.cosine_similarity:3}",
    ),
    ("Always answering {majority.category}, the largest category of {majority.split}, would give "
     "{majority.accuracy:percent} %",),
    (
        "A linear probe on mean features of {probe.num_train:training image} gives {probe.accuracy:percent} %",
        " (95 % interval {probe.accuracy.low:percent} to {probe.accuracy.high:percent} %, Wilson)",
    ),
    (
        "For {explanations.num_images:image}",
        "{explanations.explained=all}, all that were scored",
        "{explanations.explained=sample} of the {explanations.num_scored} that were scored",
        ", the contribution of each part of the prompt was measured: the log-likelihood of the predicted category with "
        "that part minus without it, in nats, while all others stay",
        "{explanations.intervals=bootstrap}; its means have 95 % intervals by a bootstrap over images",
    ),
    ("Over {prompts.count:wording} of the question, the accuracy was {prompts.mean:percent} % on average",
     ", from {prompts.lowest:percent} to {prompts.highest:percent} %"),
)  # fmt: skip


def _of_answers(number: int) -> tuple[str, ...]:
    part = f"answers.{number}"
    return (
        f"Of {{{part}.num_samples:answer}} to the aspect {{{part}.aspect}} from its aspect tokens alone, "
        f"{{{part}.accuracy:percent}} % were right",
        f" (95 % interval {{{part}.accuracy.low:percent}} to {{{part}.accuracy.high:percent}} %, Wilson)",
    )


_LAST: tuple[tuple[str, ...], ...] = (
    (
        "The software was MASP {software.masp}",
        " on Python {software.python}",
        " with PyTorch {software.torch}",
        ", transformers {software.transformers}",
        ", DeepSpeed {software.deepspeed}",
        ", NumPy {software.numpy}",
        " and Pillow {software.pillow}",
    ),
    (
        "{source=cache}The features were made with PyTorch {machine.torch}",
        ", transformers {machine.transformers}",
        " and Pillow {machine.pillow}",
    ),
    ("The SHA-256 digest of the dataset is {dataset.digest:digest}",),
    ("The SHA-256 digest of the cache is {dataset.cache:digest}",),
    ("The SHA-256 digest of the fingerprint of the features is {vlm.fingerprint:digest}",),
    ("The SHA-256 digest of the questions is {questions.file:digest}",),
    ("The SHA-256 digest of the aspect modules is {aspect.digest:digest}",),
    ("The SHA-256 digest of the soft prompt is {soft_prompt.digest:digest}",),
    ("The SHA-256 digest of the records of all predictions is {records.digest:digest}",),
)
_DIGESTS = {
    "features.weights": "weights of the VLM",
    "vlm.fingerprint": "fingerprint of the features",
    "dataset.digest": "dataset",
    "dataset.cache": "index of the cache",
    "questions.file": "file of the questions",
    "aspect.digest": "aspect modules",
    "soft_prompt.digest": "soft prompt",
    "records.digest": "records of all predictions",
}
"""Name of a fact -> what it is the digest of."""
