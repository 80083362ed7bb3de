"""The released formats, `aspect.pth` and `soft_prompt_….pt`: pickles that may come from anyone.

They are read without unpickling objects, and nothing in them is believed before its type, shape and size are checked.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from masp.errors import InputError
from masp.files.regular import file_size
from masp.files.text import first_line

TOKEN = "<|reserved_special_token_{}|>"
"""Names of a soft prompt's rows."""
ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
"""Names of an aspect's attention tensors."""
MAX_QUERIES, MAX_SOFT_TOKENS = 1024, 4096
"""What a file may claim: a few bytes can describe a tensor that fills all memory."""

MAX_BYTES = 64 << 30
"""Size limit of a file: aspect modules of sixty aspects for the largest VLM, or a whole embedding table."""


MAX_PICKLE_BYTES = 8 << 20
"""Size limit of the part of a file that describes its tensors; 4096 rows take 400 kB."""
GREEDY = ("builtins bytearray", "__builtin__ bytearray", "builtins set", "__builtin__ set", "_codecs encode")
"""What torch calls for a pickle beside tensors, with any argument; no tensor of the released formats needs one."""


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


def _unpickle(path: str, key: str) -> Any:
    """Load a torch file of tensors and plain containers; anything else in it is refused, not run."""
    require_file(path, key)
    _check_sizes(path, key)
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = _refused_global(error)
        reason = f"it names {name!r}, which is not a tensor and is not run" if name else "it holds no tensors"
        raise InputError(f"{key}: {path} is refused: {reason}") from None
    except Exception as error:  # whatever bytes anyone gave it: torch has no list of what its reader raises
        raise InputError(f"{key}: {path} is not a checkpoint of tensors: {first_line(error)}") from None


def _check_sizes(path: str, key: str) -> None:
    """Refuse a file that would take more memory than it has bytes, before any of it is read.

    Raises:
        InputError: A member is compressed, members share bytes, or the pickle names what could claim any memory.
    """
    try:
        with ZipFile(path) as archive:
            members = archive.infolist()
            packed = [member.filename for member in members if member.compress_type != ZIP_STORED]
            if packed:  # torch does not write them; unpacked, a small file could fill all memory
                raise InputError(f"{key}: {path} is refused: {packed[0]!r} in it is compressed")
            size, claimed = Path(path).stat().st_size, sum(member.file_size for member in members)
            if claimed > size:  # members that overlap
                raise InputError(f"{key}: {path} is refused: it has {size:,} bytes, and its members claim {claimed:,}")
            for member in members:
                if member.filename.endswith("data.pkl"):
                    if member.file_size > MAX_PICKLE_BYTES:
                        raise InputError(
                            f"{key}: {path} is refused: {member.filename!r} in it has {member.file_size:,} bytes; must "
                            f"be at most {MAX_PICKLE_BYTES:,}"
                        )
                    _check_names(archive.read(member), f"{key}: {path}")
    except (BadZipFile, NotImplementedError, OSError, ValueError, RuntimeError):
        return  # torch's older format, or nothing that it reads


def _check_names(data: bytes, what: str) -> None:
    """Refuse `bytearray` and the like, which torch lets a pickle call with any size."""
    for operation, argument, _ in pickletools.genops(data):
        if operation.name == "GLOBAL" and argument in GREEDY:
            raise InputError(f"{what} is refused: it names {argument!r}, which is not a tensor and is not run")


_REFUSED = re.compile(r"GLOBAL (\S+)")
"""In torch 2.13's messages, "Trying to load unsupported GLOBAL posix.system whose module posix is blocked" and
"Unsupported global: GLOBAL x.y was not an allowed global by default". There is a function for it,
`torch.serialization.get_unsafe_globals_in_checkpoint`, but not for files in torch's older format."""


def _refused_global(error: pickle.UnpicklingError) -> str | None:
    """What torch refused to import for a file, for the user; the rest of its text advises loading it anyway."""
    found = _REFUSED.search(str(error))
    return found[1] if found else None


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
    content = _unpickle(path, key)
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
            raise InputError(f"{key}: {path}: cross_attn[{aspect!r}] must hold {', '.join(ATTENTION)}")
        values[f"{aspect}.query"] = query
        values |= {f"{aspect}.{name.replace('.', '_')}": value for name, value in state.items()}
    return values


def read_released_soft_prompt(path: str, hidden_size: int) -> Tensor:
    """A soft prompt `[P, D]`.

    Raises:
        InputError: No such file, refused, of another structure, or vectors that do not fit the VLM.
    """
    key = "checkpoint.soft_prompt"
    content = _unpickle(path, key)
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
