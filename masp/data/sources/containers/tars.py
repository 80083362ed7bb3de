"""Tars of WebDataset: images, and beside each one members of the same name that say what is known of it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from masp.data.findings import Finding, Kind, examples
from masp.data.image_files.stored import Section
from masp.data.sources.containers.identities import check_unique, identities_of
from masp.data.sources.containers.listed_files import listed_files, named_splits
from masp.data.sources.containers.tar_samples import Counted, TarSamples, column_names, read_samples
from masp.data.sources.rows import ColumnBuilder, Header, Rows
from masp.errors import InputError
from masp.files.text import reason
from masp.runtime.process_pool import default_processes, process_pool

_MANY_BYTES = 256 << 20
"""From so many on, tars are read by processes, although these take a second to start."""
_HEADER_SAMPLES = 100
"""Samples of a tar that are asked which columns there are."""


@dataclass(frozen=True)
class TarPlaces:
    """Where images in tars are."""

    containers: tuple[str, ...]
    container: np.ndarray
    """`[N]` int32, into `containers`."""
    offsets: np.ndarray
    """`[N]` int64."""
    sizes: np.ndarray
    """`[N]` int64."""
    names: list[str]

    def __getitem__(self, row: int, /) -> Section:
        """An image."""
        container = self.containers[self.container[row]]
        return Section(container, self.names[row], int(self.offsets[row]), int(self.sizes[row]))

    def part(self, rows: np.ndarray) -> TarPlaces:
        """Those of some rows."""
        names = [self.names[row] for row in rows.tolist()]
        return TarPlaces(self.containers, self.container[rows], self.offsets[rows], self.sizes[rows], names)


class TarSource:
    """Tars of samples."""

    kind = "tars"

    def __init__(self, root: Path, files: Sequence[Path]):
        """Take files; none is opened yet.

        Args:
            root: Directory of the dataset.
            files: Paths of tars in or below it, in the order of rows.

        Raises:
            InputError: There are no files.
        """
        self._files = listed_files(root, files, ".tar")

    def header(self) -> Header:
        """Columns that the first samples of the first and the last tar have; errors as of `RowSource.header`."""
        paths = [file.path for file in self._files]
        found = list(itertools.chain(column_names(paths[0], _HEADER_SAMPLES), column_names(paths[-1], _HEADER_SAMPLES)))
        return Header(tuple(dict.fromkeys(found)), rows_are_images=True)

    def read(self, columns: Sequence[str], image: str | None, identity: str | None) -> Rows:
        """Read columns of all samples; arguments and errors as of `RowSource.read`."""
        assert image is None, "rows of tars are images"
        wanted = list(dict.fromkeys([*columns, *([identity] if identity else [])]))
        builders = {name: ColumnBuilder() for name in wanted}
        tars = []
        for samples in self._read(wanted):
            for name, builder in builders.items():
                builder.extend(samples.columns.pop(name))
            tars.append(samples)
        counts = [len(samples.names) for samples in tars]
        paths = tuple(file.path for file in self._files)
        places = TarPlaces(
            paths,
            np.repeat(np.arange(len(tars), dtype=np.int32), counts),
            np.concatenate([samples.offsets for samples in tars]),
            np.concatenate([samples.sizes for samples in tars]),
            list(itertools.chain.from_iterable(samples.names for samples in tars)),
        )

        def where(row: int) -> str:
            return str(places[row])

        found = {name: builder.column() for name, builder in builders.items()}
        if identity:
            identities = identities_of(found[identity], identity, where)
        else:
            pairs = zip(self._files, tars, strict=True)
            identities = [f"{file.name}/{name}" for file, samples in pairs for name in samples.names]
            check_unique(identities, "", where)
        rows = Rows(identities, {name: found[name] for name in columns}, where, places)
        rows.split_names = named_splits(self._files, counts)
        rows.findings = tuple(_findings(paths, tars))
        return rows

    def _read(self, columns: Sequence[str]) -> Iterator[TarSamples]:
        paths = [file.path for file in self._files]
        with tqdm(total=len(paths), desc="tars", unit="tar", delay=1.0, leave=False, disable=None) as progress:
            is_many = len(paths) > 1 and sum(map(_size, paths)) > _MANY_BYTES
            for samples in (_by_processes if is_many else _one_by_one)(paths, columns):
                yield samples
                progress.update()


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None


def _one_by_one(paths: Sequence[str], columns: Sequence[str]) -> Iterator[TarSamples]:
    for path in paths:
        yield read_samples(path, columns)


def _by_processes(paths: Sequence[str], columns: Sequence[str]) -> Iterator[TarSamples]:
    with process_pool(min(default_processes(), len(paths)), None, "reads the headers of tars") as pool:
        yield from pool.map(read_samples, paths, itertools.repeat(columns))


def _findings(paths: Sequence[str], tars: Sequence[TarSamples]) -> Iterable[Finding]:
    """What is left out."""
    sums: tuple[tuple[Kind, str, list[Counted]], ...] = (
        ("missing", "samples of tars have no image, and are left out", [tar.without_image for tar in tars]),
        ("ignored", "members of tars are not images, .cls, .txt or .json, and ignored", [tar.others for tar in tars]),
        ("ignored", "values in .json members of tars are objects, and ignored", [tar.nested for tar in tars]),
    )
    for kind, text, counted in sums:
        if total := sum(each.count for each in counted):
            pairs = zip(paths, counted, strict=True)
            names = (f"{path}: {name}" for path, each in pairs for name in each.examples)
            yield Finding(kind, f"{total:,} {text}", total, examples(names))
