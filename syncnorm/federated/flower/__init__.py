"""Flower: its strategies with batch norm done right, and its simulation with all clients in one process."""

import os

# Flower reads this on import, and reports each simulation to its authors unless it is 0.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
