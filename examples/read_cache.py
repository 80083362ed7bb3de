"""Open a feature cache and print what it holds of a few images.

    python examples/read_cache.py CACHE [--split train] [--limit 5]

CACHE is the `cache.dir` of a run. Every sample is read with its checksums verified; the VLM is not needed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence

from masp.cache.reader import Cache, CachedSample, open_cache
from masp.errors import MaspError, one_line


def samples(cache: Cache, split: str) -> Iterator[CachedSample]:
    """Every sample of a split, in the order of the shards, so that reading is sequential."""
    for row in cache.rows(split):
        yield cache.read(int(row))


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and print a line per image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", metavar="CACHE", help="the directory of a finished cache")
    parser.add_argument("--split", help="the split to read (default: the first one)")
    parser.add_argument("--limit", type=int, default=5, help="how many images to print (default 5)")
    arguments = parser.parse_args(argv)
    cache = open_cache(arguments.cache)
    split = arguments.split or cache.splits[0]
    print(f"{len(cache)} images, features of {cache.hidden_size} numbers per vision token")
    for name in cache.splits:
        rows = cache.rows(name)
        print(f"split {name}: {len(rows)} images, {int(cache.index.num_tokens[rows].sum())} vision tokens")
    for sample in itertools.islice(samples(cache, split), arguments.limit):
        tokens = sample.features.tokens
        print(
            f"{sample.key}: {sample.category}, features {list(tokens.shape)} {tokens.dtype}, grid {sample.layout.grid}"
        )
        for aspect, answer in sample.answers.items():
            print(f"    {aspect}: {answer}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MaspError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
