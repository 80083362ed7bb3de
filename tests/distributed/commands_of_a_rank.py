"""Run by torchrun on every rank: several `masp …` commands one after another in one process."""

import json
import sys

from masp.cli.main import main
from masp.runtime.stop import end_process

for argv in json.loads(sys.argv[1]):
    code = main(argv)
    if code:
        sys.exit(f"{argv}: exit code {code}")
end_process(0)
