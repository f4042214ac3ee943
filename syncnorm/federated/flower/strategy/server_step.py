"""The server's step of another strategy of Flower, on the trained parameters alone."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg
from torch import Tensor, nn

from syncnorm.errors import UserError
from syncnorm.federated.aggregation import not_finite
from syncnorm.federated.flower.records import from_record
from syncnorm.federated.flower.strategy.replies import Answer
from syncnorm.federated.flower.strategy.state import Global
from syncnorm.federated.policies import Reduction


def trained_names(model: nn.Module, reductions: Mapping[str, Reduction]) -> set[str]:
    """Return the names of the parameters that the server averages, under all of their names in the state."""
    values = model.state_dict(keep_vars=True)
    return {
        name for name, value in values.items() if isinstance(value, nn.Parameter) and reductions[name] == "average"
    }


def refuse_wrong_order(kind: type[FedAvg], ours: type[FedAvg]) -> None:
    """Raise `UserError` for a class whose other strategy would step on what NormFedAvg has combined."""
    before = kind.__mro__[: kind.__mro__.index(ours)]
    others = [one.__name__ for one in before if issubclass(one, FedAvg) and not issubclass(one, ours)]
    if others:
        raise UserError(
            f"{kind.__name__} has {others[0]} before {ours.__name__}, and would step on running statistics and "
            f"counters: write class {kind.__name__}({ours.__name__}, {others[0]})."
        )


def is_robust(strategy: FedAvg, used: Sequence[Answer], usable: Sequence[Answer]) -> bool:
    """Return whether a strategy takes the parameters' median or trimmed mean, of clients that are all used."""
    return len(used) == len(usable) and isinstance(strategy, FedMedian | FedTrimmedAvg | Bulyan)


def server_step(
    strategy: Any, ours: type[FedAvg], server_round: int, usable: Sequence[Answer], model: Global, names: set[str]
) -> tuple[dict[str, Tensor], list[Answer]]:
    """Return the parameters `names` after the step of the strategy between `ours` and FedAvg, and whom it used.

    It gets replies in which every other entry has the server's value, so that distances and medians are those of the
    parameters. The answers it used are those whose metrics it aggregates: Krum selects, for example. Nothing is
    stepped without such a strategy.

    Raises:
        UserError: parameters that are not finite any more.
    """
    step = super(ours, strategy).aggregate_train
    if step.__func__ is FedAvg.aggregate_train:
        return {}, list(usable)
    used: list[RecordDict] = []

    def selected(contents: list[RecordDict], key: str) -> MetricRecord:
        used.extend(contents)
        return MetricRecord()

    alike = set.intersection(*({name for name in _metrics(answer)} for answer in usable))
    messages = [_parameters_alone(answer, model, names, alike, strategy.arrayrecord_key) for answer in usable]
    if isinstance(held := getattr(strategy, "current_arrays", None), ArrayRecord):
        strategy.current_arrays = ArrayRecord({key: _in_floats(array) for key, array in held.items()})
    own, strategy.train_metrics_aggr_fn = strategy.train_metrics_aggr_fn, selected
    try:
        arrays, _ = step(server_round, messages)
    finally:
        strategy.train_metrics_aggr_fn = own
    if arrays is None:
        raise UserError(f"round {server_round}: the server's step of {type(strategy).__name__} gave no model.")
    state, after = model.state, model.inward(from_record(arrays))
    stepped = {name: after[name].to(value.dtype) for name, value in state.items() if name in names}
    if (first := not_finite(stepped, state)) is not None:
        raise UserError(f"round {server_round}: the server's step made '{first}' infinite: lower its learning rate.")
    chosen = {id(content) for content in used}
    answers = [answer for answer, message in zip(usable, messages, strict=True) if id(message.content) in chosen]
    return stepped, answers or list(usable)


def _parameters_alone(answer: Answer, model: Global, names: set[str], metrics: set[str], key: str) -> Message:
    """Return a reply with all entries in the order of the state, and metrics that all clients sent.

    Counters are floats in it: strategies compute in place (q-FedAvg), which NumPy refuses of whole numbers.
    """
    sent = {
        name: answer.state[name].to(value.dtype) if name in names and name in answer.state else value
        for name, value in model.state.items()
    }
    sent = {name: value if _computes(value) else value.double() for name, value in sent.items()}
    message = copy(answer.reply)
    kept = {name: value for name, value in _metrics(answer).items() if name in metrics}
    message.content = RecordDict({key: model.record(sent), "metrics": MetricRecord(kept)})
    return message


def _computes(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _in_floats(array: Array) -> Array:
    values = array.numpy()
    return Array(values.astype("float64")) if values.dtype.kind in "iub" else array


def _metrics(answer: Answer) -> dict[str, Any]:
    records = [record for record in answer.content.values() if isinstance(record, MetricRecord)]
    return {name: value for record in records for name, value in record.items()}
