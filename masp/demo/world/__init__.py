"""The demo world: what its images show, and which emotion they evoke."""
