"""Operations that run a model eagerly leave the compiler as they found it."""

import threading
from typing import Any

import torch
from torch import Tensor, fx

from syncnorm.surgery.layers.preconditions import uncompiled


def test_a_context_that_is_never_entered_changes_nothing() -> None:
    graphs: list[fx.GraphModule] = []

    def counting(graph: fx.GraphModule, examples: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    double = torch.compile(lambda x: 2 * x, backend=counting)
    torch.compiler.reset()  # the compiler is loaded
    left = uncompiled()
    double(torch.ones(2))
    assert len(graphs) == 1
    with left:
        double(torch.ones(3, 1))
    assert len(graphs) == 1
    double(torch.ones(3, 1))
    assert len(graphs) == 2


def test_threads_that_overlap_leave_it_as_it_was() -> None:
    graphs: list[fx.GraphModule] = []

    def counting(graph: fx.GraphModule, examples: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    double = torch.compile(lambda x: 2 * x, backend=counting)
    inside, first_left = threading.Barrier(2), threading.Event()

    def other() -> None:
        with uncompiled():
            inside.wait(10)
            first_left.wait(10)
            double(torch.ones(2))

    thread = threading.Thread(target=other)
    with uncompiled():
        thread.start()
        inside.wait(10)
    first_left.set()
    thread.join(10)
    assert not graphs
    double(torch.ones(2))
    assert len(graphs) == 1
