"""What is the same for all contenders: the model, every client's samples, and their order in every round.

Needs torch alone, so that a contender whose environment has no syncnorm can read it. A client's data are real digits,
its batches those that syncnorm's own plan gives, so all contenders take the same steps and end with the same model.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LR = 0.05
BATCH = 16
State = Mapping[str, Tensor]


def two_layer_cnn(
    in_channels: int, classes: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, width: int = 16
) -> nn.Module:
    """Return the network for images (N, C, 8, 8): two convolutions, each with batch norm and pooling, and logits."""
    return nn.Sequential(
        *(nn.Conv2d(in_channels, width, 3, padding=1), norm(width), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 2 * width, 3, padding=1), norm(2 * width), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(8 * width, classes)),
    )


class Residual(nn.Module):
    """Two convolutions, each with batch norm, around which the input goes: strided and with zero channels added."""

    def __init__(self, inputs: int, outputs: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stride, self.more = outputs // inputs, outputs - inputs
        self.layers = nn.Sequential(
            *(nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False), norm(outputs), nn.ReLU()),
            *(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), norm(outputs)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output: (N, C, H, W), or (N, 2C, H/2, W/2)."""
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return F.relu(self.layers(x) + shortcut)


def resnet20(in_channels: int, classes: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    """Return the network of He et al. for CIFAR-10 (arXiv 1512.03385, section 4.2), 0.27 million parameters."""
    widths = [16] * 4 + [32] * 3 + [64] * 3
    blocks = [Residual(before, after, norm) for before, after in pairwise(widths)]
    first = (nn.Conv2d(in_channels, 16, 3, padding=1, bias=False), norm(16), nn.ReLU())
    return nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {"two_layer_cnn": two_layer_cnn, "resnet20": resnet20}


@dataclass(frozen=True)
class Task:
    """Images x (N, C, H, W) with labels y (N,), the server's test images, and who trains on what when."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    batches: list[list[list[Tensor]]]
    """By round, client and step: indices into x."""
    state: dict[str, Tensor]
    """The first model."""
    network: str = "two_layer_cnn"
    """A key of `NETWORKS`."""

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return len(self.batches)

    @property
    def clients(self) -> int:
        """Number of clients, all of which train in every round."""
        return len(self.batches[0])

    def samples(self, client: int) -> int:
        """Return how many samples a client has."""
        return sum(len(batch) for batch in self.batches[0][client])

    def model(self, state: State) -> nn.Module:
        """Return a model with these entries."""
        model = NETWORKS[self.network](self.x.shape[1], 10)
        model.load_state_dict(dict(state))
        return model

    def train(self, model: nn.Module, round_: int, client: int) -> float:
        """Train a client's model for its local epoch, and return the mean loss of its steps."""
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        model.train()
        losses = []
        for index in self.batches[round_][client]:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(self.x[index]), self.y[index])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
        return sum(losses) / len(losses)

    @torch.no_grad()
    def accuracy(self, state: State) -> float:
        """Return a model's accuracy on the server's test images."""
        logits = self.model(state).eval()(self.test_x)
        return float((logits.argmax(1) == self.test_y).double().mean())

    def save(self, path: Path) -> None:
        """Write the task to a file."""
        torch.save(asdict(self), path)


def load(path: Path) -> Task:
    """Read a task."""
    return Task(**torch.load(path, weights_only=True))


def farthest(one: State, other: State) -> float:
    """Return the largest difference between two models' parameters, in units of the largest parameter."""
    names = [name for name in one if "running" not in name and "tracked" not in name]
    largest = max(one[name].abs().max().item() for name in names)
    return max((one[name] - other[name]).abs().max().item() for name in names) / largest
