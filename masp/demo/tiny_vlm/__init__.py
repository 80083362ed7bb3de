"""The demo world: drawn pictures with a known best possible accuracy, and a tiny VLM that can see them."""

from pathlib import Path

VLM_DIR = Path(__file__).parent / "weights"
"""The tiny VLM's folder, as `vlm.path` takes it."""
