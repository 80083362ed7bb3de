"""Compare this implementation with outputs of the published one, through the feature cache.

    python tools/check_parity.py --case DIR --vlm DIR

Prints one JSON line with the largest differences. Exits with 0 if all are within the tolerances, 1 if they are not, 2
if the input is wrong and 3 if data are damaged.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=Path, required=True, help="directory with golden.json, images and checkpoints")
    parser.add_argument("--vlm", required=True, help="directory of the VLM that the case was made with")
    arguments = parser.parse_args()
    from masp.errors import MaspError
    from masp.experiments.parity import compare

    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is reserved for the JSON line
            result = compare(arguments.case, arguments.vlm)
    except MaspError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(dataclasses.asdict(result)))
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
