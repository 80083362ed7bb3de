"""Results: what has been scored, and which numbers follow? Does not import torch."""
