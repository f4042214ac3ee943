"""Fold norms into the layers before them, checked by comparing outputs."""
