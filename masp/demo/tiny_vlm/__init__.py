"""The tiny VLM of the demo: its weights, and the code that trained them."""

from pathlib import Path

VLM_DIR = Path(__file__).parent / "weights"
"""Directory of the tiny VLM, a valid `vlm.path`."""
