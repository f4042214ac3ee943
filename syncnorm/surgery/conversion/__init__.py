"""Swap a model's norms for others, and back; say what would be swapped."""
