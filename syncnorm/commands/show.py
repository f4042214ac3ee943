"""The summary of a results folder that a command prints at its end."""

import sys
from pathlib import Path

from syncnorm.study.rows import Results, read


def show(directory: Path, results: Results | None = None) -> int:
    """Print a summary of a results folder, whose content may be at hand; return the exit code: 1 if runs failed."""
    # Imports scipy, which is slow to start.
    from syncnorm.study.report.console import choices, layers_found, main_table

    results = results or read(directory)
    if table := main_table(results):
        print(f"\n{table}\n")
    if chosen := choices(results):
        print(f"{chosen}\n")
    if layers := layers_found(results):
        print(layers)
    print(f"{directory / 'report.html'}\n{directory / 'runs.jsonl'}", flush=True)
    failed = results.failed
    if failed:
        of = f"{len(failed)} of {len(results.about.runs)} runs failed"
        print(f"{of}, the first with: {failed[0]['error']}", file=sys.stderr)
    return 1 if failed else 0
