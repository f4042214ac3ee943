"""A text file of blocks, written one by one: a benchmark that is broken off goes on where it was."""

import json
from pathlib import Path

from syncnorm.files import write_file


class Blocks:
    """The file of a benchmark: a head, one block of lines a name, and an end once all are there.

    Blocks in the file are kept if its head is the same, so that all of them come from one commit, machine and set of
    versions; otherwise it starts anew. What a block counts is kept beside the file until the end is written.
    """

    def __init__(self, path: Path, head: str) -> None:
        self.path, self.head = path, head
        self.beside = path.with_suffix(".part")
        self.found: dict[str, tuple[str, list[int]]] = {}
        if self.beside.is_file():
            kept = json.loads(self.beside.read_text())
            if kept["head"] == head:
                self.found = {name: (text, counts) for name, text, counts in kept["blocks"]}
                print(f"{len(self.found)} are there already", flush=True)

    def add(self, name: str, text: str, *counts: int) -> None:
        """Write the block of a name, and what it counts."""
        print(text, flush=True)
        self.found[name] = text, list(counts)
        blocks = [[name, text, counts] for name, (text, counts) in self.found.items()]
        write_file(self.beside, json.dumps({"head": self.head, "blocks": blocks}))

    def totals(self, names: list[str]) -> list[int]:
        """Return the sums of what the blocks of these names count."""
        return [sum(column) for column in zip(*(self.found[name][1] for name in names), strict=True)]

    def end(self, names: list[str], text: str) -> None:
        """Write the file: the blocks in this order, and the end."""
        print(text)
        write_file(self.path, "\n".join([self.head, *(self.found[name][0] for name in names), text]) + "\n")
        self.beside.unlink(missing_ok=True)
