"""Operations that run a model eagerly leave the compiler as they found it."""

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
