"""What a configuration needs at least."""

NEEDED = ["vlm.path=model", "dataset.root=images", "cache.dir=cache"]
