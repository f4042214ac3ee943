"""The order of test files."""

LONGEST = (
    *("test_extend.py", "test_over_ranks.py", "test_experiments.py", "test_kill.py", "test_flower_ray.py"),
    *("test_own_methods.py", "test_benchmarks.py", "test_tracking.py", "test_faults.py", "test_twins.py"),
)
"""The files that take longest and run first: no process of two that share the files has one of these at the end."""
