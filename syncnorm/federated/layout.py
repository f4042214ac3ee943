"""Which entries of a model's state are sent, kept and combined under a policy."""

from collections.abc import Mapping

from torch import Tensor, nn

from syncnorm.federated.models import everything
from syncnorm.federated.policies import (
    KEPT,
    SENT,
    STATISTICS,
    Policy,
    Reduction,
    batch_norm_entries,
    can_average,
    counters,
    rules,
)
from syncnorm.surgery import batch_norms
from syncnorm.training.profiles.layers import described_layers


class Layout:
    """The entries of a model's state by their treatment; all lists are in the order of the state.

    Without `counts`, batch norm's counters are not sent in either direction.

    Raises:
        UserError: a policy that does not apply to this model (`rules`).
    """

    def __init__(self, model: nn.Module, policy: Policy, counts: bool = True) -> None:
        self.reductions: dict[str, Reduction] = rules(model, policy)
        """How the server treats each entry."""
        if not counts:
            shared = [name for name in counters(model) if self.reductions[name] == "max"]
            self.reductions |= dict.fromkeys(shared, "gathered")  # training then starts each round from 0
        self.layers = list(batch_norms(model))
        """The batch norms, by name."""
        self.described = described_layers(model)
        """What its layers are, by name."""
        self._types = {name: value.dtype for name, value in model.state_dict().items()}
        self._parts = batch_norm_entries(model)
        listed = {id(value): name for name, value in everything(model)}
        self.listed = {name: listed[id(value)] for name, value in model.state_dict(keep_vars=True).items()}
        """For each entry, the name of the same tensor among the model's parameters and buffers."""
        trained = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
        self.shared_parameters = sorted(name for name in trained if self.reductions[name] == "average")
        """The trained parameters that the server averages, on which algorithms act."""
        self.broadcast = self._with(*(reduction for reduction in SENT if reduction not in KEPT))
        """Entries that a client receives before it trains."""
        self.gathered = self._with("gathered")
        """Entries that training does not use, and that a pass over the clients' data fills."""
        self.sent = self._with(*SENT)
        """Entries that a client sends after training."""
        self.kept = self._with(*KEPT)
        """Entries that stay with a client."""
        self.personal = self._with("personal")
        """Entries that are averaged separately for each client."""
        self.statistics = [name for name, part in self._parts.items() if part in STATISTICS and name not in self.kept]
        """The running statistics that the server owns."""

    @property
    def has_statistics(self) -> bool:
        """Whether any batch norm has running statistics."""
        return not set(STATISTICS).isdisjoint(self._parts.values())

    def reductions_of_kept(self, statistics: Reduction) -> dict[str, Reduction]:
        """Return how an average over clients combines their kept entries; `statistics` applies to running
        statistics."""
        return {name: self._reduction_of_kept(name, statistics) for name in self.kept}

    def _reduction_of_kept(self, name: str, statistics: Reduction) -> Reduction:
        if self._parts.get(name) in STATISTICS:
            return statistics
        return "average" if can_average(self._types[name]) else "max"

    def with_aliases(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return entries under all of their names in the state, in its types."""
        return {name: found[listed].to(self._types[name]) for name, listed in self.listed.items() if listed in found}

    def _with(self, *reductions: Reduction) -> list[str]:
        return [name for name, reduction in self.reductions.items() if reduction in reductions]
