"""Nothing can be written on a read-only file system: one line with the real reason, whoever tries."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from masp.report.attention import page_entry
from tests.unit.experiments.test_compare import make_run

SCRIPT = """
import pickle, sys
from pathlib import Path
from masp.errors import InputError
from masp.experiments.compare import compare
from masp.report.attention import write_page
from masp.report.page import write_report

here, there = map(Path, sys.argv[1:])
entries = pickle.loads((here / "entries.pickle").read_bytes())
for write in (
    lambda: write_report(here / "a" / "evaluate", there / "page.html"),
    lambda: write_report(there / "evaluation"),
    lambda: write_page(there / "page.html", entries),
    lambda: write_page(there / "new" / "page.html", entries),
    lambda: compare([here / "a", here / "b"], there),
    lambda: compare([here / "a", here / "b"], there / "new"),
):
    try:
        write()
    except InputError as error:
        print(error)
"""


def test_the_reason_is_said_by_report_predict_and_compare(tmp_path):
    """In a mount namespace of its own, so that nothing is left mounted."""
    here, there = tmp_path / "here", tmp_path / "there"
    for name in ("a", "b"):
        make_run(here / name, [True, False])
    (here / "a" / "evaluate" / "metrics.json").write_text('{"accuracy": 0.5, "num_samples": 2, "num_correct": 1}')
    entry = page_entry("x", Image.new("RGB", (8, 8)), "joy", {"joy": 1.0}, {"scene": np.ones((2, 2), "f4")})
    (here / "entries.pickle").write_bytes(pickle.dumps([entry]))
    (there / "evaluation").mkdir(parents=True)
    (there / "evaluation" / "metrics.json").write_bytes((here / "a" / "evaluate" / "metrics.json").read_bytes())
    mount = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh", there]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this machine gives no mount namespace")
    done = subprocess.run([*command, sys.executable, "-c", SCRIPT, here, there], capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stdout.splitlines() == [
        f"{there}/page.html: cannot be written: Read-only file system; give --output another file",
        f"{there}/evaluation/report.html: cannot be written: Read-only file system; give --output another file",
        f"--attention {there}/page.html: cannot be written: Read-only file system",
        f"--attention {there}/new/page.html: cannot be written: Read-only file system",
        f"--output {there}: cannot be written: Read-only file system",
        f"--output {there}/new: cannot be written: Read-only file system",
    ]
