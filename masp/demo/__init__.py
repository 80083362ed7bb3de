"""The demo: a small drawn world, a tiny VLM, and the whole pipeline on them."""
