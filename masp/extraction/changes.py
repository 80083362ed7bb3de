"""Whether finished shards still fit the dataset, and whether too many of its images are in quarantine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from masp.cache.layout import QUARANTINE, Layout, Shard, sidecar_path
from masp.cache.shard_state import MAX_SIDECAR_BYTES, SampleEntry, Sidecar, Source, keys_of, map_sidecars
from masp.data.image_files.stored import Location, digest_image, image_status
from masp.data.images import UnreadableImage, read_image_file
from masp.errors import DataError, InputError
from masp.files.regular import open_binary
from masp.files.text import reason

START_ANEW = "the dataset has changed since the cache was begun; restore it or extract into a new cache.dir"
NAMED = 3
"""How many samples an error names."""


def changes_in(shard: Shard, sidecar: Sidecar) -> tuple[list[str], bool]:
    """Compare the samples of a finished shard with the dataset as it is now.

    Args:
        shard: Shard as the dataset now has it; holds the same keys as the sidecar.
        sidecar: Sidecar of the finished shard.

    Returns:
        What was relabeled or has another image, one text per change; and whether the shard can stay, which it cannot
        if an image in quarantine has changed.
    """
    changes, keeps = [], True
    entries = {entry.key: entry for entry in sidecar.entries}
    for sample in shard.samples:
        entry = entries[sample.key]
        for name, old, new in (
            ("category", entry.category, sample.category),
            ("answers", entry.answers, sample.answers),
            ("distribution", entry.distribution, sample.distribution),
        ):
            if old != new:
                changes.append(f"sample {sample.key} was cached with {name} {old!r}, now it is {new!r}")
        if source_changed(sample.image, entry.source):
            if isinstance(entry, SampleEntry):
                changes.append(f"sample {sample.key}: {sample.image} has changed")
            keeps = False
    return changes, keeps


@dataclass(frozen=True)
class Compared:
    """A finished shard compared with the dataset."""

    has_same_keys: bool
    """Whether it holds exactly the samples that the dataset now puts there; if not, nothing else was compared."""
    changes: tuple[str, ...] = ()
    """What was relabeled or has another image."""
    keeps: bool = False
    """Whether it can stay."""


def compare_shard(shard: Shard, sidecar: Sidecar) -> Compared:
    """Compare a finished shard with the dataset as it is now.

    Raises:
        InputError: The file system gives no answer.
    """
    if not same_keys(shard, sidecar):
        return Compared(False)
    changes, keeps = changes_in(shard, sidecar)
    return Compared(True, tuple(changes), keeps)


def dataset_changed(directory: Path, changes: Sequence[str], remedy: str = START_ANEW) -> InputError:
    """The error for a dataset that is not the one that was cached; names the first changes and counts the others."""
    more = f"; and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
    return InputError(f"cache.dir: {directory}: {'; '.join(changes[:NAMED])}{more}; {remedy}")


def same_keys(shard: Shard, sidecar: Sidecar) -> bool:
    """Whether a finished shard holds exactly the samples that the dataset now puts there."""
    return {entry.key for entry in sidecar.entries} == set(shard.samples.keys)


def known_keys(directory: Path, layout: Layout) -> tuple[list[str], set[str]]:
    """Names of the shards that are not finished, and the keys of all samples, as far as anything names them.

    Sidecars of finished shards and the layout name samples, quarantined ones too. Every sidecar is read once.
    """
    missing, keys = [], set(layout.added_keys)
    for name, found in zip(layout.shard_names, map_sidecars(keys_of, directory, layout), strict=True):
        if found is None:
            missing.append(name)
        else:
            keys.update(found)
    return missing, keys


def samples_changed(directory: Path, layout: Layout, keys: Iterable[str]) -> InputError:
    """The error for a dataset that lost or gained samples; names the first ones if they can be told.

    Args:
        directory: Directory of the cache.
        layout: Layout of the cache.
        keys: Keys of all samples that the dataset has now.
    """
    now, before = set(keys), known_keys(directory, layout)[1]
    total = sum(layout.num_samples.values())
    if gone := sorted(before - now):
        return dataset_changed(directory, [f"sample {key} is no longer in the dataset" for key in gone])
    if len(before) == total and (new := sorted(now - before)):
        remedy = "`masp cache extend` adds new images to a finished cache"
        return dataset_changed(directory, [f"sample {key} is new in the dataset" for key in new], remedy)
    return dataset_changed(directory, [f"the dataset has {len(now):,} images, {total:,} when the cache was begun"])


def source_changed(image: Location, source: Source) -> bool:
    """Whether an image is another than the one that was read, or can be read where it could not.

    Size and modification time decide; where only the time differs, the content does.

    Raises:
        InputError: The file system gives no answer.
    """
    try:
        if source.sha256 is None:  # not a byte of it could be read
            read_image_file(image)
            return True
        status = image_status(image)
        if status.num_bytes not in (None, source.bytes):
            return True
        return status.mtime_ns != source.mtime_ns and digest_image(image) != source.sha256
    except UnreadableImage:
        return False
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return True
    except OSError as error:
        raise InputError(f"{image} cannot be read: {reason(error)}; run the same command again later") from None


_NO_QUARANTINE = b'\n "quarantined": []'
_QUARANTINE = b'\n "quarantined": [\n'
_QUARANTINED_KEY = re.compile(rb'\n   "key": ')
_HEAD_BYTES = 4096


def estimate_quarantined(directory: Path, names: Iterable[str]) -> int:
    """About how many images of some shards are in quarantine, from the beginning of their sidecars.

    Quarantined images come first in a sidecar and are few. Nothing is checked: this only says whether counting is worth
    the time that reading whole sidecars takes.

    Args:
        directory: Directory of the cache.
        names: Names of shards; those without a sidecar count as none.

    Raises:
        InputError: A sidecar may not be read.
    """
    count = 0
    for name in names:
        path = sidecar_path(directory, name)
        try:
            with open_binary(path, max_bytes=MAX_SIDECAR_BYTES) as file:
                text = file.read(_HEAD_BYTES)
                if _NO_QUARANTINE in text:
                    continue
                while b"\n ]," not in text and (more := file.read(len(text))):
                    text += more
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(f"cache.dir: {path} cannot be read: {reason(error)}") from None
        listed = text.partition(_QUARANTINE)[2].partition(b"\n ],")[0]
        count += len(_QUARANTINED_KEY.findall(b"\n" + listed))
    return count


class BadImages:
    """Counts images in quarantine and ends the job when they are too many, whatever the remaining ones are like."""

    def __init__(self, directory: Path, total: int, limit: float):
        """Nothing counted yet, of `total` images in the dataset; `limit` is `extract.max_bad_fraction`."""
        self.directory, self.total, self.limit, self.count = directory, total, limit, 0

    def allows(self, count: int) -> bool:
        """Whether that many more would still be few enough."""
        return self.count + count <= self.limit * self.total

    def add(self, count: int) -> None:
        """Count more.

        Raises:
            DataError: More than `extract.max_bad_fraction` of all images.
        """
        if not self.allows(count):
            self.count += count
            raise DataError(
                f"{self.count} of {self.total} images cannot be read, more than extract.max_bad_fraction = {self.limit}"
                f" allows; {self.directory / QUARANTINE} names them; finished shards are kept: repair the images, or"
                " allow more, and run the same command again"
            )
        self.count += count
