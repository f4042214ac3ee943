"""The worlds' configurations. The docstrings are the command line's help texts."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self, get_args

from syncnorm.config.parts import LATER
from syncnorm.environment import cores, cuda_devices, world_size
from syncnorm.errors import UserError

Engine = Literal["virtual", "torchrun"]
ClientEngine = Literal["auto", "cohort", "loop", "flower", "torchrun"]
RankEngine = Literal["auto", "cohort", "loop"]
RESAMPLED = "resampled"
"""The skew that is no partition: clients draw samples that they may share."""


class WorldConfig:
    """Base of all worlds' configurations."""

    kind: ClassVar[str]
    """Name of the world in a row's config."""
    call: ClassVar[str]
    """The public function that trains a run in this world."""
    engines: ClassVar[tuple[str, ...]] = ()
    """Possible values of the field `engine`."""
    step: ClassVar[str] = "epoch"
    """Unit of a history: epoch or round."""
    stacks: ClassVar[bool] = False
    """Whether runs that differ in numbers alone can train in one computation (`config.stacks`)."""
    deals: ClassVar[tuple[str, ...]] = ()
    """The fields that decide, with `data` and the seed, which samples train, and how much each test sample counts."""

    def names(self) -> list[tuple[str, str]]:
        """Return the registered names that this world uses, as pairs (kind, name); kinds are keys of
        `registry.HOMES`."""
        return []

    def complete(self, config: dict[str, Any]) -> None:
        """Bring a run's description (`config.describe`) into a normal form, in place."""

    def processes(self) -> int | None:
        """Return the number of processes for torchrun; None if one process trains the run."""
        return None

    tests: ClassVar[tuple[str, ...]] = ()
    """The fields that concern the evaluation after training alone."""
    watches: ClassVar[bool] = True
    """Whether an evaluation during training reads them too."""

    def training(self, watched: bool) -> Self:
        """Return this world with test settings at their defaults: runs that are then equal share one training.

        `watched` says whether the run is evaluated while it trains.
        """
        if watched and self.watches:
            return self
        fresh = type(self)()
        return replace(self, **{name: getattr(fresh, name) for name in self.tests})  # type: ignore[type-var]


@dataclass(frozen=True)
class Devices(WorldConfig):
    """The devices world: one model on `ranks` devices with `per_device_batch` samples each.

    Any two of ranks, per_device_batch and global_batch determine the third.
    """

    kind: ClassVar[str] = "devices"
    call: ClassVar[str] = "syncnorm.training.fit"
    stacks: ClassVar[bool] = True
    engines: ClassVar[tuple[str, ...]] = get_args(Engine)
    tests: ClassVar[tuple[str, ...]] = ("buffers",)

    ranks: int | None = None
    """Number of devices."""
    per_device_batch: int | None = None
    """Samples per device and step."""
    global_batch: int | None = None
    """Samples per step on all devices together."""
    skew: float = 0.0
    """Percentage of the training data that is sorted by label before it is split among ranks (0 IID, 100 sorted)."""
    engine: Engine = "virtual"
    """virtual: all ranks in one process, with exact results; torchrun: one process per rank."""
    buffers: Literal["rank0", "pooled"] = "rank0"
    """Running statistics for evaluation with unsynchronised BN: rank 0's, as in DDP, or pooled over all ranks."""
    natural_skew: float = field(default=0.0, metadata=LATER)
    """Percentage of the training data that is sorted by natural group (its site, writer, scene) before it is split
    among ranks, in place of `skew`."""

    def complete(self, config: dict[str, Any]) -> None:
        """Fill in the missing one of ranks, per_device_batch and global_batch."""
        ranks, local = layout(self)
        config["world"].update(ranks=ranks, per_device_batch=local, global_batch=ranks * local)

    def processes(self) -> int | None:
        """Return the number of ranks if each is a process."""
        return layout(self)[0] if self.engine == "torchrun" else None


