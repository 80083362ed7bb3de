"""The tokenizer of a VLM, whose steps are tried out in a process of their own before they run in this one."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from masp.errors import InputError
from masp.files.json_text import parse_json
from masp.files.text import shown
from masp.vlm.files import try_tokenizer
from masp.vlm.files.directory import CONFIG, KEY, PROCESSOR, TOKENIZER, read_json
from masp.vlm.files.errors import plain_vlm_errors

FILE = "tokenizer.json"
PARTS = (
    "ByteFallback",
    "ByteLevel",
    "Digits",
    "Fuse",
    "NFC",
    "NFD",
    "Punctuation",
    "Sequence",
    "Split",
    "WhitespaceSplit",
)
"""Steps that take no long time and make no long text, whatever the text is, if their pattern is one of `PATTERNS`."""
PATTERNS = (PRETOKENIZE_REGEX,)
"""Regular expressions that are known. Any other might take forever on some text."""
WALL_S = 120
"""Seconds after which a trial is given up; the limit of its CPU time is lower, a network disk may be slow."""


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
    model = content.get("model")
    if isinstance(model, dict) and model.get("dropout"):
        raise InputError(
            f"{KEY}: {directory / FILE}: model.dropout = {shown(model['dropout'])}: must be null, or tokens are random"
        )
    for section in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        for part in _objects(content.get(section)):
            kind, pattern = part.get("type"), part.get("Regex")
            if (kind is not None and kind not in PARTS) or (pattern is not None and pattern not in PATTERNS):
                status = (directory / FILE).stat()
                _try_out(directory / FILE, (status.st_size, status.st_mtime_ns))
                return


@functools.lru_cache(maxsize=64)
def _try_out(path: Path, identity: tuple[int, int]) -> None:
    """Run a tokenizer in a process of its own.

    Args:
        path: Its file.
        identity: Size and modification time (ns) of the file, so that another one is tried again.

    Raises:
        InputError: It took too much time or memory, or made too many tokens.
    """
    try:
        # -P: nothing is imported from the working directory
        child = subprocess.run(
            [sys.executable, "-P", try_tokenizer.__file__, str(path)], capture_output=True, timeout=WALL_S, check=False
        )
    except subprocess.TimeoutExpired:
        child = None
    except OSError as error:
        raise InputError(f"{KEY}: {path} cannot be tried out: {error}") from None
    if child is None or child.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise InputError(
            f"{KEY}: {path}: short texts cannot be tokenized within {try_tokenizer.CPU_S} s of CPU time: one of its "
            "patterns or replacements does not terminate"
        )
    if child.returncode or not child.stdout:
        raise InputError(f"{KEY}: {path}: the tokenizers library crashes on short texts with this file")
    found = parse_json(child.stdout)
    if "tokens" in found:
        raise InputError(
            f"{KEY}: {path}: a text of {found['characters']:,} characters becomes {found['tokens']:,} tokens; must be "
            f"at most {try_tokenizer.MAX_TOKENS} per character"
        )


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
