"""Ledgers of millions of records: read piece by piece; whose slices are whose; what is recorded; the merged table."""
