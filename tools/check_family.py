"""Verify a VLM: the stock model of transformers against its halves as MASP runs them, on one image in fp32.

    python tools/check_family.py --vlm DIR

Prints one JSON line. Exits with 0 if it passed, 1 if numbers differ, and 2 if the VLM is refused.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vlm", required=True, metavar="DIR", help="directory of the VLM, or its hub name")
    parser.add_argument("--attention", choices=("sdpa", "eager"), help="default: sdpa where the VLM has it")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: cpu")
    arguments = parser.parse_args()
    from masp.errors import MaspError
    from masp.runtime.log import setup

    setup()  # before anything imports a library that talks
    from masp.experiments.family_check import check_family

    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is reserved for the JSON line
            result, _ = check_family(arguments.vlm, arguments.attention, arguments.device)
    except MaspError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(dataclasses.asdict(result)))
    return 0 if result.passed else 1 if result.supported else 2


if __name__ == "__main__":
    sys.exit(main())
