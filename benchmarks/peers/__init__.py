"""The contenders of `benchmarks/federated.py`, each in a process of its own, on one and the same task."""
