"""Reports: how is one run shown? Does not import torch."""
