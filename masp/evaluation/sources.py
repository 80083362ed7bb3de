"""Where an evaluation's features come from: the cache, or the encoder applied to the images now."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from masp.artifacts.aspect_tokens import AspectTokens, open_aspect_tokens
from masp.artifacts.trained import load_trained_aspects
from masp.cache.manifest import quarantined_keys
from masp.cache.reader import Cache
from masp.config import Config
from masp.data.datasets import read_dataset
from masp.errors import DataError, InputError
from masp.evaluation.feed import Feed, Item
from masp.extraction.encoder import Encoder
from masp.extraction.provenance import machine_part, model_part, open_matching_cache
from masp.files.sealed import digest_of
from masp.runtime.prefetch import ReadAhead
from masp.vlm.families import load_config, resolve_folder


def open_feed(config: Config) -> Feed:
    """Open what `evaluate.source` names.

    Raises:
        InputError: no cache, a cache of another VLM, or no such split.
    """
    return _cached(config) if config.evaluate.source == "cache" else _live(config)


def _digest(pairs) -> str:
    return digest_of(sorted(map(list, pairs)))


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


def _live(config: Config) -> Feed:
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
        live=True,
    )


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
