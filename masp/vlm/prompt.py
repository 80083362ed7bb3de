"""A prompt as token ids: the VLM's chat template around an image, a question and an answer.

The ids are those of the whole text, as the VLM's own processor writes and tokenizes it. They are put together from
pieces that are cut at special tokens, where no tokenizer joins letters; when a prompt is loaded, a whole one is
compared.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from masp.errors import InputError
from masp.files.text import shown
from masp.vlm.families import SYSTEM_TURN, TYPE_NAMES, Family, describe, load_config, resolve_directory
from masp.vlm.features import ImageLayout
from masp.vlm.files.directory import GENERATION, KEY, read_json
from masp.vlm.files.errors import plain_vlm_errors
from masp.vlm.files.template import ANSWER, QUESTION, SYSTEM, Turn, chat_turn
from masp.vlm.files.tokenizer import check_stated_tokens, load_tokenizer
from masp.vlm.positions import ImagePositions
from masp.vlm.processor import BLANK, blank, image_span, load_processor, marker_of, special_ids, write_out

__all__ = ["SYSTEM", "Prompt", "load_prompt"]


@dataclass(frozen=True)
class Prompt:
    """Token ids of one turn: `opening [image_start] image [image_end] question answer end`."""

    tokenizer: PreTrainedTokenizerBase
    family: Family
    positions: ImagePositions
    opening: tuple[int, ...]
    """All before the image."""
    image_start: tuple[int, ...]
    """Special tokens that the template writes before an image; empty where it writes none."""
    lead: tuple[int, ...]
    """What the processor writes for a small image before its first placeholder; mostly nothing."""
    trail: tuple[int, ...]
    """And behind its last."""
    image_end: tuple[int, ...]
    """As `image_start`, behind an image."""
    end: int
    """The token that ends an answer."""
    stop: frozenset[int]
    """Token ids at which generation stops."""
    types: Mapping[str, frozenset[int]]
    """For each kind of token types that the language half takes: the ids of type 1. All others have type 0."""
    before_question: str
    """The last special token of the image, and the text from there to the question."""
    after_question: str
    """The text from the question to the answer."""
    before_answer: str
    """The end of that, from its last special token on."""
    answer_lead: str
    """White space that belongs to an answer."""

    @functools.lru_cache(maxsize=65536)  # noqa: B019 - a Prompt lives as long as its process
    def question(self, text: str) -> tuple[int, ...]:
        """Token ids from the image to the answer: the question, and what the template writes around it.

        Raises:
            InputError: The question holds a special token that the tokenizer cannot read as text.
        """
        return self._around(self.before_question, text, self.after_question)[1:]

    @functools.lru_cache(maxsize=65536)  # noqa: B019
    def answer(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer behind a question, without the token that ends it.

        Raises:
            InputError: The tokenizer joins its first letters with what is before it, or cannot read a special token in
                it as text.
        """
        before = self.ids(self.before_answer)
        found = self._around(self.before_answer, self.answer_lead + text, self._text([self.end]))
        if found[: len(before)] != before or found[-1] != self.end:
            raise InputError(
                f"{KEY}: the tokenizer merges characters of the answer {shown(text)} with those of the chat template"
            )
        return found[len(before) : -1]

    @functools.lru_cache(maxsize=65536)  # noqa: B019
    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a text of the template by itself, which may write special tokens out."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def plain_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a user's text by itself, in which the name of a special token is a text like any other."""
        return tuple(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _around(self, before: str, text: str, after: str) -> tuple[int, ...]:
        """Token ids of a user's text with what the template writes directly around it."""
        if not (named := self._special.findall(text)):
            return self.ids(before + text + after)
        # no tokenizer joins letters over a special token: those of the template cut the text out
        cuts = [match.end() for match in self._special.finditer(before)]
        first = self._special.search(after)
        start, stop = cuts[-1] if cuts else 0, first.start() if first else len(after)

        def cut(inside: str) -> tuple[int, ...]:
            plain = self.plain_ids(before[start:] + inside + after[:stop])
            return self.ids(before[:start]) + plain + self.ids(after[stop:])

        if cut(QUESTION) != self.ids(before + QUESTION + after) or self.family.image_token_id in self.plain_ids(text):
            raise InputError(
                f"{KEY}: the text {shown(text)} contains {shown(named[0])}, which the tokenizer can only read as a "
                "special token; reword it"
            )
        return cut(text)

    @functools.cached_property
    def _special(self) -> re.Pattern[str]:
        """Finds special tokens in a text."""
        # the placeholder is not one everywhere
        return _special_pattern(self.tokenizer, special_ids(self.tokenizer) | {self.family.image_token_id})

    def block(self, layout: ImageLayout) -> tuple[int, ...]:
        """Token ids that the processor writes for an image."""
        if layout.block is None:
            return (self.family.image_token_id,) * layout.num_tokens
        return tuple(token for token, count in layout.block for _ in range(count))

    def decode(self, ids: list[int]) -> str:
        """Text of generated token ids, without special tokens."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)  # of one sequence, not of several
        return text

    def _text(self, ids: Sequence[int]) -> str:
        return "".join(self.tokenizer.added_tokens_decoder[number].content for number in ids)

    def __hash__(self) -> int:
        return id(self)


def load_prompt(path: str) -> Prompt:
    """Read tokenizer, processor and chat template of the VLM at `path` (directory or hub name).

    Raises:
        InputError: One is missing or of no use, or the template does not place image, question and answer.
    """
    directory = resolve_directory(path)
    config = load_config(directory)
    family = describe(config)
    has_system = family.model_type in SYSTEM_TURN
    if has_system:  # their processor does nothing that could not be written here
        tokenizer = load_tokenizer(directory, family.vocab_size)
        marker = _token_of(directory, config, tokenizer, "image_token_id")
        _check_tokens(directory, config, tokenizer, marker)
    else:
        processor = load_processor(directory, config)
        tokenizer, marker = processor.tokenizer, marker_of(processor)
    named = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    turn = chat_turn(directory, marker, named, has_system)
    text = turn.before + marker + turn.between + QUESTION + turn.closing
    if has_system:
        written, block = text, [family.image_token_id]
        out: Any = {"input_ids": [tokenizer(text, add_special_tokens=False)["input_ids"]]}
    else:
        with plain_vlm_errors(f"the processor in {directory} cannot write a prompt"):
            adds = not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))  # as the stock chat template does
            written, out = write_out(processor, text, blank(*BLANK), adds)
            _, alone = write_out(processor, marker, blank(*BLANK), False)
            block = _block(alone, family, special_ids(tokenizer))
    return _assembled(directory, family, ImagePositions(config), tokenizer, turn, written, out, block)


def _token_of(directory: Path, config: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """The token that an entry of config.json names by its id; empty if there is no such entry."""
    number = getattr(config, name, None)
    if number is None:
        return ""
    found = tokenizer.convert_ids_to_tokens(number) if 0 <= number < len(tokenizer) else None
    if not isinstance(found, str):
        raise InputError(f"{KEY}: {directory}/config.json: {name} = {number} is not a token id of the tokenizer")
    return found


def _check_tokens(directory: Path, config: Any, tokenizer: PreTrainedTokenizerBase, marker: str) -> None:
    start, finish = (
        _token_of(directory, config, tokenizer, name) for name in ("vision_start_token_id", "vision_end_token_id")
    )
    check_stated_tokens(directory, {"image_token": marker, "vision_bos_token": start, "vision_eos_token": finish})


def _block(out: Any, family: Family, special: frozenset[int]) -> list[int]:
    ids = out["input_ids"][0].tolist()
    start, stop = image_span(ids, family.image_token_id, special)
    return ids[start:stop]


def _assembled(
    directory: Path,
    family: Family,
    positions: ImagePositions,
    tokenizer: PreTrainedTokenizerBase,
    turn: Turn,
    written: str,
    out: Any,
    block: list[int],
) -> Prompt:
    """Cut a whole prompt into the pieces of a `Prompt`.

    Args:
        directory: Directory of the VLM.
        family: Its facts.
        positions: Its positions.
        tokenizer: Its tokenizer.
        turn: The prompt's text before the processor saw it.
        written: The same, with the image written out.
        out: Token ids and types of that, as the processor returns them.
        block: Token ids that the processor writes for the image alone.
    """
    ids, special, placeholder = [int(n) for n in out["input_ids"][0]], special_ids(tokenizer), family.image_token_id
    if placeholder not in ids:
        raise InputError(f"{KEY}: the processor in {directory} writes no image placeholder for an image")
    first = ids.index(placeholder) - block.index(placeholder)
    last = first + len(block)
    if ids[first:last] != block:
        raise InputError(
            f"{KEY}: the processor in {directory} expands an image in a prompt to other tokens than an image alone"
        )
    # what the template itself writes around an image: special tokens that the prompt has for an image alone
    others = {*tokenizer(turn.without_image, add_special_tokens=True)["input_ids"]}
    start, stop = first, last
    while start and ids[start - 1] in special - others:
        start -= 1
    while stop < len(ids) and ids[stop] in special - others:
        stop += 1
    edge = tokenizer.added_tokens_decoder[ids[stop - 1]].content
    head, found, after = written.partition(QUESTION)
    _, _, between = head.rpartition(edge)
    end, stated = _end(directory, tokenizer, turn.tail, special), stop_tokens(directory, len(tokenizer))
    place = block.index(placeholder)
    behind = len(block) - block[::-1].index(placeholder)
    prompt = Prompt(
        tokenizer=tokenizer,
        family=family,
        positions=positions,
        opening=tuple(ids[:start]),
        image_start=tuple(ids[start:first]),
        lead=tuple(block[:place]),
        trail=tuple(block[behind:]),
        image_end=tuple(ids[last:stop]),
        end=end,
        stop=frozenset({end, *stated}),
        types=_types(out, ids, family),
        before_question=edge + between,
        after_question=after,
        before_answer=_from_last_special(after, tokenizer, special),
        answer_lead=turn.lead,
    )
    if not found or list(prompt.question(QUESTION)) != ids[stop:]:
        raise InputError(
            f"{KEY}: the tokenizer in {directory} merges characters of the chat template with those of the question, "
            "so that the question has no token ids of its own"
        )
    prompt.answer(ANSWER)
    return prompt


def _end(directory: Path, tokenizer: PreTrainedTokenizerBase, tail: str, special: frozenset[int]) -> int:
    """The token that ends an answer: what the template writes behind one; else the tokenizer's own."""
    if not tail.strip():
        if not isinstance(tokenizer.eos_token_id, int):
            raise InputError(
                f"{KEY}: the chat template in {directory} writes nothing after an answer, and the tokenizer has no "
                "eos_token"
            )
        return tokenizer.eos_token_id
    first = tokenizer(tail.lstrip(), add_special_tokens=False)["input_ids"][0]
    if first not in special and first not in tokenizer.get_added_vocab().values():
        raise InputError(
            f"{KEY}: the chat template in {directory} ends an answer with {shown(tail)}, which does not begin with a "
            "special token"
        )
    return first


def _types(out: Any, ids: Sequence[int], family: Family) -> dict[str, frozenset[int]]:
    names = [name for name in TYPE_NAMES if name in out and name in (*family.mask_types, "moe_mm_token_type_ids")]
    return {
        name: frozenset(token for token, kind in zip(ids, out[name][0].tolist(), strict=True) if kind == 1)
        for name in names
    }


def _from_last_special(text: str, tokenizer: PreTrainedTokenizerBase, special: frozenset[int]) -> str:
    """The end of a text from its last special token on; all of it if it has none."""
    found = [match.start() for match in _special_pattern(tokenizer, special).finditer(text)]
    return text[found[-1] :] if found else text


def _special_pattern(tokenizer: PreTrainedTokenizerBase, numbers: frozenset[int]) -> re.Pattern[str]:
    """Finds tokens in a text; nothing if there are none."""
    added = tokenizer.added_tokens_decoder
    tokens = sorted((added[number].content for number in numbers if number in added), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")


def stop_tokens(directory: Path, num_tokens: int) -> list[int]:
    """End-of-sequence ids of a VLM's generation settings; empty where it has none."""
    eos = (read_json(directory, GENERATION) or {}).get("eos_token_id")
    found = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if not all(type(token) is int and 0 <= token < num_tokens for token in found):
        raise InputError(
            f"vlm.path: {directory}/generation_config.json: eos_token_id = {shown(eos)}: must be token ids from 0 to "
            f"{num_tokens - 1}"
        )
    return found
