"""Norms by the statistics of a batch, of several, or of many before it."""
