"""Copies of a model that run, watched: which norms run, on what, and what they leave behind."""
