"""What a cache holds, from what it was made and how large it is, as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from masp.cache.annotations.manifest import Origin, StoredAspect, read_stored
from masp.cache.findings import present_findings
from masp.cache.fingerprint import transparency_of
from masp.cache.manifest import Manifest, read_manifest
from masp.data.findings import finding_lines
from masp.errors import one_line


def describe(directory: str | Path) -> str:
    """The text of `masp cache info`, from the manifest and what is recorded of the dataset.

    Raises:
        InputError: No cache, or an unfinished one.
        DataError: Damaged.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    model, splits, stored = manifest.fingerprint.model, manifest.splits, read_stored(directory)
    mean = manifest.num_tokens / manifest.num_samples
    per_image = f", {manifest.num_bytes / manifest.num_samples / 1e6:.3f} MB per image"
    limits = f"{model['min_pixels']} to {model['max_pixels']} pixels, longer side at most {model['max_side']}"
    transparent = "on white" if transparency_of(model) == "white" else "dropped"
    facts = [
        ("cache", str(directory)),
        ("dataset", f"{manifest.dataset.name} (digest {manifest.dataset.digest[:12]})"),
        ("categories", ", ".join(manifest.categories)),
        ("aspects", ", ".join(sorted({*manifest.aspects, *stored})) or "none"),
        ("features", f"[T, {manifest.hidden_size}] in {manifest.dtype}, on average T = {mean:.1f}"),
        *_deep_maps(manifest),
        *_distributions(manifest),
        ("size", f"{manifest.num_bytes / 1e9:.3f} GB in {len(manifest.shards)} shards{per_image}"),
        *_generations(manifest),
        ("quarantine", f"{manifest.quarantine.num_samples} images"),
        ("vlm", f"{model['config.model_type']}, weights {model['weights'][:12]}, attention {model['attention']}"),
        ("images", f"{limits}, transparency {transparent}"),
        ("machine", ", ".join(f"{name} {value}" for name, value in manifest.fingerprint.machine.fields.items())),
        ("fingerprint", manifest.fingerprint.digest[:12]),
    ]
    lines = [f"{name:<12} {value}" for name, value in facts]
    lines += ["", f"{'split':<12} {'images':>9} {'shards':>7} {'tokens':>12} {'quarantined':>12}"]
    for name, split in splits.items():
        lines.append(
            f"{name:<12} {split.num_samples:>9,} {split.num_shards:>7} {split.num_tokens:>12,} "
            f"{split.num_quarantined:>12}"
        )
    tables = (
        ("categories", manifest.categories, [split.categories for split in splits.values()]),
        ("aspects", manifest.aspects, [split.aspects for split in splits.values()]),
    )
    for title, names, counts in tables:
        if names:
            width = max(len(name) for name in names)
            heads = "".join(f" {split:>9}" for split in splits)
            lines += ["", f"{title:<{width}}{heads}"]
            lines += [f"{name:<{width}}" + "".join(f" {found.get(name, 0):>9,}" for found in counts) for name in names]
    lines += _who_answered(manifest, stored)
    record = present_findings(directory, manifest)
    if record is None:
        lines += ["", "findings about the dataset were not recorded; `masp extract` again records them"]
    else:
        lines += ["", *finding_lines(record.findings)]
        if not record.near_duplicates:
            lines.append(
                "images that look nearly alike were not searched for; `masp extract --near-duplicates` does so"
            )
    return "\n".join(map(one_line, lines))


def _who_answered(manifest: Manifest, stored: Mapping[str, StoredAspect]) -> list[str]:
    """A table of who gave the answers to each aspect; nothing where `masp annotate` stored none.

    An image counts for one of them: `masp annotate` leaves out what people annotated.
    """
    if not stored:
        return []
    names = sorted({*manifest.aspects, *stored})
    width = max(len("answers"), *map(len, names))
    heads = ("people", "VLM", "pixels", "absent")
    lines = ["", f"{'answers':<{width}}" + "".join(f" {head:>9}" for head in heads) + "  file"]
    for name in names:
        found = stored.get(name)
        given: Mapping[Origin, int] = found.num_answers if found else {}
        people = sum(split.aspects.get(name, 0) for split in manifest.splits.values()) + given.get("dataset", 0)
        counts = (people, given.get("vlm", 0), given.get("pixels", 0), found.num_absent if found else 0)
        file = f"  {found.sha256[:12]}" if found else ""
        lines.append(f"{name:<{width}}" + "".join(f" {count:>9,}" for count in counts) + file)
    return lines


def _deep_maps(manifest: Manifest) -> list[tuple[str, str]]:
    """A line for the features that DeepStack adds inside the language model."""
    if manifest.num_deep_maps is None:
        return []
    return [("deep maps", f"[{manifest.num_deep_maps}, T, {manifest.hidden_size}] per image, for DeepStack")]


def _distributions(manifest: Manifest) -> list[tuple[str, str]]:
    """A line for distributions over the categories, which few datasets have."""
    count = sum(split.num_distributions or 0 for split in manifest.splits.values())
    return [("votes", f"{count:,} of {manifest.num_samples:,} images have a distribution")] if count else []


def _generations(manifest: Manifest) -> list[tuple[str, str]]:
    """A line for each generation that was added."""
    return [
        ("extended", f"{len(g.keys or ()):,} images added in generation {number}, {len(g.shards)} shards")
        for number, g in enumerate(manifest.generations[1:], 1)
    ]
