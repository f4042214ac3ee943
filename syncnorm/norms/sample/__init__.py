"""Norms by the statistics of each sample alone."""
