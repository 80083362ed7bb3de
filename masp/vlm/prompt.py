"""The VLM's chat template as token ids, cut where the visual block, the soft prompt and the answer go."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from masp.errors import InputError
from masp.files.regular import is_file
from masp.vlm.families import load_config, plain_vlm_errors, resolve_directory

SYSTEM = "You are a helpful assistant."


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
        InputError: No tokenizer or chat template, or a template that does not place image, question and answer.
    """
    directory = resolve_directory(path)
    config = load_config(directory)
    with plain_vlm_errors(f"{directory} has no usable tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise InputError(f"vlm.path: {directory} has no chat template (chat_template.json or chat_template.jinja)")

    question, answer = "QUESTION", "ANSWER"
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
    ]

    def rendered(add_generation_prompt: bool) -> str:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        assert isinstance(text, str)  # not token ids
        return text

    with plain_vlm_errors(f"the chat template in {directory} cannot be used"):
        asked = rendered(add_generation_prompt=True)
        messages.append({"role": "assistant", "content": answer})
        answered = rendered(add_generation_prompt=False)

    def token(name: str) -> str:
        number = getattr(config, name, None)
        if number is None:
            return ""
        found = tokenizer.convert_ids_to_tokens(number) if 0 <= number < len(tokenizer) else None
        if not isinstance(found, str):
            raise InputError(f"vlm.path: {directory}/config.json: {name} = {number} is not a token of the tokenizer")
        return found

    image, start, finish = token("image_token_id"), token("vision_start_token_id"), token("vision_end_token_id")
    before, image_found, after = asked.partition(image)
    between, question_found, closing = after.partition(question)
    tail = answered.rpartition(answer)[2]
    if not (image and image_found and question_found and closing and tail) or between not in (finish, ""):
        raise InputError(f"vlm.path: the chat template in {directory} does not place one image, then the question")

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

    end = ids(tail)[0]
    return Prompt(
        tokenizer=tokenizer,
        opening=ids(before.removesuffix(start)),
        image_start=ids(start) if start and before.endswith(start) else (),
        image_end=ids(between),
        closing=ids(closing),
        end=end,
        stop=frozenset({end, *stop_tokens(directory)}),
        merge_size=config.vision_config.spatial_merge_size,
    )


def stop_tokens(directory: Path) -> list[int]:
    """End-of-sequence ids of a VLM's generation settings; empty where it has none."""
    if not is_file(directory / "generation_config.json", key="vlm.path"):
        return []
    with plain_vlm_errors(f"{directory}/generation_config.json cannot be read"):
        eos = GenerationConfig.from_pretrained(directory).eos_token_id
    found = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if not all(isinstance(token, int) for token in found):
        raise InputError(f"vlm.path: {directory}/generation_config.json: eos_token_id = {eos!r}: must be token ids")
    return found
