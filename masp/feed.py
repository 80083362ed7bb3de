"""What evaluation scores, from the cache or live from the images: keys, labels, and features in batches."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from masp.aspect_tokens import AspectTokens, open_aspect_tokens
from masp.assemble import load_trained_aspects, machine_part, model_part, open_matching_cache
from masp.cache.formats import as_read
from masp.cache.layout import QUARANTINE
from masp.cache.reader import Cache
from masp.config import Config
from masp.devices import encoder_dtype, pick_device, torch_dtype
from masp.errors import DataError, InputError
from masp.pictures import Picture, Pictures, batches, picture_stream
from masp.workers import ReadAhead


@dataclass(frozen=True)
class Item:
    """One sample to score."""

    key: str
    label: str
    features: Tensor
    """`[T, D]`."""
    grid: tuple[int, int, int]
    answers: dict[str, str]
    """Aspect -> answer, where annotated."""
    aspect_tokens: Tensor | None = None
    """`[A, N, D]` where `cache.aspect_tokens` reads them."""
    source: tuple[int, int] | None = None
    """Bytes and modification time (ns) of the image file that was read live."""


@dataclass
class Feed:
    """The samples of a split, in the order of their keys, and a way to their features."""

    keys: list[str]
    labels: list[str]
    """Category of each, one of `categories`."""
    categories: tuple[str, ...]
    model: dict[str, Any]
    """Model part of the fingerprint of the features."""
    machine: dict[str, Any]
    """Machine part."""
    hidden_size: int
    data_digest: str
    """Digest of keys, labels and, from the cache, of what the features are made of."""
    num_quarantined: int
    """Images of the split that extraction could not read, which are not evaluated."""
    source: Any

    def batches(self, keys: Sequence[str], batch_size: int) -> Generator[list[Item]]:
        """Features of some samples, similar lengths together. Close it: it may hold worker processes."""
        return self.source.batches(keys, batch_size)

    @property
    def live_machine(self) -> dict[str, Any] | None:
        """The machine part where features are made here and now, for the ledger; the cache has its own."""
        return self.machine if isinstance(self.source, _LiveSource) else None

    def answers(self) -> Iterator[tuple[str, str, dict[str, str]]]:
        """Key, split and answers of every image of the dataset, all splits."""
        return self.source.answers()

    def check_unchanged(self, key: str, source: Sequence[int] | None) -> None:
        """Refuse what was scored from another file than the one that is there now; from the cache, nothing to do.

        Args:
            key: of an image.
            source: `Item.source` when it was scored.

        Raises:
            InputError: the image has changed.
        """
        self.source.check_unchanged(key, source)

    def notes(self) -> list[str]:
        """What whoever reads the results should know about the samples."""
        if not self.num_quarantined:
            return []
        images = "image of the split is" if self.num_quarantined == 1 else "images of the split are"
        return [f"{self.num_quarantined} {images} in quarantine, which extraction could not read: not evaluated"]


def open_feed(config: Config) -> Feed:
    """Open what `evaluate.source` names.

    Raises:
        InputError: no cache, a cache of another VLM, or no such split.
    """
    return _cached(config) if config.evaluate.source == "cache" else _live(config)


def _digest(pairs) -> str:
    from masp.files.sealed import digest_of

    return digest_of(sorted(map(list, pairs)))


def source_of(item: Item) -> dict[str, Any]:
    """What a record says about the image file that it was made from; nothing from the cache."""
    return {} if item.source is None else {"source": list(item.source)}


def machines_of(feed: Feed, ledgers: Path) -> list[dict[str, Any]]:
    """The machine parts of the features that all ledgers were made from: one from the cache, any number live."""
    from masp.ledger import read_machines

    return read_machines(ledgers) or [feed.machine]


def mixed_notes(machines: Sequence[dict[str, Any]]) -> list[str]:
    """How machines that made features of one evaluation differ; rounding, so it is said and no error."""
    from masp.cache.fingerprint import differences

    found = {
        name: list(dict.fromkeys(repr(machine.get(name)) for machine in machines))
        for other in machines[1:]
        for name, _, _ in differences(machines[0], other)
    }
    return [f"features come from different machines: {name} was {', '.join(v)}" for name, v in found.items()]


# ---- from the cache


def _cached(config: Config) -> Feed:
    cache, model = open_matching_cache(config)
    rows = cache.rows(config.evaluate.split)
    rows = rows[sorted(range(len(rows)), key=lambda i: cache.index.keys[rows[i]])]
    keys = [cache.index.keys[row] for row in rows]
    labels = [cache.categories[cache.index.category[row]] for row in rows]
    tokens = None
    if config.cache.aspect_tokens and config.evaluate.stage == "stage2":
        _, lineage = load_trained_aspects(config, cache.hidden_size, model)
        tokens = open_aspect_tokens(config, cache, lineage.digest if lineage else None)
    return Feed(
        keys=keys,
        labels=labels,
        categories=cache.categories,
        model=model,
        machine=cache.manifest["fingerprint"]["machine"],
        hidden_size=cache.hidden_size,
        data_digest=_digest(zip(keys, labels, cache.index.features_crc32[rows].tolist(), strict=True)),
        num_quarantined=cache.manifest["splits"][config.evaluate.split]["num_quarantined"],
        source=_CacheSource(cache, dict(zip(keys, rows.tolist(), strict=True)), config.evaluate.num_workers, tokens),
    )


class _CachedBatches(Dataset):
    def __init__(self, cache: Cache, batches: list[list[int]], tokens: AspectTokens | None):
        self.cache, self.rows, self.tokens = cache, batches, tokens

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> list[Item]:
        rows = self.rows[number]
        samples = [self.cache.read(row) for row in rows]
        tokens = [self.tokens.read(row) if self.tokens else None for row in rows]
        return [Item(s.key, s.category, s.features, s.grid, s.answers, t) for s, t in zip(samples, tokens, strict=True)]


class _CacheSource:
    def __init__(self, cache: Cache, row_of: dict[str, int], num_workers: int, tokens: AspectTokens | None):
        self.cache, self.row_of, self.num_workers, self.tokens = cache, row_of, num_workers, tokens

    def batches(self, keys: Sequence[str], batch_size: int) -> Generator[list[Item]]:
        rows = sorted((self.row_of[key] for key in keys), key=lambda row: (self.cache.index.num_tokens[row], row))
        cut = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        dataset = _CachedBatches(self.cache, cut, self.tokens)
        with ReadAhead(dataset, range(len(cut)), self.num_workers, "evaluate.num_workers") as batches:
            yield from batches

    def answers(self) -> Iterator[tuple[str, str, dict[str, str]]]:
        for row in range(len(self.cache)):
            record = self.cache.read_record(row)
            yield record["key"], record["split"], record["answers"]

    def check_unchanged(self, key: str, source: Sequence[int] | None) -> None:
        """The digest of the features stands in the identity of the evaluation."""


# ---- live


def _live(config: Config) -> Feed:
    from masp.data.datasets import read_dataset
    from masp.models.families import load_config, resolve_folder

    dataset = read_dataset(config.dataset)
    broken = quarantined_keys(config)
    of_split = [s for s in dataset.samples if s.split == config.evaluate.split]
    samples = {s.key: s for s in of_split if s.key not in broken}
    if not samples:
        raise InputError(f"evaluate.split = {config.evaluate.split!r}: {dataset.root} has no image in this split")
    keys = sorted(samples)
    labels = [samples[key].category for key in keys]
    return Feed(
        keys=keys,
        labels=labels,
        categories=dataset.categories,
        model=model_part(config),
        machine=machine_part(config),
        hidden_size=load_config(resolve_folder(config.vlm.path)).text_config.hidden_size,
        # not what the files hold: each record says that of its own, so that mending one leaves the others
        data_digest=_digest(zip(keys, labels, strict=True)),
        num_quarantined=len(of_split) - len(samples),
        source=_LiveSource(config, samples, [s for s in dataset.samples if s.key not in broken]),
    )


def quarantined_keys(config: Config) -> set[str]:
    """Keys that extraction put into quarantine, if there was one: what cannot be read is not evaluated either.

    Raises:
        DataError: a line of the list is damaged. InputError: it cannot be read.
    """
    path = Path(config.cache.dir) / QUARANTINE
    if not path.exists():
        return set()
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"cache.dir: {path} cannot be read: {error.strerror}") from None
    return {_quarantined_key(path, number, line) for number, line in enumerate(lines, start=1)}


def _quarantined_key(path: Path, number: int, line: bytes) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
        raise DataError(f"{path}, line {number}: names no image; `masp cache verify` says what else is damaged")
    return entry["key"]


class _LiveSource:
    def __init__(self, config: Config, samples: dict, everything: Sequence[Any]):
        self.config, self.samples, self.everything = config, samples, everything
        self.now: dict[str, tuple[int, int] | None] = {}
        """Bytes and modification time of image files, asked once each; None where there is none."""

    def answers(self) -> Iterator[tuple[str, str, dict[str, str]]]:
        return ((s.key, s.split, dict(s.answers)) for s in self.everything)

    def check_unchanged(self, key: str, source: Sequence[int] | None) -> None:
        path = self.samples[key].image_path
        if key not in self.now:
            self.now[key] = _source_now(path)
        if source is None or self.now[key] != tuple(source):
            raise InputError(
                f"{path} has changed since it was scored; choose another evaluate.output_dir, or delete the ledgers"
            )

    def batches(self, keys: Sequence[str], batch_size: int) -> Generator[list[Item]]:
        """Features of the images that can be read.

        Raises:
            DataError: some cannot; in the end, when all others have been yielded.
        """
        samples = [self.samples[key] for key in sorted(keys)]
        bad: list[str] = []
        encoder = Encoder(self.config)
        with encoder.stream(samples, self.config.evaluate.num_workers) as stream:
            for start in range(0, len(samples), batch_size):
                part = samples[start : start + batch_size]
                pictures = [next(stream) for _ in part]
                good = [(s, p) for s, p in zip(part, pictures, strict=True) if not (p.reason or p.failure)]
                bad += [
                    f"{s.image_path} cannot be read: {p.reason or p.failure}"
                    for s, p in zip(part, pictures, strict=True)
                    if p.reason or p.failure
                ]
                if not good:
                    continue
                features = encoder.encode([picture for _, picture in good])
                yield [
                    Item(
                        s.key, s.category, f, p.grid, dict(s.answers), source=(p.source["bytes"], p.source["mtime_ns"])
                    )
                    for (s, p), f in zip(good, features, strict=True)
                ]
        if bad:
            more = f"; {len(bad)} of {len(samples)} images cannot be read" if bad[1:] else ""
            raise DataError(
                f"{bad[0]}{more}; the others are scored: mend it and run the same command again, or run "
                "`masp extract`, which puts such images into quarantine, and evaluate into another folder"
            )


def _source_now(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


class Encoder:
    """The vision half with its preprocessing, as extraction runs it."""

    def __init__(self, config: Config):
        from masp.models.vision import load_preprocessor, load_vision_half

        self.config = config
        self.preprocessor = load_preprocessor(config.vlm.path, config.vlm.min_pixels, config.vlm.max_pixels)
        self.device = pick_device(config.extract.device, "extract.device")
        dtype = torch_dtype(encoder_dtype(config.cache.dtype, self.device))
        self.vision = load_vision_half(config.vlm.path, dtype, self.device, config.vlm.attention)

    def stream(self, samples: Sequence[Any], num_workers: int) -> ReadAhead:
        """Preprocessed pictures of samples (anything with an `image_path`), in order."""
        pictures = Pictures(samples, self.preprocessor, self.config.vlm.max_side)
        return picture_stream(pictures, num_workers, "evaluate.num_workers", self.device)

    def encode(self, pictures: Sequence[Picture]) -> list[Tensor]:
        """Features of any number of pictures as the cache would give them back, each `[T, D]`.

        On as many threads as extraction uses.
        """
        extract, threads = self.config.extract, torch.get_num_threads()
        torch.set_num_threads(extract.num_threads)
        try:
            return [
                as_read(tensor, self.config.cache.dtype)
                for batch in batches(pictures, extract.batch_tokens)
                for tensor in self.vision.encode([p.pixels for p in batch], [p.grid for p in batch])
            ]
        finally:
            torch.set_num_threads(threads)
