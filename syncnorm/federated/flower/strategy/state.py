"""The global model of a strategy: what it takes from Flower's arrays, in the model's own types."""

from collections.abc import Mapping

from flwr.app import ArrayRecord
from torch import Tensor

from syncnorm.errors import UserError
from syncnorm.federated.aggregation import VARIANCE
from syncnorm.federated.flower.records import from_record, to_record


class Global:
    """The entries of the model that a run sends, by name and in the order of its arrays.

    The arrays may also be a list in the order of the model's state, whose names Flower makes "0", "1", ...

    state: their values after the last round, by the model's names.
    """

    def __init__(self, model: Mapping[str, Tensor]) -> None:
        self.state: Mapping[str, Tensor] = model
        self._model = model
        self._places: dict[str, str] = {}

    @property
    def is_part(self) -> bool:
        """Whether the arrays are only a part of the model's state."""
        return len(self.state) < len(self._model)

    def outward(self, name: str) -> str:
        """Return the name that an entry has in the run's arrays."""
        return self._places.get(name, name)

    def inward(self, sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the entries of the run's arrays by the model's names."""
        names = {place: name for name, place in self._places.items()}
        return {names.get(name, name): value for name, value in sent.items()}

    def record(self, state: Mapping[str, Tensor], *, copy: bool = False) -> ArrayRecord:
        """Return entries as the run's arrays."""
        return to_record({self.outward(name): value for name, value in state.items()}, copy=copy)

    def take(self, server_round: int, arrays: ArrayRecord) -> tuple[ArrayRecord, list[str]]:
        """Set the state to a round's arrays; return the arrays to send, and the names of variances set to zero.

        The arrays may be a part of the model's state, for example of a head or an adapter.

        Raises:
            UserError: an entry that the model does not have, or has in another shape; running variances without
            their means.
        """
        given, own = from_record(arrays), self._model
        places = {name: str(place) for place, name in enumerate(own)}
        listed = list(given) == list(places.values()) and not given.keys() <= own.keys()
        self._places = places if listed else {}
        given = self.inward(given)
        strange = sorted(name for name, x in given.items() if name not in own or own[name].shape != x.shape)
        if strange or not given:
            named = f" in '{strange[0]}' ({len(strange)} entries differ)" if strange else ": they are empty"
            raise UserError(
                f"the arrays of round {server_round} differ from the model given to NormFedAvg{named}: start with "
                "ArrayRecord(model.state_dict()), or a part of it."
            )
        for name in given:
            if name.endswith(VARIANCE) and (mean := f"{name.removesuffix(VARIANCE)}running_mean") not in given:
                raise UserError(
                    f"the arrays of round {server_round} have '{name}' without '{mean}': give both or none."
                )
        typed = {name: value.to(own[name].dtype) for name, value in given.items()}
        floored = [name for name, value in typed.items() if name.endswith(VARIANCE) and value.lt(0).any()]
        self.state = {**typed, **{name: typed[name].clamp(min=0) for name in floored}}
        same = not floored and all(typed[name] is value for name, value in given.items())
        return (arrays if same else self.record(self.state)), floored
