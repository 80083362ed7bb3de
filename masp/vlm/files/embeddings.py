"""The size of a VLM's word embeddings, read from a sample of rows: no weight but these is read."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import safe_open

from masp.vlm.files.weights import check_weights

_NAMES = ("embed_tokens.weight", "word_embeddings.weight", "wte.weight", "wte.embedding", "tok_embeddings.weight")
"""What the table is called, at the end of its name, in the families of transformers."""
_NUM_BLOCKS, _BLOCK_ROWS = 64, 16


def embedding_rms(directory: Path, hidden_size: int) -> float | None:
    """RMS of the word embeddings of a VLM, from about a thousand rows spread evenly over its table.

    Args:
        directory: Directory of the VLM.
        hidden_size: D of the language model, the width of the table.

    Returns:
        The root of the mean square of the numbers in these rows, without a factor by which the VLM multiplies them;
        None where no tensor of the weight files is such a table, or nothing in it is above 0.

    Raises:
        InputError: The weight files are not whole, see `check_weights`.
    """
    for path in check_weights(directory):
        with safe_open(path, "pt") as file:
            for name in sorted(file.keys()):
                if not name.endswith(_NAMES):
                    continue
                table = file.get_slice(name)
                shape = table.get_shape()
                if len(shape) == 2 and shape[1] == hidden_size:
                    return _rms(table, shape[0])
    return None


def _rms(table, num_rows: int) -> float | None:
    last = max(0, num_rows - _BLOCK_ROWS)
    starts = sorted({round(block * last / (_NUM_BLOCKS - 1)) for block in range(_NUM_BLOCKS)})
    rows = torch.cat([table[start : start + _BLOCK_ROWS] for start in starts]).double()
    rms = float(rows.square().mean().sqrt())
    return rms if math.isfinite(rms) and rms > 0 else None
