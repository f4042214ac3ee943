"""Exact batch norm under gradient accumulation: statistics of a whole step, over all of its micro-batches."""
