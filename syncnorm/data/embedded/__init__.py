"""Data that comes with the package: embedded digits and shapes, generated signals."""
