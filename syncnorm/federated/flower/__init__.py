"""Flower: its strategies with batch norm done right, and its simulation with all clients in one process."""
