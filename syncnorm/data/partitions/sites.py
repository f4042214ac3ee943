"""Clients whose data lie at as many places: each process has those of one site, or none.

A site writes one function, in a file of its own:

    def load(site, sites):
        return (x, y), (test_x, test_y)

It gets the site's number, from 0, and the number of sites, and returns training and test samples: numbers with a
fraction, (N, ...), as the model gets them, and labels, (N,), from 0. A run names the data "sites" and says what every
site's samples have in common:

    Data("sites", options={"shape": (1, 8, 8), "classes": 10})

With `path`, which is such a file, a simulation loads the data of all sites: load(0, 3), load(1, 3), load(2, 3).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import module_from_spec, spec_from_file_location
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syncnorm.config import Clients, Data
from syncnorm.data.domain_pool import Pool
from syncnorm.data.partitions.client_partition import DomainAssignment, Indices
from syncnorm.data.partitions.federated_dataset import NATURAL, FederatedDataset
from syncnorm.data.raw import Groups
from syncnorm.errors import UserError, unknown

SITES = "sites"
"""The name of these data in a run."""
FUNCTION = "load"
OPTIONS = ("shape", "classes")


@dataclass(frozen=True)
class Site:
    """The site that a process is: its number, and the file with its function."""

    number: int
    file: str


@dataclass
class SitePartition:
    """A `Partition`: each client has the samples of its own site; no others are here."""

    places: dict[int, range]
    options: dict[str, Any]
    draws: dict[str, int]

    def samples(self, client: int) -> Indices:
        """Return the client's samples; none if they are elsewhere."""
        own = self.places.get(client, range(0))
        return np.arange(own.start, own.stop)

    def smallest(self) -> int:
        """Return the number of samples of the smallest client whose samples are here."""
        return min(map(len, self.places.values()), default=0)


def make_sites(
    data: Data, world: Clients, device: torch.device, dtype: torch.dtype, seed: int, task: str, site: Site | None
) -> FederatedDataset:
    """Return the data of one site, of all (`data.path`), or of none.

    Raises:
        UserError: settings that deal samples, which sites do themselves; a function that is missing, fails, or
            returns something else; samples that are not as the run says.
    """
    shape, classes = _agreed(data, world, task)
    count, file = world.count, site.file if site else data.path
    if site and not 0 <= site.number < count:
        raise UserError(f"this is site {site.number}, and the run has {count} of them, from 0: set world.count.")
    here = [site.number] if site else list(range(count)) if file else []
    loaded = {number: load_site(file, number, count, shape, classes) for number in here}
    ends = list(accumulate((len(loaded[number][1]) for number in here), initial=0))
    tests = [len(loaded[number][3]) for number in here]

    def together(part: int, empty: Tensor) -> Tensor:
        return torch.cat([empty, *(loaded[number][part] for number in here)]).to(device)

    none, no_labels = torch.zeros(0, *shape, dtype=dtype), torch.zeros(0, dtype=torch.int64)
    x, test_x = (together(part, none).to(dtype) for part in (0, 2))
    y, test_y = (together(part, no_labels) for part in (1, 3))
    whose = np.repeat(here, np.diff(ends)).astype(np.int64), np.repeat(here, tests).astype(np.int64)
    pool = Pool(
        names=(SITES,),
        x=x,
        y=y,
        test_x=test_x,
        test_y=test_y,
        starts=(0, len(y)),
        test_starts=(0, len(test_y)),
        class_names=tuple(map(str, range(classes))),
        scale="fixed",
        natural=(Groups(tuple(f"site {number}" for number in range(count)), *whose),),
        domain=(None,),
        changes=("each site's own data",),
        validation_x=none,
        validation_y=no_labels,
        validation_starts=(0, 0),
        origin=None,
        train_origin=None,
        measured=False,
        task=task,
    )
    places = {number: range(*pair) for number, pair in zip(here, pairwise(ends), strict=True)}
    own = replace(world, skew=NATURAL)  # a client has its own test samples
    parts = SitePartition(places, {}, {})
    assignment = DomainAssignment(count, 0, 1, ())
    return FederatedDataset(own, seed, pool, assignment, parts, pool.x, None, data, here=frozenset(here))


