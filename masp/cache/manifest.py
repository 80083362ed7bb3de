"""Finishing a cache: merge the shards' sidecars into index, quarantine list and manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from masp.cache.fingerprint import FORMAT_VERSION, fingerprint_digest
from masp.cache.index import build_index, save_index
from masp.cache.layout import INDEX, MANIFEST, QUARANTINE, sidecar_path, split_of
from masp.cache.shard_state import sidecars
from masp.config import Config
from masp.errors import DataError, InputError
from masp.files.atomic import write_bytes
from masp.files.sealed import canonical_json, digest_file, sealed


def finalize(folder: Path, layout: dict) -> dict:
    """Write `index.h5`, `quarantine.jsonl` and, last, `manifest.json`; returns the manifest.

    Each is a pure function of the sidecars and the layout. The caller holds the folder's lock.

    Raises:
        InputError: shards are missing, named. DataError: no image at all could be read.
    """
    summary = summarise(folder, layout)
    if not sum(split["num_samples"] for split in summary["splits"].values()):
        raise DataError(f"cache.dir: {folder}: not one image could be read; see {folder / QUARANTINE}")
    index_path = folder / INDEX
    index = build_index(sidecars(folder, layout), list(summary["splits"]), layout["categories"], summary["aspects"])
    save_index(index_path, index)
    quarantine = write_quarantine(folder, sidecars(folder, layout))
    manifest = {
        "format_version": FORMAT_VERSION,
        "dataset": {"name": layout["dataset"], "digest": summary["dataset_digest"]},
        "fingerprint": {
            "digest": fingerprint_digest(layout["model"]),
            "model": layout["model"],
            "machine": layout["machine"],
        },
        "dtype": layout["model"]["dtype"],
        "hidden_size": summary["hidden_size"],
        "categories": layout["categories"],
        "aspects": summary["aspects"],
        "splits": summary["splits"],
        "generations": layout["generations"],
        "shards": summary["shards"],
        "index": {"bytes": index_path.stat().st_size, "sha256": digest_file(index_path)},
        "quarantine": quarantine,
    }
    write_bytes(folder / MANIFEST, sealed(manifest))
    return manifest


def layout_of(manifest: dict) -> dict:
    """The layout that a manifest was written under."""
    fingerprint = manifest["fingerprint"]
    return {
        "format_version": manifest["format_version"],
        "dataset": manifest["dataset"]["name"],
        "categories": manifest["categories"],
        "model": fingerprint["model"],
        "machine": fingerprint["machine"],
        "generations": manifest["generations"],
    }


def summarise(folder: Path, layout: dict) -> dict:
    """Counts and digests over all shards, read one sidecar at a time.

    Returns:
        `splits` (name -> counts), `aspects` (sorted names), `shards` (list of their files' sizes and digests),
        `dataset_digest` (over key, labels and image digest of every sample) and `hidden_size`.
    """
    splits: dict[str, dict] = {}
    aspects: set[str] = set()
    shards, hidden_size = [], None
    contents: list[tuple[str, bytes]] = []
    for sidecar in sidecars(folder, layout):
        name = sidecar["name"]
        split = splits.setdefault(
            split_of(name),
            {"num_shards": 0, "num_samples": 0, "num_quarantined": 0, "num_tokens": 0, "categories": {}, "aspects": {}},
        )
        split["num_shards"] += 1
        split["num_samples"] += len(sidecar["samples"])
        split["num_quarantined"] += len(sidecar["quarantined"])
        for sample in sidecar["samples"]:
            split["num_tokens"] += sample["num_tokens"]
            split["categories"][sample["category"]] = split["categories"].get(sample["category"], 0) + 1
            for aspect in sample["answers"]:
                split["aspects"][aspect] = split["aspects"].get(aspect, 0) + 1
                aspects.add(aspect)
        for entry in (*sidecar["samples"], *sidecar["quarantined"]):
            content = [entry["category"], entry["answers"], entry["source"]["sha256"]]
            contents.append((entry["key"], hashlib.sha256(canonical_json(content)).digest()))
        if sidecar["samples"]:
            hidden_size = sidecar["hidden_size"]
        shards.append(
            {
                "name": name,
                "num_samples": len(sidecar["samples"]),
                **sidecar["tar"],
                "sidecar_sha256": digest_file(sidecar_path(folder, name)),
            }
        )
    digest = hashlib.sha256()
    for key, content_digest in sorted(contents):
        digest.update(key.encode() + b"\0" + content_digest)
    return {
        "splits": {name: splits[name] for name in sorted(splits)},
        "aspects": sorted(aspects),
        "shards": shards,
        "dataset_digest": digest.hexdigest(),
        "hidden_size": hidden_size,
    }


def write_quarantine(folder: Path, sidecars: Iterator[dict]) -> dict:
    """Write `quarantine.jsonl`, one line per image that could not be read; returns its count and digest."""
    lines = [
        canonical_json({"key": entry["key"], "path": entry["path"], "reason": entry["reason"]}) + b"\n"
        for sidecar in sidecars
        for entry in sidecar["quarantined"]
    ]
    text = b"".join(lines)
    write_bytes(folder / QUARANTINE, text)
    return {"num_samples": len(lines), "sha256": hashlib.sha256(text).hexdigest()}


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
