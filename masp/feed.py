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
    """Digest of keys, labels and what the features are made of."""
    source: Any

    def batches(self, keys: Sequence[str], batch_size: int) -> Generator[list[Item]]:
        """Features of some samples, similar lengths together. Close it: it may hold worker processes."""
        return self.source.batches(keys, batch_size)

    def answers(self) -> Iterator[tuple[str, str, dict[str, str]]]:
        """Key, split and answers of every image of the dataset, all splits."""
        return self.source.answers()


def open_feed(config: Config) -> Feed:
    """Open what `evaluate.source` names.

    Raises:
        InputError: no cache, a cache of another VLM, or no such split.
    """
    return _cached(config) if config.evaluate.source == "cache" else _live(config)


def _digest(pairs) -> str:
    from masp.cache.files import digest_of

    return digest_of(sorted(map(list, pairs)))


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


# ---- live


def _live(config: Config) -> Feed:
    from masp.data.datasets import read_dataset
    from masp.models.families import load_config, resolve_folder

    dataset = read_dataset(config.dataset)
    broken = quarantined_keys(config)
    samples = {s.key: s for s in dataset.samples if s.split == config.evaluate.split and s.key not in broken}
    if not samples:
        raise InputError(f"evaluate.split = {config.evaluate.split!r}: {dataset.root} has no image in this split")
    machine = machine_part(config)
    stats = {key: sample.image_path.stat() for key, sample in samples.items() if sample.image_path.exists()}
    made_of = [(k, s.category, stats[k].st_size, stats[k].st_mtime_ns) for k, s in samples.items() if k in stats]
    keys = sorted(samples)
    return Feed(
        keys=keys,
        labels=[samples[key].category for key in keys],
        categories=dataset.categories,
        model=model_part(config),
        machine=machine,
        hidden_size=load_config(resolve_folder(config.vlm.path)).text_config.hidden_size,
        data_digest=_digest([*made_of, *machine.items()]),
        source=_LiveSource(config, samples, [s for s in dataset.samples if s.key not in broken]),
    )


def quarantined_keys(config: Config) -> set[str]:
    """Keys that extraction put into quarantine, if there was one: what cannot be read is not evaluated either."""
    path = Path(config.cache.dir) / "quarantine.jsonl"
    if not path.is_file():
        return set()
    return {json.loads(line)["key"] for line in path.read_text().splitlines()}


class _LiveSource:
    def __init__(self, config: Config, samples: dict, everything: Sequence[Any]):
        self.config, self.samples, self.everything = config, samples, everything

    def answers(self) -> Iterator[tuple[str, str, dict[str, str]]]:
        return ((s.key, s.split, dict(s.answers)) for s in self.everything)

    def batches(self, keys: Sequence[str], batch_size: int) -> Generator[list[Item]]:
        samples = [self.samples[key] for key in sorted(keys)]
        encoder = Encoder(self.config)
        with encoder.stream(samples, self.config.evaluate.num_workers) as stream:
            for start in range(0, len(samples), batch_size):
                part = samples[start : start + batch_size]
                pictures = [next(stream) for _ in part]
                for sample, picture in zip(part, pictures, strict=True):
                    if picture.reason or picture.failure:
                        raise DataError(
                            f"{sample.image_path} cannot be read: {picture.reason or picture.failure}; remove it, or "
                            "run `masp extract`, which puts such images into quarantine"
                        )
                features = encoder.encode(pictures)
                yield [
                    Item(s.key, s.category, f, p.grid, dict(s.answers))
                    for s, f, p in zip(part, features, pictures, strict=True)
                ]


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
                for tensor in self.vision.encode([p.pixel_values for p in batch], [p.grid for p in batch])
            ]
        finally:
            torch.set_num_threads(threads)
