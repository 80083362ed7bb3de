"""Features without a cache: which images there are, and what training reads of each in an epoch."""
