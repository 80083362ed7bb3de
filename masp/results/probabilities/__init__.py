"""A model's probabilities: corrected by a temperature; compared with the distributions of the data."""
