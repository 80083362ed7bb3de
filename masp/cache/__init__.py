"""The feature cache: what the frozen encoder made of every image, computed once. See docs/cache.md."""
