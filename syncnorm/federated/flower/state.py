"""The global model of a strategy: what it takes from Flower's arrays, in the model's own types."""

from collections.abc import Mapping

from flwr.app import ArrayRecord
from torch import Tensor

from syncnorm.errors import UserError
from syncnorm.federated.aggregation import VARIANCE
from syncnorm.federated.flower.records import from_record, to_record


class Global:
    """The entries of the model that a run sends, by name and in the order of its arrays.

    state: their values after the last round.
    """

    @property
    def is_part(self) -> bool:
        """Whether the arrays are only a part of the model's state."""
        return len(self.state) < len(self._model)

    def __init__(self, model: Mapping[str, Tensor]) -> None:
        self.state: Mapping[str, Tensor] = model
        self._model = model

    def take(self, server_round: int, arrays: ArrayRecord) -> tuple[ArrayRecord, list[str]]:
        """Set the state to a round's arrays; return the arrays to send, and the names of variances set to zero.

        The arrays may be a part of the model's state, for example of a head or an adapter.

        Raises:
            UserError: an entry that the model does not have, or has in another shape; running variances without
            their means.
        """
        given, own = from_record(arrays), self._model
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
        return (arrays if same else to_record(self.state, copy=False)), floored
