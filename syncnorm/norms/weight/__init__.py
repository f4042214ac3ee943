"""Norms of weights instead of activations."""