@dataclass(frozen=True)
class Clients(WorldConfig):
    """The clients world: one model at `count` sites, trained in rounds (federated learning).

    In each round, sampled clients train the model that they receive, and the server combines their updates. `optim`
    is the clients' optimiser; its schedule runs over rounds, and its epochs are not used.
    """

    kind: ClassVar[str] = "clients"
    call: ClassVar[str] = "syncnorm.federated.simulate"
    engines: ClassVar[tuple[str, ...]] = get_args(ClientEngine)
    step: ClassVar[str] = "round"
    deals: ClassVar[tuple[str, ...]] = (
        *("count", "domains", "skew", "alpha", "skew_options", "noise"),
        *("equal_size", "held_out", "unseen"),
    )
    tests: ClassVar[tuple[str, ...]] = ("unsampled", "global_norm")

    count: int = 20
    """Number of clients that take part in training."""
    participation: float = 1.0
    """Fraction of clients sampled per round, without replacement; at least one client is."""
    rounds: int = 50
    """Number of rounds."""
    local_epochs: int = 1
    """Number of local epochs per round."""
    local_steps: int | None = None
    """Number of local steps per round; overrides local_epochs. Skipped batches do not count."""
    batch: int = 16
    """Batch size of a client; the last batch of an epoch may be smaller."""
    method: str = "fedavg"
    """Batch-norm policy: which parts are averaged, pooled, local or frozen. A name in federated.POLICIES."""
    method_options: dict[str, Any] = field(default_factory=dict)
    """Options of the method, e.g. {"frozen_from": 0.5} for fixbn."""
    algorithm: str = "fedavg"
    """Federated algorithm, which changes the clients' or the server's steps. A name in federated.ALGORITHMS."""
    algorithm_options: dict[str, Any] = field(default_factory=dict)
    """Options of the algorithm, e.g. {"mu": 0.01, "squared": False} for fedprox."""
    weighting: Literal["samples", "uniform"] = "samples"
    """Client weight in the average: sample count, or uniform."""
    skew: str = "iid"
    """Partition of each domain's samples among its clients: name of a partition method, or "resampled"."""
    alpha: float | None = None
    """Concentration of Dirichlet partitions; smaller is more skewed. None: the method's default."""
    skew_options: dict[str, Any] = field(default_factory=dict)
    """Further options of the partition method, e.g. {"classes_per_client": 2} for pathological."""
    domains: tuple[str, ...] = ()
    """Data sets of one task, one per domain; client k gets domain k mod their number. Empty: data.name alone."""
    noise: float = 0.0
    """Standard deviation of the noise on the last client's images, in units of the data's standard deviation; client
    k of K gets k / (K - 1) of it."""
    equal_size: float = 0.0
    """Reduce every client's training data to this fraction of the smallest client's data, beside what data.validation
    holds out; 0 keeps all."""
    held_out: int = 0
    """Number of additional clients that have data but never train, to evaluate the model at unseen sites."""
    unseen: tuple[str, ...] = ()
    """Domains of the held-out clients; empty: the same as the other clients'."""
    min_batch: int = 2
    """Smallest batch that is normalised with its own statistics."""
    small_batch: Literal["error", "skip", "use_running"] = "skip"
    """What to do with batches smaller than min_batch: refuse the run, skip them, or normalise them with running
    statistics."""
    clip: float = 0.0
    """Adaptive gradient clipping: largest ratio of gradient norm to weight norm of an output unit; 0 is off."""
    keep_momentum: bool = False
    """Whether a client's optimiser keeps its momentum between rounds."""
    unsampled: Literal["initial", "average"] = "initial"
    """Local entries used to evaluate a client that was never sampled: their initial values, or the mean over the
    clients that have trained."""
    global_norm: Literal["none", "average", "pooled"] = "none"
    """How a method with local batch norm builds a global model: not at all, or from the clients' averaged or pooled
    batch norms."""
    enough: float = 0.5
    """Smallest fraction of a round's clients that must give a usable update; with fewer the run fails."""
    engine: ClientEngine = "auto"
    """cohort: all clients of a round in one batched step; loop: one client after another; auto: the faster of the
    two; flower: Flower's own simulation, on Ray; torchrun: a round's clients are dealt to processes."""
    ranks: int | None = None
    """Number of processes of the engine torchrun. None: as many as torchrun has started; where syncnorm run starts
    it, one a CUDA device or core, at most one a client of a round. It changes no result and no run's id."""
    rank_engine: RankEngine = field(default="auto", metadata=LATER)
    """How each process of the engine torchrun trains its clients: what the engine of this name does."""
    aggregation: str = field(default="mean", metadata=LATER)
    """How the server makes one value of the clients': the weighted mean, or one that hostile clients cannot move far
    (median, trimmed, clipped, krum). A name in federated.AGGREGATIONS."""
    aggregation_options: dict[str, Any] = field(default_factory=dict, metadata=LATER)
    """Options of the aggregation, e.g. {"trim": 0.2} for trimmed, {"ratio": 4} for clipped."""
    hostile: float = field(default=0.0, metadata=LATER)
    """Fraction of the clients that are hostile; the seed draws them."""
    attack: str = field(default="scaled", metadata=LATER)
    """What hostile clients send in place of what they have trained. A name in federated.ATTACKS."""
    send_counts: bool = field(default=True, metadata=LATER)
    """Whether clients say how many samples and batches they have trained on. False needs weighting="uniform"."""

    def names(self) -> list[tuple[str, str]]:
        """Return the names of the policy, the algorithm, the partition, the data sets, and further choices."""
        named = [("policy", self.method), ("algorithm", self.algorithm)]
        named += [("aggregation", self.aggregation)] if self.aggregation != Clients.aggregation else []
        named += [("attack", self.attack)] if self.hostile else []
        dealt = [("partition", self.skew)] if self.skew != RESAMPLED else []
        return [*named, *dealt, *(("data", name) for name in (*self.domains, *self.unseen))]

    def complete(self, config: dict[str, Any]) -> None:
        """Remove `optim.epochs`, since clients train in rounds, and `ranks`, which changes no result."""
        del config["optim"]["epochs"]
        config["world"].pop("ranks", None)

    def processes(self) -> int | None:
        """Return the number of ranks if each is a process."""
        if self.engine != "torchrun":
            return None
        return self.ranks or world_size() or min(len(cuda_devices()) or cores(), self.sampled(self.count))

    def sampled(self, count: int) -> int:
        """Return the number of clients in a round of `count` that may train."""
        return max(1, round(self.participation * count))


