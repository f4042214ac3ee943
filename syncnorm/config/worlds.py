"""The worlds' configurations. The docstrings are the command line's help texts."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self, get_args

from syncnorm.errors import UserError

Engine = Literal["virtual", "torchrun"]
ClientEngine = Literal["auto", "cohort", "loop", "flower"]
RESAMPLED = "resampled"
"""The skew that is no partition: clients draw samples that they may share."""


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

    def names(self) -> list[tuple[str, str]]:
        """Return what this world names, as pairs of a kind (a key of `registry.HOMES`) and a name."""
        return []

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

    In a round, sampled clients train from the model that they receive, and the server combines their updates. `optim`
    is the clients' optimiser; its schedule runs over rounds, and its epochs are not used.
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
    """Number of local steps per round; overrides local_epochs. Skipped batches do not count."""
    batch: int = 16
    """Batch size of a client; the last batch of an epoch may be smaller."""
    method: str = "fedavg"
    """Policy for batch norm, which says what is averaged, pooled, local or frozen: a name in federated.POLICIES."""
    method_options: dict[str, Any] = field(default_factory=dict)
    """Options of the method, e.g. {"frozen_from": 0.5} for fixbn."""
    algorithm: str = "fedavg"
    """Federated algorithm, which corrects the clients' or the server's steps: a name in federated.ALGORITHMS."""
    algorithm_options: dict[str, Any] = field(default_factory=dict)
    """Options of the algorithm, e.g. {"mu": 0.01, "squared": False} for fedprox."""
    weighting: Literal["samples", "uniform"] = "samples"
    """Client weight in the average: sample count, or uniform."""
    skew: str = "iid"
    """How each domain's samples are partitioned over its clients: a partition method's name, or "resampled"."""
    alpha: float | None = None
    """Concentration of the Dirichlet partitions; the smaller, the more skewed. None is the method's default."""
    skew_options: dict[str, Any] = field(default_factory=dict)
    """Further options of the partition method, e.g. {"classes_per_client": 2} for pathological."""
    domains: tuple[str, ...] = ()
    """Data sets of the same task; client k holds samples of domain k mod their number. Empty: data.name alone."""
    noise: float = 0.0
    """Standard deviation of the noise on the last client's images, in units of the data's; client k of K has
    k / (K - 1) of it."""
    equal_size: float = 0.0
    """Cut every client's training data to this fraction of the smallest client's; 0 keeps all."""
    validation: float = 0.0
    """Size of each client's validation set, as a fraction of the smallest client's data. The round with the best mean
    validation accuracy is reported; with 0 the last round is."""
    held_out: int = 0
    """Number of further clients that hold data but never train, to evaluate the model at unseen sites."""
    unseen: tuple[str, ...] = ()
    """Domains of the held-out clients; empty: those of the other clients."""
    min_batch: int = 2
    """Smallest batch size that is normalised by its own statistics."""
    small_batch: Literal["error", "skip", "use_running"] = "skip"
    """What to do with a batch below min_batch: refuse the run, skip it, or normalise it with running statistics."""
    clip: float = 0.0
    """Adaptive gradient clipping: largest ratio of gradient norm to weight norm of an output unit; 0 is off."""
    keep_momentum: bool = False
    """Whether a client's optimiser keeps its momentum from one round to the next."""
    unsampled: Literal["initial", "average"] = "initial"
    """Local entries that evaluate a client which was never sampled: their initial values, or the mean over those
    clients that have trained."""
    global_norm: Literal["none", "average", "pooled"] = "none"
    """How a method that keeps batch norm local makes a global model: not at all, or from the clients' averaged or
    pooled batch norms."""
    enough: float = 0.5
    """Smallest fraction of a round's clients that must give a usable update; with fewer the run fails."""
    engine: ClientEngine = "auto"
    """cohort: all clients of a round in one batched step; loop: one client after the other; auto: the faster of these
    two; flower: Flower's own simulation, on Ray."""

    def names(self) -> list[tuple[str, str]]:
        """Return the policy, the algorithm, the partition and the data sets that this world names."""
        named = [("policy", self.method), ("algorithm", self.algorithm)]
        dealt = [("partition", self.skew)] if self.skew != RESAMPLED else []
        return [*named, *dealt, *(("data", name) for name in self.domains)]

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

    def names(self) -> list[tuple[str, str]]:
        """Return the adaptation and the data sets that this world names."""
        return [("adaptation", self.adapt), *(("data", name) for name in self.domains)]

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
