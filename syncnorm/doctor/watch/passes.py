"""Forward passes of a copy, with the moments of what its batch norms get."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from syncnorm.doctor.watch.inputs import Inputs
from syncnorm.doctor.watch.quiet import running
from syncnorm.moments import Moments


def channel_moments(twin: nn.Module, inputs: Inputs, names: Sequence[str]) -> dict[str, Moments]:
    """Run `twin`, which is a copy, and return the moments of each channel of the inputs of these layers, by name.

    A layer that runs several times has those of all its inputs; one that does not run is left out.
    """
    found: dict[str, Moments] = {}

    def noting(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if args and isinstance(args[0], Tensor) and args[0].dim() > 1:
                x = args[0].detach()
                part = Moments.of(x, (0, *range(2, x.dim())))
                found[name] = found[name].merge(part) if name in found else part

        return see

    for name in names:
        twin.get_submodule(name).register_forward_pre_hook(noting(name))
    with running(twin, inputs):
        inputs.call(twin)
    return found
