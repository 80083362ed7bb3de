"""`masp datasets`: the published datasets that MASP knows, and what is found under a path."""

from __future__ import annotations

import argparse
import shlex
import textwrap

from masp.cli.parser import Commands, add_command
from masp.errors import InputError
from masp.runtime.log import show

_DETAILS = """\
Without a path: the published datasets that dataset.name knows, with their categories, how they are laid out, where
their splits come from, the paper, and what is known about their use. Any other dataset is dataset.name=folder.

With a path, which may be a directory, a file, a pattern or hf://owner/name: of which format it is, how many images of
which category and split there are, what should be known about it, and the settings to write. Nothing is written.

  masp datasets
  masp datasets data/Emotion6 name=emotion6 split={train: 0.8, test: 0.2}
  masp datasets 'data/{00000..00009}.tar' columns.label=emotion"""


def register(commands: Commands) -> None:
    """Add the parser."""
    parser = add_command(commands, "datasets", "list the known datasets, or look at one", _DETAILS)
    parser.add_argument("root", nargs="?", metavar="PATH", help="what dataset.root would be")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the section dataset")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List the known datasets, or say what is under a path.

    Raises:
        InputError: There is no dataset under the path, or a setting is not valid.
    """
    if arguments.root is None:
        _list()
    else:
        _look(arguments.root, arguments.settings)
    return 0


def _list() -> None:
    from masp.data.named.catalog import NAMED, categories_of

    for name, each in NAMED.items():
        categories = ", ".join(categories_of(name)) or "those of dataset.label_names"
        rows = (
            ("categories", categories),
            ("layout", each.layout),
            ("splits", each.splits),
            ("from", each.source),
            ("use", each.license),
        )
        show(f"{name}: {each.title}")
        for title, text in rows:
            show(*textwrap.wrap(text, 118, initial_indent=f"  {title:<11} ", subsequent_indent=" " * 14))
    show("Write dataset.name=NAME and dataset.root=PATH; `masp datasets PATH` says what is found there.")


def _look(root: str, settings: list[str]) -> None:
    from masp.config.aspects import load_aspects
    from masp.config.loading import check_together, default_aspects
    from masp.config.reading import load_settings
    from masp.config.schema import Config
    from masp.data.datasets import list_dataset
    from masp.data.findings import finding_lines
    from masp.data.splits.subset import subset_of

    if unnamed := [setting for setting in settings if "=" not in setting]:
        raise InputError(f"{unnamed[0]!r} must be KEY=VALUE, for example name=emotion6")
    overrides = [setting if setting.startswith("dataset.") else f"dataset.{setting}" for setting in settings]
    overrides = [f"dataset.root={root}", *overrides, "vlm.path=none", "cache.dir=none"]
    settings_of_run = load_settings(Config, None, overrides, check_together, complete=default_aspects)
    config = settings_of_run.dataset
    listed = list_dataset(config, load_aspects(settings_of_run.aspect_definitions))
    dataset = listed.whole()
    counts = ", ".join(f"{dataset.holdings.num_images(split):,} {split}" for split in dataset.holdings.splits)
    show(f"{root}: {listed.kind}, {len(dataset.samples):,} images ({counts})")
    subset = subset_of(config, dataset.samples)
    show(*dataset.holdings.table(), *finding_lines((*dataset.findings, *(subset.findings if subset else ()))))
    for sample in dataset.samples[:3]:
        show(f"for example {sample.image}: {sample.category}, sample key {sample.key}")
    show(f"Settings: {shlex.join(overrides[:-2])}")
