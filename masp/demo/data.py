"""The demo's dataset: how many images it has, and drawing them where they are missing."""

from __future__ import annotations

import os
from pathlib import Path

from tqdm import tqdm

from masp.config import Config
from masp.demo.tiny_vlm import VLM_DIR
from masp.demo.world.write_dataset import write_demo_data
from masp.files.regular import exists
from masp.runtime.log import show

NUM_TRAIN, NUM_TEST = 4000, 1000


def draw_demo_data(config: Config) -> None:
    """Draw the demo's images if the run uses the demo's VLM, which knows no other world, and they are missing.

    Args:
        config: Run configuration.

    Raises:
        InputError: See `write_demo_data`.
    """
    is_demo = os.path.realpath(config.vlm.path) == os.path.realpath(VLM_DIR)
    if is_demo and not exists(Path(config.dataset.root), key="dataset.root"):
        make_demo_data(config.dataset.root, NUM_TRAIN, NUM_TEST, config.seed)


def make_demo_data(root: str, num_train: int, num_test: int, seed: int, num_val: int = 0) -> None:
    """Draw images of the demo world with a progress bar, and print where they are; see `write_demo_data`."""
    with tqdm(total=num_train + num_val + num_test, desc="draw", unit="img") as bar:
        written = write_demo_data(root, num_train, num_test, seed, num_val, lambda done, _: bar.update(done - bar.n))
        bar.update(bar.total - bar.n)
    show(f"demo data: {root}: {bar.total} images{'' if written else ', there already'}")
