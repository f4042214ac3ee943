"""Carrying a study out: workers, torchrun launches, the results folder, progress, tracking."""
