"""The VLM's chat template as token ids, cut where the visual block, the soft prompt and the answer go."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from masp.errors import InputError
from masp.files.text import shown
from masp.vlm.directory import GENERATION, read_json
from masp.vlm.families import load_config, resolve_directory
from masp.vlm.template import QUESTION, SYSTEM, chat_turn
from masp.vlm.tokenizer import check_stated_tokens, load_tokenizer

__all__ = ["SYSTEM", "Prompt", "load_prompt"]


@dataclass(frozen=True)
class Prompt:
    """Token ids of one turn: `opening [image_start] visual block [image_end] question closing answer end`."""

    tokenizer: PreTrainedTokenizerBase
    opening: tuple[int, ...]
    """System turn and the start of the user turn, up to the image."""
    image_start: tuple[int, ...]
    """The VLM's image-start token; empty where it has none."""
    image_end: tuple[int, ...]
    closing: tuple[int, ...]
    """From the end of the user turn to the start of the answer; its last token is the newline after `assistant`."""
    end: int
    """The token that ends an answer."""
    stop: frozenset[int]
    """Token ids at which generation stops."""
    merge_size: int
    """Patches per side that the VLM merges into one vision token."""

    @functools.lru_cache(maxsize=65536)  # noqa: B019 - a Prompt lives as long as its process
    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a plain text (a question or an answer), without special tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        """Text of generated token ids, without special tokens."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)  # of one sequence, not of several
        return text

    def __hash__(self) -> int:
        return id(self)


def load_prompt(path: str) -> Prompt:
    """Read tokenizer and chat template of the VLM at `path` (directory or hub name).

    Raises:
        InputError: No tokenizer or chat template, or a template that does not place system text, image, question and
            answer.
    """
    directory = resolve_directory(path)
    config = load_config(directory)
    tokenizer = load_tokenizer(directory, config.text_config.vocab_size)

    def token(name: str) -> str:
        number = getattr(config, name, None)
        if number is None:
            return ""
        found = tokenizer.convert_ids_to_tokens(number) if 0 <= number < len(tokenizer) else None
        if not isinstance(found, str):
            raise InputError(f"vlm.path: {directory}/config.json: {name} = {number} is not a token of the tokenizer")
        return found

    image, start, finish = token("image_token_id"), token("vision_start_token_id"), token("vision_end_token_id")
    if not image:
        raise InputError(f"vlm.path: {directory}/config.json: image_token_id is missing; must be a token id")
    check_stated_tokens(directory, {"image_token": image, "vision_bos_token": start, "vision_eos_token": finish})
    special = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    turn = chat_turn(directory, image, special)
    if turn.between not in (finish, ""):
        raise InputError(
            f"vlm.path: the chat template in {directory} writes {shown(turn.between)} between image and question; must "
            f"be {shown(finish)} or nothing"
        )

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

    has_start = bool(start) and turn.before.endswith(start)
    end = ids(turn.tail)[0]
    prompt = Prompt(
        tokenizer=tokenizer,
        opening=ids(turn.before.removesuffix(start)),
        image_start=ids(start) if has_start else (),
        image_end=ids(turn.between),
        closing=ids(turn.closing),
        end=end,
        stop=frozenset({end, *stop_tokens(directory, len(tokenizer))}),
        merge_size=config.vision_config.spatial_merge_size,
    )
    if end not in tokenizer.get_added_vocab().values():
        raise InputError(
            f"vlm.path: the chat template in {directory} ends an answer with {shown(turn.tail)}, which does not begin "
            "with a special token"
        )
    pieces = (*prompt.opening, *prompt.image_start, *ids(image), *prompt.image_end, *ids(QUESTION), *prompt.closing)
    if pieces != ids(turn.before + image + turn.between + QUESTION + turn.closing):
        raise InputError(
            f"vlm.path: the tokenizer in {directory} joins letters of the chat template with those of a question, "
            "whose token ids would not be those of the whole prompt"
        )
    return prompt


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
