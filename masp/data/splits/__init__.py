"""Which images are of which split, and which of the training split a run learns from."""
