"""A 1-D CNN for signals: activity, biosignals, sound."""

from itertools import pairwise

from torch import Tensor, nn

from syncnorm.models.factory import NormFactory, plain_batch_norm


class SignalCNN(nn.Module):
    """`depth` convolutions over time of `width` channels, a norm after each, a linear classifier.

    Kernels have 5 samples; each convolution except the first halves the length. The result is averaged over time, so
    any length is allowed. Convolutions have a bias, so that the network also works with the norm "none".

    Input (N, C, L), output (N, classes) logits.

    Raises:
        ValueError: a `depth` below 1.
    """

    def __init__(
        self, in_channels: int, classes: int, norm: NormFactory | None = None, *, width: int = 32, depth: int = 3
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth is {depth}: it must be at least 1.")
        norm = norm or plain_batch_norm(ndim=1)
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise([in_channels, *[width] * depth])):
            layers += [nn.Conv1d(before, after, 5, stride=min(index + 1, 2), padding=2), norm(after), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.classifier(self.features(x).mean(2))
        return logits
