"""Norm layers among ranks: which they are, what they send, and what is said where they part."""
