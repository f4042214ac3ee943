"""The graph that autograd records in a forward pass, read backward: what made a tensor, and who uses it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

Node = Any
"""A node of autograd's graph (`Tensor.grad_fn`)."""

VIEWS = (
    "ViewBackward",
    "UnsafeViewBackward",
    "ReshapeAliasBackward",
    "TransposeBackward",
    "PermuteBackward",
    "TBackward",
    "UnsqueezeBackward",
    "SqueezeBackward",
    "CloneBackward",
    "AliasBackward",
    "ToCopyBackward",
)
"""Operations that change no value."""
SUMS = ("AddBackward", "SubBackward")
ACTIVATIONS = (
    "ReluBackward",
    "HardtanhBackward",
    "LeakyReluBackward",
    "PreluKernelBackward",
    "EluBackward",
    "SiluBackward",
    "GeluBackward",
    "MishBackward",
    "SoftplusBackward",
    "HardswishBackward",
    "HardsigmoidBackward",
    "SigmoidBackward",
    "TanhBackward",
    "SoftmaxBackward",
)
"""Operations that are not linear."""


def is_a(node: Node, *names: str) -> bool:
    """Return whether a node is one of these operations, whatever number follows its name."""
    return bool(node is not None and node.name().rstrip("0123456789").startswith(names))


class Graph:
    """All operations that lead to `ends`, and for each of them the operations that use its result."""

    def __init__(self, ends: list[Node]) -> None:
        self.users: dict[Node, list[Node]] = defaultdict(list)
        self.nodes: list[Node] = []
        seen = set(ends)
        waiting = list(seen)
        while waiting:
            node = waiting.pop()
            self.nodes.append(node)
            for before, _ in node.next_functions:
                if before is not None:
                    self.users[before].append(node)
                    if before not in seen:
                        seen.add(before)
                        waiting.append(before)

    def origin(self, node: Node, stop: Any = ()) -> Node:
        """Return the operation that made the values of `node`'s result: views are passed over, up to `stop`."""
        while node is not None and node not in stop and is_a(node, *VIEWS) and node.next_functions:
            node = node.next_functions[0][0]
        return node

    def readers(self, node: Node) -> list[Node]:
        """Return the operations that use the values of `node`'s result, through views."""
        found: list[Node] = []
        for user in self.users.get(node, []):
            found += self.readers(user) if is_a(user, *VIEWS) else [user]
        return found

    def between(self, start: Node, goal: Node) -> list[Node]:
        """Return the operations on the ways from `start` to `goal`, with `goal`; none if there is no way."""
        after, waiting = {start}, [start]
        while waiting:
            for user in self.users.get(waiting.pop(), []):
                if user not in after:
                    after.add(user)
                    waiting.append(user)
        if goal is start or goal not in after:
            return []
        found, waiting = {goal}, [goal]
        while waiting:
            for before, _ in waiting.pop().next_functions:
                if before in after and before is not start and before not in found:
                    found.add(before)
                    waiting.append(before)
        return list(found)

    def reaches(self, start: Node, goal: Node) -> bool:
        """Return whether the result of `start` goes into `goal`."""
        seen, waiting = {start}, [start]
        while waiting:
            node = waiting.pop()
            if node is goal:
                return True
            for user in self.users.get(node, []):
                if user not in seen:
                    seen.add(user)
                    waiting.append(user)
        return False
