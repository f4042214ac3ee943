"""A plain loop of training at a constant rate, step by step, for claims about the training itself."""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.claim_networks import BASE
from syncnorm.config import Optim
from syncnorm.data import Dataset, load_config
from syncnorm.models import make_model
from syncnorm.seeds import derive
from syncnorm.training.learner import make_optimizer

BATCH = 32
NORMS = ("none", "bn")


@lru_cache(maxsize=1)
def data(seed: int) -> Dataset:
    """Return the study's data, split by the seed."""
    return load_config(BASE.data, seed=seed)


def network(norm: str, seed: int) -> nn.Module:
    """Return the study's network with initial weights of the seed: without and with norms the same linear layers."""
    torch.manual_seed(derive("claims", seed, "init"))
    return make_model(BASE.model, data(seed).shape, data(seed).classes, norm)


def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of training samples without end, in an order of the seed."""
    split = data(seed)
    generator = torch.Generator().manual_seed(derive("claims", seed, "order"))
    while True:
        order = torch.randperm(len(split.train_y), generator=generator)
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            yield split.train_x[chosen], split.train_y[chosen]


def training(model: nn.Module, seed: int, rate: float) -> Iterator[float]:
    """Yield the loss of one step of training after the other: SGD of the study, at a constant rate."""
    optim = Optim(lr=rate, momentum=BASE.optim.momentum, weight_decay=BASE.optim.weight_decay)
    optimizer = make_optimizer(model.named_parameters(), optim)
    model.train()
    for x, y in batches(seed):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        yield float(loss.detach())


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the accuracy in evaluation mode; the model's mode stays what it was."""
    was = model.training
    right = (model.eval()(x).argmax(1) == y).float().mean()
    model.train(was)
    return float(right)
