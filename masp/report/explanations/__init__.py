"""Explanations on the report and as files for other programs."""
