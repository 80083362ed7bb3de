"""Run the frozen encoder over a dataset and fill the feature cache.

    python tools/extract_features.py --config configs/train.yaml [key=value …]

This is the same job as `masp extract` and takes the same arguments.
"""

import sys

from masp.cli.main import main
from masp.runtime.stop import end_process

if __name__ == "__main__":
    end_process(main(["extract", *sys.argv[1:]]))
