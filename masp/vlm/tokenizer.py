"""The tokenizer of a VLM, whose files are checked before the library compiles what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from masp.errors import InputError
from masp.files.text import shown
from masp.vlm.directory import CONFIG, KEY, PROCESSOR, TOKENIZER, read_json
from masp.vlm.families import plain_vlm_errors

FILE = "tokenizer.json"
PARTS = ("ByteLevel", "NFC", "Sequence", "Split")
"""Steps that the families' tokenizers take; others could make one letter a gigabyte."""
PATTERNS = (PRETOKENIZE_REGEX,)
"""Regular expressions of the families' tokenizers. Any other might take forever on some text."""


def load_tokenizer(directory: Path, vocab_size: int) -> PreTrainedTokenizerBase:
    """Load the tokenizer.

    Args:
        directory: Directory of the VLM.
        vocab_size: Rows of the VLM's embedding table.

    Raises:
        InputError: There is none, or it is not one of the supported families, or it has tokens without an embedding.
    """
    _check_file(directory)
    with plain_vlm_errors(f"{directory} has no usable tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        tokens = tokenizer.get_vocab()
    name = max(tokens, key=tokens.__getitem__)
    if tokens[name] >= vocab_size:
        raise InputError(
            f"{KEY}: {directory}: vocab_size = {vocab_size} in {CONFIG}, but the tokenizer has a token {shown(name)} "
            f"with id {tokens[name]}, which has no embedding"
        )
    return tokenizer


def _check_file(directory: Path) -> None:
    content = read_json(directory, FILE) or {}
    what = f"{KEY}: {directory / FILE}"
    for section in ("normalizer", "pre_tokenizer", "decoder"):
        for part in _objects(content.get(section)):
            kind = part.get("type")
            if kind is not None and kind not in PARTS:
                raise InputError(f"{what}: {section}: type = {shown(kind)}: must be one of {', '.join(PARTS)}")
            pattern = part.get("Regex")
            if pattern is not None and pattern not in PATTERNS:
                raise InputError(f"{what}: {section}: Regex = {shown(pattern)}: must be that of the supported families")
    model = content.get("model")
    if isinstance(model, dict) and model.get("dropout"):
        raise InputError(f"{what}: model.dropout = {shown(model['dropout'])}: must be null, or tokens are random")


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    for inner in value if isinstance(value, list) else ():
        yield from _objects(inner)


def check_stated_tokens(directory: Path, tokens: Mapping[str, str]) -> None:
    """Compare the tokens that config.json names by id with those that other files name as strings.

    Args:
        directory: Directory of the VLM.
        tokens: Key of the other files -> token that config.json says; empty where it says none.

    Raises:
        InputError: They differ; names files, keys and values.
    """
    for file in (TOKENIZER, PROCESSOR):
        content = read_json(directory, file) or {}
        for key, token in tokens.items():
            stated = content.get(key)
            if isinstance(stated, dict):
                stated = stated.get("content")
            if stated is not None and token and stated != token:
                raise InputError(
                    f"{KEY}: {directory}: {key} = {shown(stated)} in {file}, but {CONFIG} says {shown(token)} by its "
                    "token id; both must say the same"
                )
