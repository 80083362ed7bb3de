"""The released formats, `aspect.pth` and `soft_prompt_….pt`: pickles that may come from anyone.

They are read without unpickling, and nothing in them is believed before its type, shape and size are checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from masp.artifacts.torch_archive import NotAnArchive, Refused, read_archive
from masp.errors import InputError
from masp.files.regular import file_size
from masp.files.text import reason, shown

TOKEN = "<|reserved_special_token_{}|>"
"""Names of a soft prompt's rows."""
ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
"""Names of an aspect's attention tensors."""
MAX_QUERIES, MAX_SOFT_TOKENS = 1024, 4096
"""What a file may claim: a few bytes can describe a tensor that fills all memory."""

MAX_BYTES = 64 << 30
"""Size limit of a file: aspect modules of sixty aspects for the largest VLM, or a whole embedding table."""


def require_file(path: str, key: str) -> None:
    """Raises InputError unless `path`, which a setting named, is a regular file of at most `MAX_BYTES`."""
    if file_size(Path(path), max_bytes=MAX_BYTES, key=key) is None:
        raise InputError(f"{key}: {path} is not a file")


def padding_rows(tokenizer: PreTrainedTokenizerBase, count: int, num_rows: int) -> tuple[int, ...]:
    """The rows of a VLM's embedding table in which the published code keeps a soft prompt, and from which it starts.

    It gives the tokenizer `count` tokens of its own: a name that the tokenizer has keeps its row, and the others take
    the rows behind the last token, which VLMs have for the sake of round numbers.

    Args:
        tokenizer: Tokenizer of the VLM.
        count: Length of the soft prompt.
        num_rows: Rows of the table.

    Raises:
        InputError: The table has too few.
    """
    known, free = tokenizer.get_vocab(), len(tokenizer)
    rows = []
    for number in range(count):
        name = TOKEN.format(number)
        rows.append(known.get(name, free))
        free += name not in known
    if max(rows) >= num_rows:
        room = sum(row < num_rows for row in rows)
        raise InputError(
            f"stage2.soft_prompt_init = 'padding_rows': the VLM's embedding table has {num_rows} rows for "
            f"{len(tokenizer)} tokens: room for {room} vectors, and stage2.num_soft_prompt_tokens = {count}; give "
            f"{f'{room} at most, or ' if room else ''}another soft_prompt_init"
        )
    return tuple(rows)


def _read(path: str, key: str) -> Any:
    """Read tensors in plain containers; a file with anything else in it is refused.

    Raises:
        InputError: No such file, refused, or something else.
    """
    require_file(path, key)
    try:
        return read_archive(path, MAX_BYTES)
    except Refused as error:
        raise InputError(f"{key}: {path} is refused: {error}") from None
    except (NotAnArchive, OSError) as error:
        raise InputError(f"{key}: {path} is not a checkpoint of tensors: {reason(error)}") from None


def checked_tensor(value: Any, shape: tuple[int, ...], what: str) -> Tensor:
    """A copy in fp32, if the value is a dense, finite float tensor of this shape; `what` names it in the InputError."""
    dense = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    if not dense or not value.is_floating_point() or tuple(value.shape) != shape:
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{what}: must be a float tensor {list(shape)}, is {found}")
    copy = value.detach().float().clone()
    if not torch.isfinite(copy).all():  # of the copy: a large fp64 number is infinite in fp32
        raise InputError(f"{what}: holds numbers that are not finite in fp32")
    return copy


def read_released_aspects(path: str) -> dict[str, Any]:
    """Values of an aspect checkpoint as `<aspect>.<parameter>`, yet to be checked.

    Raises:
        InputError: No such file, refused, or of another structure.
    """
    key = "checkpoint.aspect"
    content = _read(path, key)
    queries, attention = (content.get(n) if isinstance(content, dict) else None for n in ("q_view", "cross_attn"))
    if (
        not isinstance(queries, dict)
        or not isinstance(attention, dict)
        or not queries
        or set(queries) != set(attention)
    ):
        raise InputError(
            f"{key}: {path} is not an aspect checkpoint: it needs q_view and cross_attn for the same aspects"
        )
    if content.get("fuser") is not None:
        raise InputError(f"{key}: {path} has a fuser, which this method does not have; valid is null")
    values = {}
    for aspect, query in queries.items():
        state = attention[aspect]
        if not isinstance(aspect, str) or not isinstance(state, dict) or set(state) != set(ATTENTION):
            raise InputError(f"{key}: {path}: cross_attn[{shown(aspect)}] must hold {', '.join(ATTENTION)}")
        values[f"{aspect}.query"] = query
        values |= {f"{aspect}.{name.replace('.', '_')}": value for name, value in state.items()}
    return values


def read_released_soft_prompt(path: str, hidden_size: int) -> Tensor:
    """A soft prompt `[P, D]`.

    Raises:
        InputError: No such file, refused, of another structure, or vectors that do not fit the VLM.
    """
    key = "checkpoint.soft_prompt"
    content = _read(path, key)
    names = list(content) if isinstance(content, dict) else []
    if not names or any(name != TOKEN.format(i) for i, name in enumerate(names)):
        valid = TOKEN.format(0)
        raise InputError(f"{key}: {path} is not a soft prompt: it needs rows named {valid}, … in order")
    if len(names) > MAX_SOFT_TOKENS:
        raise InputError(f"{key}: {path} has {len(names)} rows; at most {MAX_SOFT_TOKENS} are read")
    first = content[names[0]]
    width = first.shape[0] if isinstance(first, Tensor) and first.dim() == 1 else 1
    if width != hidden_size:
        raise InputError(f"{key}: {path} has vectors of {width} numbers, but the VLM's hidden size is {hidden_size}")
    # a released row is a view into a whole embedding table: checked_tensor clones it
    return torch.stack([checked_tensor(content[name], (width,), f"{key}: {path}: {name}") for name in names])
