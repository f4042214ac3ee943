"""All domains of a federated run in one pool of samples, so that a sample is an index."""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, combinations
from pathlib import Path

import torch
from torch import Tensor

from syncnorm.config import Data
from syncnorm.data.dataset import Dataset, Scale
from syncnorm.data.sources.digits import DOMAINS
from syncnorm.data.sources.har import is_har
from syncnorm.data.sources.load import load
from syncnorm.data.sources.signals import SIGNALS
from syncnorm.errors import UserError, unknown


@dataclass(frozen=True, eq=False)
class Pool:
    """Training and test samples of all domains, one domain after the other, in the order of `names`.

    `x`, `test_x`: images (N, C, H, W) or signals (N, C, L) on the device; `y`, `test_y`: int64 (N,) there.
    Domain d holds the training samples `starts[d]` to `starts[d + 1]` and the test samples `test_starts[d]` to
    `test_starts[d + 1]`. `scale` is what the samples were normalised with. Pools are shared between runs: nobody
    writes to them.
    """

    names: tuple[str, ...]
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    starts: tuple[int, ...]
    test_starts: tuple[int, ...]
    class_names: tuple[str, ...]
    scale: Scale

    def labels(self, domain: int) -> Tensor:
        """Return the training labels of a domain: int64 (N,), on the CPU."""
        return self.y[self.starts[domain] : self.starts[domain + 1]].cpu()

    def tests(self, domain: int) -> slice:
        """Return where the test samples of a domain lie."""
        return slice(self.test_starts[domain], self.test_starts[domain + 1])


@lru_cache(maxsize=2)
def load_pool(data: Data, names: tuple[str, ...], apart: bool, device: torch.device, dtype: torch.dtype) -> Pool:
    """Load the domains `names` and put them into one pool; the two pools asked for last are kept.

    With `apart`, `data.path` is a folder in which each domain lies under its name, as a folder or a parquet file,
    or the folder of the UCI HAR Dataset, whose subjects are the domains. An embedded data set that is not there is
    loaded by its name. One domain alone is normalised by its own mean and standard deviation; several share the fixed
    scale. Beside images in colour, grey ones get three equal channels.

    Raises `UserError` where a domain cannot be loaded, or two have other classes or shapes.
    """
    scale: Scale = "own" if len(names) == 1 else "fixed"
    places = [_place(data.path, name) if apart else data.path for name in names]
    sets = [
        load(
            name,
            path=place,
            size=data.size,
            train_limit=data.train_limit,
            test_limit=data.test_limit,
            augment=data.augment,
            scale=scale,
        )
        for name, place in zip(names, places, strict=True)
    ]
    if {one.shape[0] for one in sets if len(one.shape) == 3} == {1, 3}:
        sets = [_in_colour(one) for one in sets]
    for first, second in combinations(sets, 2):
        _check_alike(first, second)
    return Pool(
        names=names,
        x=_together([one.train_x for one in sets]).to(device, dtype),
        y=_together([one.train_y for one in sets]).to(device),
        test_x=_together([one.test_x for one in sets]).to(device, dtype),
        test_y=_together([one.test_y for one in sets]).to(device),
        starts=tuple(accumulate((len(one.train_y) for one in sets), initial=0)),
        test_starts=tuple(accumulate((len(one.test_y) for one in sets), initial=0)),
        class_names=sets[0].class_names,
        scale=scale,
    )


def _in_colour(data: Dataset) -> Dataset:
    """Return images of one channel as three equal ones."""
    if data.shape[0] == 3:
        return data
    return replace(data, train_x=data.train_x.expand(-1, 3, -1, -1), test_x=data.test_x.expand(-1, 3, -1, -1))


def _together(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _place(path: str, name: str) -> str:
    """Return where a domain lies: nothing for one that is loaded by its name alone."""
    if not path:
        return ""
    folder = Path(path).expanduser()
    if is_har(folder):
        return path
    for place in (folder / name, folder / f"{name}.parquet"):
        if place.exists():
            return str(place)
    if not folder.is_dir():
        raise UserError(f"data.path {folder} is no folder: give the folder in which each domain lies under its name.")
    if name in DOMAINS or name in SIGNALS:
        return ""
    found = {file.stem for file in folder.iterdir() if file.is_dir() or file.suffix == ".parquet"}
    raise unknown(f"domain in {folder}", name, found)


def _check_alike(first: Dataset, second: Dataset) -> None:
    pair = f"domains '{first.name}' and '{second.name}'"
    if first.class_names != second.class_names:
        raise UserError(
            f"{pair} have other classes ({_listed(first.class_names)}; {_listed(second.class_names)}): choose "
            "domains of one task."
        )
    if first.shape != second.shape:
        raise UserError(
            f"{pair} have samples of other shapes ({first.shape} and {second.shape}): {_mend(first, second)}."
        )


def _mend(first: Dataset, second: Dataset) -> str:
    if len(first.shape) != 3 or len(second.shape) != 3:
        return "choose domains of one kind of signal"
    same_channels = first.shape[0] == second.shape[0]
    return "set data.size" if same_channels else "choose domains that are all grey or all in colour"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:12])} and {len(names) - 12} more"