def _agreed(data: Data, world: Clients, task: str) -> tuple[tuple[int, ...], int]:
    """Return the shape of a sample and the number of classes, which the run says."""
    for option in data.options:
        if option not in OPTIONS:
            raise unknown(f"option of the data set '{SITES}'", option, OPTIONS)
    shape, classes = (data.options.get(name) for name in OPTIONS)
    if not isinstance(shape, list | tuple) or not shape or not all(_is_count(size) for size in shape):
        raise UserError(
            f"data.options.shape is {shape!r}: write the shape of one sample at every site, such as [1, 28, 28]."
        )
    if not _is_count(classes):
        raise UserError(f"data.options.classes is {classes!r}: write the number of classes at all sites together.")
    fresh, alike = Clients(), Data(SITES, path=data.path, options=data.options)
    for name in ("skew", "alpha", "skew_options", "noise", "equal_size", "held_out", "domains", "unseen"):
        if (value := getattr(world, name)) != getattr(fresh, name):
            raise UserError(f"world.{name} is {value}, and sites have their data already: leave it out.")
    if data != alike:
        raise UserError(
            "each site splits and cuts its own data: of data, give name, path and options alone for 'sites'."
        )
    if task != "classification":
        raise UserError(f"the task is {task}, and the data of sites have classes: leave task out.")
    if world.weighting == "samples" and (world.unsampled != "initial" or world.global_norm != "none"):
        raise UserError(
            "the server knows no site's number of samples after training, which unsampled and global_norm weigh by: "
            "leave them out, or set world.weighting to uniform."
        )
    return tuple(int(size) for size in shape), int(classes)  # type: ignore[arg-type]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def function_of(file: str) -> Callable[[int, int], Any]:
    """Return the function of a site's file.

    Raises:
        UserError: no such file, one that cannot be imported, or one without the function.
    """
    path = Path(file).expanduser()
    spec = spec_from_file_location("syncnorm_site", path) if path.suffix == ".py" else None
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file: write one with a function {FUNCTION}(site, sites).")
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} cannot be imported: {type(error).__name__}: {error}.") from error
    function: Any = getattr(module, FUNCTION, None)
    if not callable(function):
        raise UserError(f"{path} has no function {FUNCTION}(site, sites), which returns this site's samples.")
    return function  # type: ignore[no-any-return]


def load_site(
    file: str, number: int, count: int, shape: tuple[int, ...] | None = None, classes: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a site's training samples and labels, and test samples and labels.

    `shape` of a sample and number of `classes` are what the run says; None takes any.

    Raises:
        UserError: a function that fails, or returns something else.
    """
    function, where = function_of(file), f"{FUNCTION}({number}, {count}) of {file}"
    try:
        given = function(number, count)
    except Exception as error:
        raise UserError(f"{where} failed: {type(error).__name__}: {error}.") from error
    try:
        (x, y), (test_x, test_y) = given
        found: list[Tensor] = [torch.as_tensor(part) for part in (x, y, test_x, test_y)]
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} returned something else than (x, y), (test_x, test_y): {error}.") from error
    wanted = found[0].shape[1:] if shape is None else shape
    for what, x, y in (("training", found[0], found[1]), ("test", found[2], found[3])):
        _check_samples(f"{where}: {what}", x, y, tuple(wanted))
        if y.is_floating_point() or y.dim() != 1 or y.lt(0).any() or (classes is not None and y.ge(classes).any()):
            last = "" if classes is None else f" to {classes - 1}"
            raise UserError(f"{where}: {what} labels must be whole numbers from 0{last}, one a sample.")
    return found[0], found[1].long(), found[2], found[3].long()


def _check_samples(where: str, x: Tensor, y: Tensor, shape: tuple[int, ...]) -> None:
    if x.dim() < 2 or not y.numel() or len(x) != len(y):
        raise UserError(
            f"{where} samples of shape {tuple(x.shape)} with {y.numel()} labels: give at least one of each, as many "
            "of both, and samples (N, ...)."
        )
    if tuple(x.shape[1:]) != shape:
        raise UserError(f"{where} samples of shape {tuple(x.shape[1:])}, and the others, or the run, have {shape}.")
    if not x.is_floating_point():
        raise UserError(f"{where} samples of {x.dtype}: scale them, and return float32.")
    if not x.isfinite().all():
        raise UserError(f"{where} samples with NaN or infinite values: fill them in, or leave them out.")
