"""What a cache holds, from what it was made and how large it is, as text."""

from __future__ import annotations

from pathlib import Path

from masp.cache.shard_state import read_manifest


def describe(folder: str | Path) -> str:
    """The text of `masp cache info`, from the manifest alone.

    Raises:
        InputError: no cache, or an unfinished one. DataError: damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    model, machine = manifest["fingerprint"]["model"], manifest["fingerprint"]["machine"]
    num_bytes = sum(shard["bytes"] for shard in manifest["shards"])
    num_samples = sum(split["num_samples"] for split in manifest["splits"].values())
    mean = sum(split["num_tokens"] for split in manifest["splits"].values()) / num_samples
    limits = f"{model['min_pixels']} to {model['max_pixels']} pixels, longer side at most {model['max_side']}"
    facts = [
        ("cache", str(folder)),
        ("dataset", f"{manifest['dataset']['name']} (digest {manifest['dataset']['digest'][:12]})"),
        ("categories", ", ".join(manifest["categories"])),
        ("aspects", ", ".join(manifest["aspects"]) or "none"),
        ("features", f"[T, {manifest['hidden_size']}] in {manifest['dtype']}, on average T = {mean:.1f}"),
        ("size", f"{num_bytes / 1e9:.3f} GB in {len(manifest['shards'])} shards"),
        *_generations(manifest),
        ("quarantine", f"{manifest['quarantine']['num_samples']} images"),
        ("vlm", f"{model['config.model_type']}, weights {model['weights'][:12]}, attention {model['attention']}"),
        ("images", limits),
        ("machine", ", ".join(f"{name} {value}" for name, value in machine.items())),
        ("fingerprint", manifest["fingerprint"]["digest"][:12]),
    ]
    lines = [f"{name:<12} {value}" for name, value in facts]
    lines += ["", f"{'split':<12} {'images':>9} {'shards':>7} {'tokens':>12} {'quarantined':>12}"]
    for name, split in manifest["splits"].items():
        lines.append(
            f"{name:<12} {split['num_samples']:>9,} {split['num_shards']:>7} {split['num_tokens']:>12,} "
            f"{split['num_quarantined']:>12}"
        )
    for title, names in (("categories", manifest["categories"]), ("aspects", manifest["aspects"])):
        if names:
            width = max(len(name) for name in names)
            heads = "".join(f" {split:>9}" for split in manifest["splits"])
            lines += ["", f"{title:<{width}}{heads}"]
            for name in names:
                counts = "".join(f" {split[title].get(name, 0):>9,}" for split in manifest["splits"].values())
                lines.append(f"{name:<{width}}{counts}")
    return "\n".join(lines)


def _generations(manifest: dict) -> list[tuple[str, str]]:
    """A line for each generation that was added."""
    return [
        ("extended", f"{len(g['keys']):,} images added in generation {number}, {len(g['shards'])} shards")
        for number, g in enumerate(manifest["generations"][1:], 1)
    ]
