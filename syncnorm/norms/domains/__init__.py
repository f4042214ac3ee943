"""Norms for samples of several domains, and of one that training has not seen."""
