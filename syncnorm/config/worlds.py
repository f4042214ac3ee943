"""The worlds' configurations. The docstrings are the command line's help texts."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self, get_args

from syncnorm.errors import UserError

Engine = Literal["virtual", "torchrun"]
ClientEngine = Literal["auto", "cohort", "loop", "flower"]


class WorldConfig:
    """What the configurations of all worlds have in common: how a run in it is named, and how it is carried out."""

    kind: ClassVar[str]
    """What a row's config calls the world."""
    call: ClassVar[str]
    """The public function that trains a run in it."""
    engines: ClassVar[tuple[str, ...]] = ()
    """The names that its field `engine` may have."""
    step: ClassVar[str] = "epoch"
    """What a history counts."""

    def complete(self, config: dict[str, Any]) -> None:
        """Make a run's description (`config.describe`) the same, however the run is written."""

    def processes(self) -> int | None:
        """Return how many processes of a torchrun launch a run needs; None where one process trains it."""
        return None

    def training(self) -> Self:
        """Return this world with nothing said of the test: runs that then are the same share one training."""
        return self


@dataclass(frozen=True)
class Devices(WorldConfig):
    """The devices world: one model on `ranks` devices with `per_device_batch` samples each.

    Any two of ranks, per_device_batch and global_batch give the third.
    """

    kind: ClassVar[str] = "devices"
    call: ClassVar[str] = "syncnorm.training.fit"
    engines: ClassVar[tuple[str, ...]] = get_args(Engine)

    ranks: int | None = None
    """Number of devices."""
    per_device_batch: int | None = None
    """Samples a device sees in one step."""
    global_batch: int | None = None
    """Samples all devices see in one step."""
    skew: float = 0.0
    """Percent of the training data that is sorted by label before it is dealt to ranks (0 IID, 100 sorted)."""
    engine: Engine = "virtual"
    """virtual: all ranks in one process, exactly; torchrun: one process a rank."""
    buffers: Literal["rank0", "pooled"] = "rank0"
    """Whose running statistics of unsynchronised BN evaluate: rank 0's, as DDP does, or all ranks' pooled."""

    def complete(self, config: dict[str, Any]) -> None:
        """Fill in whichever of ranks, per_device_batch and global_batch was left out."""
        ranks, local = layout(self)
        config["world"].update(ranks=ranks, per_device_batch=local, global_batch=ranks * local)

    def processes(self) -> int | None:
        """Return the number of ranks where each is a process."""
        return layout(self)[0] if self.engine == "torchrun" else None


@dataclass(frozen=True)
class Clients(WorldConfig):
    """The clients world: one model at `count` sites, trained in rounds (federated learning).

    A round samples clients, each trains from the model that it receives, the server makes the next one. `optim` is
    the clients' optimiser, its schedule runs over rounds, and its epochs have no meaning here.
    """

    kind: ClassVar[str] = "clients"
    call: ClassVar[str] = "syncnorm.federated.simulate"
    engines: ClassVar[tuple[str, ...]] = get_args(ClientEngine)
    step: ClassVar[str] = "round"

    count: int = 20
    """Number of clients that take part in training."""
    participation: float = 1.0
    """Fraction of the clients that a round samples, without replacement; at least one."""
    rounds: int = 50
    """Number of rounds."""
    local_epochs: int = 1
    """Passes over its own data that a client makes in a round."""
    local_steps: int | None = None
    """Exactly so many steps a round in place of local_epochs; batches left out are none."""
    batch: int = 16
    """Samples in a client's step; the last batch of an epoch may be smaller."""
    method: str = "fedavg"
    """What is averaged, pooled, kept at home or frozen of batch norm: a name in federated.POLICIES."""
    method_options: dict[str, Any] = field(default_factory=dict)
    """Options of the method, e.g. {"frozen_from": 0.5} for fixbn."""
    algorithm: Literal["fedavg", "fedprox", "scaffold", "fedadam", "fedavgm"] = "fedavg"
    """How the clients' and the server's steps are corrected."""
    algorithm_options: dict[str, Any] = field(default_factory=dict)
    """Options of the algorithm, e.g. {"mu": 0.01, "squared": False} for fedprox."""
    weighting: Literal["samples", "uniform"] = "samples"
    """What a client counts in the average: its number of training samples, or as much as any other."""
    skew: str = "iid"
    """How each domain's samples are dealt to its clients: a partition method's name, or "resampled"."""
    alpha: float | None = None
    """Concentration of the Dirichlet partitions: small is skewed. None is their own default."""
    skew_options: dict[str, Any] = field(default_factory=dict)
    """Further options of the partition method, e.g. {"classes_per_client": 2} for pathological."""
    domains: tuple[str, ...] = ()
    """Data sets of the same task; client k holds samples of domain k mod their number. Empty: data.name alone."""
    noise: float = 0.0
    """Standard deviation of the noise on the last client's images (in units of the data's); client k of K has
    k / (K - 1) of it."""
    equal_size: float = 0.0
    """Cut every client's training data to this fraction of the smallest client's; 0 keeps all."""
    validation: float = 0.0
    """Samples of every client's own that choose the round to report, as a fraction of the smallest client's data;
    0 reports the last round."""
    held_out: int = 0
    """Further clients that hold data but never train: what a site gets that was never seen."""
    unseen: tuple[str, ...] = ()
    """Domains of the held-out clients, if they are not to be those of the others."""
    min_batch: int = 2
    """Smallest batch whose own statistics may normalise it."""
    small_batch: Literal["error", "skip", "use_running"] = "skip"
    """What is done with a batch below min_batch: refuse it, leave it out, or normalise it with running statistics."""
    clip: float = 0.0
    """Adaptive gradient clipping: largest gradient norm of an output unit, in units of its weight norm; 0 is off."""
    keep_momentum: bool = False
    """Whether a client's optimiser goes on with the momentum of its last round."""
    unsampled: Literal["initial", "average"] = "initial"
    """What evaluates a client that was never sampled where its method keeps a part of batch norm at home: that part
    as it was at first, or the mean over the clients that have one."""
    global_norm: Literal["none", "average", "pooled"] = "none"
    """Batch norm of a global model where the method has none: no global model, or the clients' averaged or pooled."""
    enough: float = 0.5
    """A round fails when fewer than this fraction of its clients give a usable update."""
    engine: ClientEngine = "auto"
    """cohort: all clients of a round in one batched step; loop: one after the other; auto: the faster of these two;
    flower: Flower's own simulation."""

    def complete(self, config: dict[str, Any]) -> None:
        """Leave out the epochs: clients train in rounds."""
        del config["optim"]["epochs"]