@dataclass(frozen=True)
class Domains(WorldConfig):
    """The domains world: one model, trained centrally on several domains and tested on those and on unseen ones.

    Each domain is a data set: a kind of image, a camera, a person. Training knows every sample's domain. `adapt` says
    what the test knows of its domain. Adaptation to each domain starts from the trained model. The training may be
    spread over ranks, and `domain_skew` says which domains a rank holds.
    """

    kind: ClassVar[str] = "domains"
    call: ClassVar[str] = "syncnorm.domains.fit"
    engines: ClassVar[tuple[str, ...]] = get_args(Engine)
    deals: ClassVar[tuple[str, ...]] = ("domains", "unseen")
    tests: ClassVar[tuple[str, ...]] = (
        *("adapt", "adapt_options", "adapt_samples", "test_batch", "test_order"),
        "buffers",
    )
    watches: ClassVar[bool] = False  # its history is not adapted, and goes by rank 0's buffers

    domains: tuple[str, ...] = ()
    """The domains' data sets, all of one task. With data.path, each is in that folder under its name."""
    unseen: tuple[str, ...] = ()
    """Domains that are left out of training."""
    batch: int = 32
    """Training batch size, of all ranks together."""
    batches: Literal["mixed", "one_domain"] = "mixed"
    """Whether a training batch, of all ranks together, mixes all domains, or comes from one domain at a time."""
    adapt: str = "none"
    """Unsupervised adaptation at test time. none: use the training statistics (a seen domain's own, if the norm
    separates domains). pooled: use the statistics of all training domains together. ensemble: average the outputs
    with each domain's statistics, weighted by similarity (BNE). adabn: use statistics of the test domain's samples.
    prediction: use the statistics of each test batch. mix: mix training and batch statistics, weighted by sample
    counts (Schneider et al.). alpha: mix both in fixed shares. online: update the training statistics with a stream
    of samples. tent: use each test batch's statistics, and minimise the entropy of predictions. Or the name of your
    own adaptation (`syncnorm.register_adaptation`)."""
    adapt_options: dict[str, Any] = field(default_factory=dict)
    """Options of the adaptation, e.g. {"prior_count": 16} for mix and online, {"lr": 0.001} for tent."""
    adapt_samples: int | None = None
    """Maximum number of the domain's unlabelled training samples that adabn and online see before the test; None:
    all."""
    test_batch: int = 64
    """Test batch size: samples that share statistics for prediction, mix, alpha and tent. Also the batch size of the
    stream for online."""
    test_order: Literal["shuffled", "sorted"] = "shuffled"
    """Order of a domain's samples in adaptation and test: random, or sorted by label."""
    ranks: int = field(default=1, metadata=LATER)
    """Number of ranks (devices) that share a training batch, each with batch / ranks samples of it."""
    domain_skew: float = field(default=0.0, metadata=LATER)
    """Percentage of the training data that is sorted by domain before it is split among ranks, in equal parts. 0:
    every rank holds all domains; 100: each its own, or its own ones. (A domain that is larger than a part goes on at
    the next rank.)"""
    engine: Engine = field(default="virtual", metadata=LATER)
    """virtual: all ranks in one process, with exact results; torchrun: one process per rank."""
    buffers: Literal["rank0", "pooled"] = field(default="rank0", metadata=LATER)
    """Running statistics for the test with unsynchronised BN: rank 0's, as in DDP, or pooled over all ranks. The
    history, and a choice by validation, go by rank 0's."""

    def names(self) -> list[tuple[str, str]]:
        """Return the names of the adaptation and the data sets."""
        return [("adaptation", self.adapt), *(("data", name) for name in self.domains)]

    def processes(self) -> int | None:
        """Return the number of ranks if each is a process."""
        return self.ranks if self.engine == "torchrun" else None


def layout(world: Devices) -> tuple[int, int]:
    """Return `(ranks, per_device_batch)` from any two of ranks, per_device_batch and global_batch.

    If none is set, there is one device with 32 samples. Numbers that are not positive or inconsistent raise
    `UserError`.
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
            fitting = total + -total % (ranks or 1)
            raise UserError(
                f"global_batch {total} does not divide over {ranks} ranks: make it a multiple, such as {fitting}."
            )
    if ranks is None:
        ranks = total // local
    if ranks * local != total:
        raise UserError(
            f"global_batch {total} is not ranks x per_device_batch ({ranks} x {local}): make it a multiple of "
            "per_device_batch, and leave ranks out."
        )
    return ranks, local


WORLD_CONFIGS: tuple[type[Devices | Clients | Domains], ...] = (Devices, Clients, Domains)
"""All of them; `Run.world` is annotated with them, and `syncnorm.worlds.WORLDS` says where each is carried out."""
