"""What batch norm does exactly: no training, and nothing that varies but the network tried."""

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor, nn

from experiments.claims.claim import Claim, Region
from experiments.claims.evidence import Experiment, Setting, Values
from experiments.claims.measures import exact
from experiments.claims.network import Block
from syncnorm import fold
from syncnorm.models import make_model
from syncnorm.norms import make_norm
from syncnorm.seeds import derive
from syncnorm.surgery import batch_norms

NETWORKS = ("claims_mlp", "small_cnn", "resnet20")
SHAPE = (3, 16, 16)
IMAGES = 8


def drawn(name: str, norm: str, seed: int, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """Return a network with random affine parameters, and a random batch of images (N, C, H, W) for it."""
    torch.manual_seed(derive("claims", seed, name))
    model = make_model(name, SHAPE, 10, norm).to(dtype)
    for layer in batch_norms(model).values() if norm == "bn" else ():
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias)
    return model, torch.randn(IMAGES, *SHAPE, dtype=dtype)


def before_norms(model: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
    """Yield the layers with a bias that feed a norm: in these networks, all but the classifier."""
    layers = [one for one in model.modules() if isinstance(one, nn.Linear | nn.Conv2d)]
    yield from (layer for layer in layers[:-1] if layer.bias is not None)


def bias(seed: int, setting: Setting) -> Values:
    """Return the largest gradient of a bias before a norm, as a share of the weights', and what it changes."""
    share, change = 0.0, 0.0
    for name in ("claims_mlp", "small_cnn"):
        model, x = drawn(name, "bn", seed)
        before = model(x)
        before.square().sum().backward()
        for layer in before_norms(model):
            share = max(share, float(layer.bias.grad.abs().max() / layer.weight.grad.abs().max()))
            nn.init.normal_(layer.bias)
        change = max(change, float((model(x) - before).detach().abs().max() / before.detach().abs().max()))
    return {"gradient_share": share, "output_change": change}


def coupling(seed: int, setting: Setting) -> Values:
    """Return the gradient of a sample's output by another sample, as a share of that by itself, in both modes."""
    shares = {}
    for mode in ("train", "eval"):
        others = []
        for name in NETWORKS:
            model, x = drawn(name, "bn", seed)
            model(x)
            model.train(mode == "train")
            x.requires_grad_()
            (slope,) = torch.autograd.grad(model(x)[0].square().sum(), x)
            sizes = slope.flatten(1).norm(dim=1)
            others.append(float(sizes[1:].max() / sizes[0]))
        shares[mode] = min(others) if mode == "train" else max(others)
    return shares


def identity(seed: int, setting: Setting) -> Values:
    """Return how far a block whose last norm has weight zero is from its shortcut alone, by place of that norm."""
    far = {}
    for place in ("inside", "after_sum"):
        torch.manual_seed(derive("claims", seed, "block"))
        block = Block(64, lambda channels: make_norm("bn", channels, ndim=1), place).double()
        last = [layer for layer in block.modules() if hasattr(layer, "running_mean")][-1]
        nn.init.zeros_(last.weight)
        x = torch.randn(32, 64, dtype=torch.float64)
        with torch.no_grad():
            far[place] = float((block(x) - x.relu()).norm() / x.relu().norm())
    return far


def folding(seed: int, setting: Setting) -> Values:
    """Return how much folding changes outputs in float32, relative to the largest, and the norms that are left."""
    change, left = 0.0, 0
    for name in NETWORKS:
        model, x = drawn(name, "bn", seed, torch.float32)
        for _ in range(3):
            model(x)
        before = model.eval()(x)
        folded = fold(model)
        change = max(change, float((folded(x) - before).abs().max() / before.abs().max()))
        left += sum(isinstance(layer, nn.modules.batchnorm._NormBase) for layer in folded.modules())
    return {"change": change, "left": left}


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Return the bytes of activations that a forward keeps for backward: storages, without parameters and input."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (x, *model.parameters(), *model.buffers())}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(x)
    del output
    return sum(size for size, _ in kept.values())


def memory(seed: int, setting: Setting) -> Values:
    """Return the bytes kept for backward with batch norm and without, by network."""
    sizes = {}
    for name, norm in product(NETWORKS, ("bn", "none")):
        model, x = drawn(name, norm, seed, torch.float32)
        sizes[f"{name} {norm}"] = saved_bytes(model, x)
    return {name: sizes[f"{name} bn"] / sizes[f"{name} none"] for name in NETWORKS} | {"bytes": sizes}


EXPERIMENTS = (
    Experiment("bias", 5, bias),
    Experiment("coupling", 5, coupling),
    Experiment("identity", 5, identity),
    Experiment("folding", 5, folding),
    Experiment("memory", 1, memory),
)


START = "the description that syncnorm started from"
SERIES = "Batch Normalization, arXiv 1502.03167"
TINY = 1e-10

CLAIMS = (
    Claim(
        "bias-gradient",
        "The bias of a layer before batch norm gets no gradient.",
        START,
        "",
        "The largest gradient of such a bias, divided by the largest of the same layer's weights: a perceptron of "
        "six layers and a CNN of three, random weights and images, float64, 5 draws.",
        "",
        Region(high=TINY),
        exact("bias", "gradient_share"),
    ),
    Claim(
        "bias-output",
        "The bias of a layer before batch norm changes no output in training.",
        START,
        "",
        "The largest change of an output where every such bias is replaced by a standard normal number, divided by "
        "the largest output: the same networks.",
        "",
        Region(high=TINY),
        exact("bias", "output_change"),
    ),
    Claim(
        "coupling-training",
        "In training, a sample's output depends on the other samples of its batch.",
        START,
        "",
        "The gradient of one sample's output by another sample, divided by that by the sample itself: the largest "
        "over the batch of 8, and the smallest of three networks, float64, 5 draws.",
        "",
        Region(low=1e-3),
        exact("coupling", "train"),
    ),
    Claim(
        "coupling-evaluation",
        "In evaluation, a sample's output depends on no other sample.",
        START,
        "",
        "The same in evaluation mode: the largest of three networks.",
        "",
        Region(low=0, high=0),
        exact("coupling", "eval"),
    ),
    Claim(
        "residual-inside",
        "Batch norm inside the branch leaves the shortcut alone: with a last weight of 0, a block is its shortcut.",
        START,
        "",
        "The distance of the block's output from relu(x), divided by the size of relu(x): a block of two layers of "
        "64, float64, 5 draws.",
        "",
        Region(high=TINY),
        exact("identity", "inside"),
    ),
    Claim(
        "residual-after",
        "Batch norm after the residual sum takes the shortcut away with it.",
        START,
        "",
        "The same, with the norm after the sum: 0 is a shortcut that is left, 1 is none.",
        "",
        Region(low=0.5),
        exact("identity", "after_sum"),
    ),
    Claim(
        "folding-output",
        "Batch norm can be folded into the layers before it, and no output changes.",
        START,
        "",
        "The largest change of an output, divided by the largest output, in float32: a perceptron, a CNN and a "
        "20-layer ResNet, 5 draws. 1e-5 is the rounding that is allowed.",
        "",
        Region(high=1e-5),
        exact("folding", "change"),
    ),
    Claim(
        "folding-layers",
        "After folding, no batch norm is left.",
        START,
        "",
        "The number of batch norms that are left in the same three networks.",
        "",
        Region(high=0),
        exact("folding", "left"),
    ),
    Claim(
        "memory",
        "Batch norm doubles the memory of activations in training.",
        START,
        "twice",
        "Bytes that the forward keeps for the backward, with batch norm divided by without, for three networks: "
        "a perceptron, a CNN and a 20-layer ResNet. Twice is taken as 1.8 to 2.2.",
        "times",
        Region(1.8, 2.2),
        exact("memory", *NETWORKS),
        mark=2.0,
    ),
)