@dataclass(frozen=True)
class Domains(WorldConfig):
    """The domains world: one model trained in one place on several domains, and tested on those and on unseen ones.

    A domain is a data set of its own: a kind of image, a camera, a person. Training knows every sample's domain. What
    a test knows of its domain is said by `adapt`. Each domain is adapted to by itself, from the model as trained.
    """

    kind: ClassVar[str] = "domains"
    call: ClassVar[str] = "syncnorm.domains.fit"

    domains: tuple[str, ...] = ()
    """The domains' data sets, all of one task. Where data.path is given, each lies in that folder under its name."""
    unseen: tuple[str, ...] = ()
    """Those of them that training leaves out."""
    batch: int = 32
    """Samples in a step of training."""
    batches: Literal["mixed", "one_domain"] = "mixed"
    """Whether a step's samples are drawn from all domains together, or from one domain at a time."""
    adapt: str = "none"
    """What the model does at test time, without labels. none: evaluate by the statistics of training; by a seen
    domain's own where the norm tells domains apart. pooled: by those of all domains together. ensemble: mix the
    outputs for each domain, weighted by resemblance (BNE). adabn: by statistics of the domain's samples. prediction:
    by those of each test batch. mix: by both, weighted by size (Schneider et al.). alpha: by both, in fixed shares.
    online: by the source's, updated by a stream of samples. tent: by each test batch's, minimising the entropy of
    predictions. Or the name of an adaptation of your own (`syncnorm.register_adaptation`)."""
    adapt_options: dict[str, Any] = field(default_factory=dict)
    """Options of the adaptation, e.g. {"prior_count": 16} for mix and online, {"lr": 0.001} for tent."""
    adapt_samples: int | None = None
    """Unlabelled training samples of the domain, at most, that adabn and online see before the test; None is all."""
    test_batch: int = 64
    """Samples in a batch of the test, which share statistics for prediction, mix, alpha and tent, and of online's
    stream."""
    test_order: Literal["shuffled", "sorted"] = "shuffled"
    """In which order a domain's samples come, in adaptation and test: at random, or sorted by label."""

    def training(self) -> Self:
        """Return this world with the defaults of everything that the test alone reads."""
        fresh, test = Domains(), ("adapt", "adapt_options", "adapt_samples", "test_batch", "test_order")
        return replace(self, **{name: getattr(fresh, name) for name in test})


def layout(world: Devices) -> tuple[int, int]:
    """Return `(ranks, per_device_batch)` from whichever two of ranks, per_device_batch and global_batch are set.

    Nothing set means one device with 32 samples. Numbers that are not positive or do not fit raise `UserError`.
    """
    ranks, local, total = world.ranks, world.per_device_batch, world.global_batch
    for name, value in (("ranks", ranks), ("per_device_batch", local), ("global_batch", total)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}: it must be at least 1.")
    if total is None:
        return ranks or 1, local or 32
    if local is None:
        local, rest = divmod(total, ranks or 1)
        if rest or local == 0:
            raise UserError(f"global_batch {total} does not divide over {ranks} ranks: make it a multiple.")
    if ranks is None:
        ranks = total // local
    if ranks * local != total:
        raise UserError(
            f"global_batch {total} is not ranks x per_device_batch ({ranks} x {local}): make it a multiple of "
            "per_device_batch, and leave ranks out."
        )
    return ranks, local
