"""Explanations of a split: which images, what is recorded of each, and what is computed from it."""
