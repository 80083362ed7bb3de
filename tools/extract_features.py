"""Run the frozen encoder over a dataset and fill the feature cache.

    python tools/extract_features.py --config configs/train.yaml [key=value …]

This is the same job as `masp extract` and takes the same arguments.
"""

import sys

from masp.cli.main import run_process

if __name__ == "__main__":
    run_process(["extract", *sys.argv[1:]])
