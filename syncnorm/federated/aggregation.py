"""Aggregation of clients' models, without a network."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from syncnorm.errors import UserError
from syncnorm.federated.aggregations import aggregation_of
from syncnorm.federated.aggregations.base import WEIGHTED, Aggregation, statistics_pairs
from syncnorm.federated.policies import COUNTER, SENT, STATISTICS, Policy, Reduction, can_average, rules
from syncnorm.moments import Moments
from syncnorm.surgery.adaptation.recalibrate import statistics_entries

State = Mapping[str, Tensor]
VARIANCE = STATISTICS[1]
MOST_BATCHES = 2**53
"""Largest counter of batches that is believed: a larger one would soon overflow, and no client has seen so many."""


def aggregate(
    model: nn.Module,
    states: Sequence[State],
    weights: Sequence[float],
    policy: str | Policy = "fedavg",
    *,
    aggregation: str | Aggregation = "mean",
    any_precision: bool = False,
) -> dict[str, Tensor]:
    """Return the state of the next global model from the states of one round's clients.

    With client k's share p_k = weights_k / sum(weights), parameters and shared statistics are sum_k p_k value_k; the
    pooled variance is that of all clients' samples together (law of total variance),

        mu = sum_k p_k mu_k,   sigma^2 = sum_k p_k (sigma_k^2 + (mu_k - mu)^2).

    Integers (batch norm's counters) take the maximum. Entries that a policy leaves with the clients, and statistics
    that it gathers in a separate pass, keep their values in `model` and need not be in `states`. Every entry keeps
    the type that it has in `model`. A client of weight zero changes nothing. Sums are computed in float64 (complex
    ones in complex128) in the given order: the same clients in the same order give bit-identical results.

    Args:
        model: the current global model; it defines which entries are batch norm's, and is not changed.
        states: one state per client.
        weights: each client's weight, for example its number of samples.
        policy: a name in `POLICIES`, or your own `Policy`.
        aggregation: a name in `AGGREGATIONS`, or your own `Aggregation`; the formulas above are those of "mean".
        any_precision: take states in another precision too, such as half.

    Raises:
        UserError: no states, weights that do not match, an unknown policy, or a policy that does not apply to the
            model; values that are finite for each client but not combined.
        ValueError: a state that cannot be averaged (see `check_update`); the message names the client by its
            position.
    """
    reductions, chosen = rules(model, policy), aggregation_of(aggregation)
    shares = normalised_weights(states, weights)
    current = model.state_dict()
    for place, state in enumerate(states):
        check_update(current, state, reductions, client=str(place), any_precision=any_precision)
    return combine(current, reductions, states, shares, chosen)


def combine(
    current: State,
    reductions: Mapping[str, Reduction],
    states: Sequence[State],
    shares: Tensor,
    aggregation: Aggregation = WEIGHTED,
) -> dict[str, Tensor]:
    """Like `aggregate`, with checked states and shares, float64 (K,), that sum to 1.

    Raises:
        UserError: the result is not finite.
    """
    counted = [place for place, share in enumerate(shares.tolist()) if share > 0]
    states, shares = [states[place] for place in counted], shares[counted]
    states = aggregation.bounded(current, states, reductions)
    chosen = aggregation.chosen(current, states, reductions)
    theirs = shares if len(chosen) == len(states) else shares[list(chosen)] / shares[list(chosen)].sum()
    statistics = {name for pair in statistics_pairs(reductions, "average") for name in pair}
    combined = {}
    for name, reduction in reductions.items():
        if reduction == "max":
            every = torch.stack([state[name].to(current[name].dtype) for state in states])
            combined[name] = aggregation.largest(every)
        elif reduction == "average" and name in statistics:
            combined[name] = _center(aggregation.statistic, [state[name] for state in states], shares, current[name])
        elif reduction == "average":
            some = [states[place][name] for place in chosen]
            combined[name] = _center(aggregation.center, some, theirs, current[name])
        else:
            combined[name] = current[name].clone()
    for mean_name, var_name in pooled_pairs(reductions):
        means, variances = (torch.stack([state[name] for state in states]).double() for name in (mean_name, var_name))
        mean, var = aggregation.pooled(means, variances, shares.to(means.device))
        combined[mean_name] = mean.to(current[mean_name].dtype)
        combined[var_name] = var.to(current[var_name].dtype)
    if (first := not_finite(combined, current)) is not None:  # the variance of two means that are too far apart
        raise UserError(
            f"the clients' values are finite, but together '{first}' is too large for {combined[first].dtype}: lower "
            "the clients' learning rate, or, if a client may be hostile, choose an aggregation such as median."
        )
    return combined


def check_moments(moments: Mapping[str, Moments], current: State, names: Sequence[str]) -> None:
    """Raise `ValueError` if the moments that a client has gathered must not enter the statistics `names`."""
    for part in moments.values():
        values = (part.count, part.mean, part.m2)
        if part.count.dim() or not all(value.isfinite().all() for value in values):
            raise ValueError("moments that are not finite.")
        if not 0 < float(part.count) <= MOST_BATCHES or part.m2.lt(0).any():
            raise ValueError("a count or a variance that is negative or too large.")
    entries = statistics_entries(moments)
    for name in names:
        if name not in entries or entries[name].shape != current[name].shape:
            raise ValueError(f"no moments for '{name}'.")


def merged(found: Sequence[Mapping[str, Moments]], aggregation: Aggregation) -> dict[str, Moments]:
    """Return the moments of all clients together by layer, from those of each client.

    The weighted mean merges them exactly. Another aggregation makes one mean and one variance of the clients', who
    count alike.
    """
    if aggregation is WEIGHTED:
        return {layer: Moments.pool([moments[layer] for moments in found]) for layer in found[0]}
    merged = {}
    for layer in found[0]:
        parts = [moments[layer] for moments in found]
        counts = torch.stack([part.count for part in parts]).double()
        means, variances = (
            torch.stack(values).double() for values in zip(*((p.mean, p.var()) for p in parts), strict=True)
        )
        alike = torch.full_like(counts, 1 / len(parts))
        mean, var = aggregation.pooled(means, variances, alike)
        count = aggregation.statistic(counts, alike) * len(parts)
        kind = parts[0].mean.dtype
        merged[layer] = Moments(count.to(parts[0].count.dtype), mean.to(kind), (var * count).to(kind))
    return merged


def pooled_pairs(reductions: Mapping[str, Reduction]) -> list[tuple[str, str]]:
    """Return the names of the running means and variances that are pooled."""
    return statistics_pairs(reductions, "pooled")


def check_update(
    current: State, state: State, reductions: Mapping[str, Reduction], client: str, *, any_precision: bool = False
) -> None:
    """Raise `ValueError`, with one sentence that names the client, if its update must not enter the global model.

    That is the case if an entry is missing, unknown, of another shape or type, a negative variance, or a counter of
    batches below 0 or above 2^53, or has a value that is not finite where the global model's is. With
    `any_precision`, another type of the same kind (real, complex, whole) is taken if its values are finite in the
    model's. `current` is the global model's state, and `reductions` is what `rules` returns for it.
    """
    sent = {name for name, reduction in reductions.items() if reduction in SENT}
    if missing := sorted(sent - state.keys()):
        raise ValueError(f"client {client} sent no '{missing[0]}' ({len(missing)} entries are missing).")
    if strange := sorted(map(str, state.keys() - current.keys())):
        raise ValueError(f"client {client} sent '{strange[0]}', which the global model does not have.")
    for name in sorted(sent):
        value, own = state[name], current[name]
        if not is_dense(value):
            kind = type(value).__name__
            raise ValueError(f"client {client} sent '{name}' as {kind}: it must be a tensor, and a dense one.")
        fits = _kind(value.dtype) == _kind(own.dtype) if any_precision else value.dtype == own.dtype
        if value.shape != own.shape or not fits:
            raise ValueError(
                f"client {client} sent '{name}' as {value.dtype} of shape {tuple(value.shape)}: the global model has "
                f"{own.dtype} of shape {tuple(own.shape)}."
            )
    typed = {name: state[name].to(current[name].dtype) for name in sorted(sent)}
    if (first := not_finite(typed, current)) is not None:
        raise ValueError(f"client {client} sent '{first}' with values that are not finite.")
    for name in sorted(sent):
        if name.endswith(VARIANCE) and state[name].lt(0).any():
            raise ValueError(f"client {client} sent '{name}' with a negative variance.")
        if name.endswith(COUNTER) and _kind(current[name].dtype) == "whole" and _is_no_count(state[name].long()):
            raise ValueError(f"client {client} sent '{name}' below 0 or above 2^53, which is no count of batches.")


def is_dense(value: object) -> bool:
    """Return whether something is a plain tensor with values, not sparse and not quantised."""
    if not isinstance(value, Tensor):
        return False
    return value.layout is torch.strided and not (value.is_meta or value.is_quantized)


def _is_no_count(counts: Tensor) -> bool:
    return bool((counts.lt(0) | counts.gt(MOST_BATCHES)).any())


def not_finite(state: State, before: State) -> str | None:
    """Return the name of the first entry with a value that is not finite, but was `before`; None if there is none.

    A constant such as an attention mask may hold infinities. All values are checked at once: checking entry by entry
    takes longer than a step of a small model.
    """
    values = {name: value.reshape(-1) for name, value in state.items() if can_average(value.dtype)}
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for value in values.values():
        by_type.setdefault(value.dtype, []).append(value)
    if all(_finite(torch.cat(same)).all() for same in by_type.values()):
        return None
    return next((name for name, value in values.items() if _lost(value, before[name].reshape(-1))), None)


def _lost(value: Tensor, before: Tensor) -> bool:
    """Return whether a value that was finite is not any more."""
    return bool((_finite(before).to(value.device) & ~_finite(value)).any())


def _finite(value: Tensor) -> Tensor:
    # `isfinite` does not exist for types of one byte.
    return (value if value.element_size() > 1 else value.float()).isfinite()


def _kind(dtype: torch.dtype) -> str:
    """Return the kind of number: entries of one kind can be combined, in whatever precision they come."""
    return "complex" if dtype.is_complex else "real" if dtype.is_floating_point else "whole"


def normalised_weights(states: Sequence[object], weights: Sequence[float]) -> Tensor:
    """Return each client's share of the sum of `weights`, float64 (K,).

    Raises:
        UserError: no states, another number of weights, or invalid weights.
    """
    if not states:
        raise UserError("there is no client's state to aggregate: give at least one.")
    if len(states) != len(weights):
        raise UserError(f"{len(states)} states came with {len(weights)} weights: give one weight a state.")
    try:
        given = torch.tensor(list(weights), dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"weights are {list(weights)}: they must be numbers.") from error
    if not given.isfinite().all() or given.lt(0).any() or given.sum() == 0:
        raise UserError(f"weights are {list(weights)}: they must not be negative, and not all zero.")
    given = given / given.max() if given.sum().isinf() else given
    return given / given.sum()


def _center(
    center: Callable[[Tensor, Tensor], Tensor], values: Sequence[Tensor], shares: Tensor, own: Tensor
) -> Tensor:
    """Return one value of the clients' in the model's type; complex numbers by their parts."""
    stacked = torch.stack([value.to(wide(own.dtype)) for value in values])
    parts = torch.view_as_real(stacked) if stacked.is_complex() else stacked
    found = center(parts, shares.to(stacked.device))
    return (torch.view_as_complex(found.contiguous()) if stacked.is_complex() else found).to(own.dtype)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which values of a type are summed."""
    return torch.complex128 if dtype.is_complex else torch.float64
