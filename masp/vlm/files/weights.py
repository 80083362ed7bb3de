"""The weight files of a VLM: which there are, and whether they are whole, before transformers reads one of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from safetensors import safe_open

from masp.errors import InputError
from masp.files.regular import is_file
from masp.files.text import first_line, reason, shown
from masp.vlm.files.directory import KEY, read_json

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = ("F32", "F16", "BF16", "I64")
"""Quantized weights have others; integers of 64 bits are numbers of positions and the like."""
COMPUTED = re.compile(r"(^|\.)(rotary_emb|rotary_pos_emb)\.(original_)?inv_freq$")
"""Buffers that old checkpoints hold and every model computes."""
CONVERTED = re.compile(r".*\.(experts|ngram_embedding)\.")
"""Tensors below these are one in memory, under a name that transformers makes of theirs."""
MAX_NAMED = 3
"""Tensors that an error names."""


def check_weights(directory: Path) -> list[Path]:
    """Refuse weights of which transformers would read only a part, or none.

    Returns:
        The weight files, in order of their names.

    Raises:
        InputError: There are no safetensors, files are missing, left over or cut short, or tensors are quantized.
    """
    found = sorted(path.name for path in directory.glob("*.safetensors"))
    has_index = is_file(directory / INDEX, key=KEY)
    if not found:
        pickles = sorted(path.name for path in directory.glob("*.bin"))
        others = f"; {pickles[0]} is a pickle, convert it" if pickles else ""
        raise InputError(f"{KEY}: {directory} holds no *.safetensors weights{others}")
    if has_index and ONE in found:
        raise InputError(f"{KEY}: {directory} holds both {ONE} and {INDEX}; keep the one that belongs to this VLM")
    place = _index(directory) if has_index else {}
    named = sorted(set(place.values())) if has_index else [ONE]
    if missing := [name for name in named if name not in found]:
        if not has_index:
            raise InputError(f"{KEY}: {directory} holds {shown(found[0])}, but neither {ONE} nor {INDEX}")
        raise InputError(f"{KEY}: {directory}: {INDEX} names {shown(missing[0])}, which is not a file there")
    if extra := [name for name in found if name not in named]:
        raise InputError(
            f"{KEY}: {directory}: {shown(extra[0])} is not part of the weights ({', '.join(named[:MAX_NAMED])}) and "
            "would not be read; move it elsewhere"
        )
    held = {name: file for file in named for name in _tensors(directory / file)}
    if has_index and place != held:
        name = min(set(place.items()) ^ set(held.items()))[0]
        raise InputError(
            f"{KEY}: {directory}: tensor {shown(name)} is in {held.get(name, 'no file')}, but {INDEX} puts it "
            f"in {place.get(name, 'no file')}"
        )
    return [directory / name for name in named]


def unread(unexpected: Iterable[str], other_half: Iterable[str]) -> list[str]:
    """Tensors of the weight files that neither half of the VLM has a place for, sorted.

    Args:
        unexpected: What transformers found no place for while it loaded a half.
        other_half: Names of the other half's tensors, which stay on disk on purpose.
    """
    known = set(other_half)
    converted = {match[0] for name in known if (match := CONVERTED.match(name))}
    left = (name for name in set(unexpected) - known if not COMPUTED.search(name))
    return sorted(name for name in left if not ((match := CONVERTED.match(name)) and match[0] in converted))


def first_of(names: Sequence[str]) -> str:
    """The first of some tensors, and how many there are beside them."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(shown(name) for name in names[:MAX_NAMED]) + more


def _index(directory: Path) -> dict[str, str]:
    """Tensor -> file, as the list of weight files says it."""
    content = read_json(directory, INDEX) or {}
    place = content.get("weight_map")
    if not isinstance(place, dict) or not place or not all(isinstance(file, str) for file in place.values()):
        raise InputError(f"{KEY}: {directory / INDEX}: weight_map = {shown(place)}: must name the file of every tensor")
    return place


def _tensors(path: Path) -> list[str]:
    """Names of the tensors in a file, whose header safetensors compares with its size."""
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            dtypes = {name: str(file.get_slice(name).get_dtype()) for name in names}
    except OSError as error:
        raise InputError(f"{KEY}: {path} cannot be read: {reason(error)}") from None
    except Exception as error:  # safetensors has no list of what it raises over damaged headers
        raise InputError(f"{KEY}: {path} is not a complete safetensors file: {first_line(error)}") from None
    for name, dtype in dtypes.items():
        if dtype not in DTYPES and not COMPUTED.search(name):
            raise InputError(
                f"{KEY}: {path}: tensor {shown(name)} has dtype {dtype}; must be one of {', '.join(DTYPES[:3])}: "
                "quantized weights are not supported"
            )
    return names
