"""What of a fetched cache follows from its sidecars, or is only for people: made or checked where the cache arrives."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
from pathlib import Path

from masp.cache.findings import FILE as FINDINGS
from masp.cache.layout import QUARANTINE, plain_write_errors, sidecar_path
from masp.cache.manifest import Manifest, ShardFile
from masp.cache.merge import quarantine_lines, shard_answers
from masp.cache.remote.place import Place
from masp.cache.shard_state import SidecarFingerprint, fingerprint_of, map_shards, read_digested
from masp.data.answer_table import AnswerTable, answers_digest, load_answers, save_answers
from masp.data.findings import DatasetRecord
from masp.errors import DataError, InputError
from masp.files.atomic import write_bytes
from masp.files.regular import MAX_BYTES, read_bytes
from masp.files.sealed import unseal

LOG = logging.getLogger(__name__)


def store_derived(directory: Path, manifest: Manifest) -> None:
    """Check that the sidecars are those of the manifest's shards, and write quarantine list and answers.

    Args:
        directory: Directory of a cache of which everything but these and the manifest is there.
        manifest: Its manifest.

    Raises:
        DataError: The manifest does not agree with a sidecar or with the quarantine list.
        InputError: They cannot be written.
    """
    lines: list[bytes] = []
    tables: list[AnswerTable] = []
    examine = functools.partial(_examine, directory, fingerprint_of(manifest.layout))
    for quarantined, table in map_shards(examine, manifest.shards):
        lines += quarantined
        tables.append(table)
    text = b"".join(lines)
    if hashlib.sha256(text).hexdigest() != manifest.quarantine.sha256:
        raise DataError(f"{directory}: the quarantine list of the manifest is not that of the sidecars")
    with plain_write_errors(directory, "CACHE"):
        if read_bytes(directory / QUARANTINE) != text:
            write_bytes(directory / QUARANTINE, text)
        answers = AnswerTable.join(tables)
        if not _has_answers(directory, manifest.index.sha256, answers):
            save_answers(directory, manifest.index.sha256, answers)


def _examine(directory: Path, fingerprint: SidecarFingerprint, shard: ShardFile) -> tuple[list[bytes], AnswerTable]:
    """Lines of the quarantine list and answers of a shard, whose sidecar is compared with the manifest."""
    path, found = sidecar_path(directory, shard.name), read_digested(directory, shard.name)
    if found is None or found[1] != shard.sidecar_sha256:
        raise DataError(f"{path} went away or changed; run the same command again")
    sidecar = found[0]
    said = sidecar.name, sidecar.fingerprint, sidecar.tar.bytes, sidecar.tar.sha256, len(sidecar.samples)
    if said != (shard.name, fingerprint, shard.bytes, shard.sha256, shard.num_samples):
        raise DataError(f"{path} is not the sidecar of the shard that the manifest names")
    return quarantine_lines(sidecar), shard_answers(sidecar)


def _has_answers(directory: Path, index: str, answers: AnswerTable) -> bool:
    with contextlib.suppress(DataError):  # damaged, so they are written anew
        found = load_answers(directory, index, "")
        return found is not None and answers_digest(index, found) == answers_digest(index, answers)
    return False


def store_findings(place: Place, directory: Path, manifest: Manifest) -> None:
    """Fetch what is recorded of the dataset, which no other file depends on: what is damaged is left out, and said.

    Args:
        place: Where the cache comes from.
        directory: Directory of the cache.
        manifest: Its manifest.
    """
    try:
        data = place.read_small(FINDINGS, MAX_BYTES)
        if data is None:
            return
        record = unseal(DatasetRecord, data, place.where(FINDINGS))
    except (DataError, InputError) as error:
        LOG.warning("%s; it is left out: `masp cache info` will not show findings about the dataset", error)
        return
    if record.dataset == manifest.dataset.digest:
        with plain_write_errors(directory, "CACHE"):
            if read_bytes(directory / FINDINGS) != data:
                write_bytes(directory / FINDINGS, data)
