"""Partitions of data sets among ranks and clients."""
