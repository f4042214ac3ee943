"""What a command prints of a results folder when it has ended."""

import sys
from pathlib import Path

from syncnorm.study.rows import read


def show(directory: Path) -> int:
    """Print what a results folder holds; return the exit code that its failed runs mean."""
    from syncnorm.study.report.console import layers_found, main_table  # scipy: not a cost of starting

    results = read(directory)
    if table := main_table(results):
        print(f"\n{table}\n")
    if layers := layers_found(results):
        print(layers)
    print(f"{directory / 'report.html'}\n{directory / 'runs.jsonl'}", flush=True)
    failed = results.failed
    if failed:
        of = f"{len(failed)} of {len(results.about.runs)} runs failed"
        print(f"{of}, the first with: {failed[0]['error']}", file=sys.stderr)
    return 1 if failed else 0
