"""An MLP of independent-component layers: norm and dropout before the weights instead of after them."""

from typing import Literal, get_args

from torch import Tensor, nn

from syncnorm.errors import unknown
from syncnorm.models.factory import NormFactory, plain_batch_norm

Order = Literal["ic", "after"]


class IndependentComponentMLP(nn.Module):
    """An MLP of `depth` blocks of two linear layers, with norm and dropout before each or after each.

    The input is flattened and mapped to `width` values, h = ReLU(W x). With norm N and dropout D, a block computes
    (adding its input h only with `skip`)

        order "ic":     h <- ReLU(W2 D(N(ReLU(W1 D(N(h))))) + h)
        order "after":  h <- D(ReLU(N(W2 D(ReLU(N(W1 h)))) + h))

    A linear classifier follows. In "ic" it has its own norm and dropout before it; in "after" the first layer's
    output is D(ReLU(N(W x))). So both orders have 2 `depth` + 1 norms, one between any two linear layers, and the
    same parameters. They differ in whether the norm is after the ReLU or before it, and, with `skip`, in whether the
    skip connection goes through dropout.

    Input (N, C, ...) with `pixels` values per sample, output (N, classes) logits. There is no norm or dropout before
    the first linear layer.

    Source: Kim (arXiv 2108.08186), with the layer of Chen et al. (arXiv 1905.05928).

    Raises:
        UserError: an unknown `order`.
        ValueError: a `dropout` outside [0, 1].
    """

    def __init__(
        self,
        pixels: int,
        classes: int,
        norm: NormFactory | None = None,
        *,
        width: int = 128,
        depth: int = 2,
        dropout: float = 0.1,
        skip: bool = True,
        order: Order = "ic",
    ) -> None:
        super().__init__()
        if order not in get_args(Order):
            raise unknown("order", order, get_args(Order))
        norm = norm or plain_batch_norm(ndim=1)
        before_last: list[nn.Module] = [norm(width), nn.Dropout(dropout)] if order == "ic" else []
        after_first: list[nn.Module] = [nn.ReLU()] if order == "ic" else [norm(width), nn.ReLU(), nn.Dropout(dropout)]
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(pixels, width), *after_first)
        self.blocks = nn.Sequential(*(_Block(width, norm, dropout, skip, order) for _ in range(depth)))
        self.last = nn.Sequential(*before_last, nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.last(self.blocks(self.first(x)))
        return logits


class _Block(nn.Module):
    """Two linear layers of `width`: (N, width) to (N, width)."""

    def __init__(self, width: int, norm: NormFactory, dropout: float, skip: bool, order: Order) -> None:
        super().__init__()
        self.skip = skip
        if order == "ic":
            layers = [
                *(norm(width), nn.Dropout(dropout), nn.Linear(width, width), nn.ReLU()),
                *(norm(width), nn.Dropout(dropout), nn.Linear(width, width)),
            ]
        else:
            layers = [
                *(nn.Linear(width, width), norm(width), nn.ReLU(), nn.Dropout(dropout)),
                *(nn.Linear(width, width), norm(width)),
            ]
        self.layers = nn.Sequential(*layers)
        self.end = nn.Sequential(nn.ReLU(), *([nn.Dropout(dropout)] if order == "after" else []))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        out: Tensor = self.end(y + x if self.skip else y)
        return out
