"""Run trained aspect modules on cached features and print where each of them looks.

    python examples/where_aspects_look.py CACHE ASPECTS [--aspects scene object] [--split test] [--limit 3]

CACHE is the `cache.dir` of a run, ASPECTS a file that stage 1 wrote (`aspect.safetensors`) or a released `aspect.pth`.
Modules that were trained around another VLM than the cache's are refused. Neither the VLM nor a GPU is needed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from masp.artifacts.store import load_aspects
from masp.artifacts.trained import check_lineage
from masp.cache.reader import CachedSample, open_cache
from masp.config import load_aspects as defined_aspects
from masp.errors import InputError, MaspError, one_line
from masp.models.sequence import pad_features


def weight_map(weights: Tensor, sample: CachedSample) -> Tensor:
    """A mean over the queries as a map `[height, width]` over the image's vision tokens, which sums to one.

    Args:
        weights: `[N, T]`, the attention of one aspect's queries.
        sample: the image; its grid counts patches before the VLM merges them.
    """
    if sample.layout.grid is None:
        raise InputError(f"sample {sample.key}: its VLM has no image grid, so its tokens have no place in the image")
    frames, height, width = sample.layout.grid
    merge = math.isqrt(frames * height * width // weights.shape[1])
    return weights.mean(0).reshape(frames, height // merge, width // merge).sum(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and print a line per image and aspect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", metavar="CACHE", help="the directory of a finished cache")
    parser.add_argument("file", metavar="ASPECTS", help="aspect.safetensors, or a released aspect.pth")
    text = "which aspects (default: those of configs/aspects.yaml)"
    parser.add_argument("--aspects", nargs="+", default=list(defined_aspects()), metavar="ASPECT", help=text)
    parser.add_argument("--split", help="the split to read (default: the last one)")
    parser.add_argument("--limit", type=int, default=3, help="how many images to print (default 3)")
    arguments = parser.parse_args(argv)
    cache = open_cache(arguments.cache)
    modules, lineage = load_aspects(arguments.file, arguments.aspects, cache.hidden_size)
    check_lineage(lineage, "ASPECTS", arguments.file, cache.manifest.fingerprint.model)
    for row in cache.rows(arguments.split or cache.splits[-1])[: arguments.limit]:
        sample = cache.read(int(row), dtype=torch.float32)
        features, mask = pad_features([sample.features.tokens])  # a batch of one image, [1, T, D] and [1, T]
        with torch.no_grad():
            tokens = modules(features, mask)[0]  # [A, N, D], in the order of modules.aspects
            attention = modules.attention(features, mask)  # aspect -> [1, N, T]
        for aspect, vectors in zip(modules.aspects, tokens, strict=True):
            looked = weight_map(attention[aspect][0], sample)
            top, left = divmod(int(looked.argmax()), looked.shape[1])
            norm = float(vectors.norm(dim=-1).mean())
            where = f"row {top + 1} of {looked.shape[0]}, column {left + 1} of {looked.shape[1]}"
            what = f"{len(vectors)} aspect tokens of norm {norm:.2f}"
            print(f"{sample.key}: {aspect}: {what}, {float(looked.max()):.1%} of the weight at {where}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MaspError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
