"""Aggregation of clients' models, without a network."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from syncnorm.errors import UserError
from syncnorm.federated.policies import COMBINED, SENT, Policy, Reduction, can_average, rules
from syncnorm.moments import Moments

State = Mapping[str, Tensor]
VARIANCE = "running_var"


def aggregate(
    model: nn.Module,
    states: Sequence[State],
    weights: Sequence[float],
    policy: str | Policy = "fedavg",
    *,
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
        any_precision: take states in another precision too, such as half.

    Raises:
        UserError: no states, weights that do not match, an unknown policy, or a policy that does not apply to the
            model; values that are finite for each client but not combined.
        ValueError: a state that cannot be averaged (see `check_update`); the message names the client by its
            position.
    """
    reductions = rules(model, policy)
    shares = normalised_weights(states, weights)
    current = model.state_dict()
    for place, state in enumerate(states):
        check_update(current, state, reductions, client=str(place), any_precision=any_precision)
    return combine(current, reductions, states, shares)


def combine(
    current: State, reductions: Mapping[str, Reduction], states: Sequence[State], shares: Tensor
) -> dict[str, Tensor]:
    """Like `aggregate`, with checked states and shares, float64 (K,), that sum to 1.

    Raises:
        UserError: the result is not finite.
    """
    counted = [place for place, share in enumerate(shares.tolist()) if share > 0]
    states, shares = [states[place] for place in counted], shares[counted]
    combined = {
        name: _combine([state[name] for state in states], shares, reduction, current[name].dtype)
        if reduction in COMBINED
        else current[name].clone()
        for name, reduction in reductions.items()
    }
    for mean_name, var_name in pooled_pairs(reductions):
        means, variances = (torch.stack([state[name] for state in states]) for name in (mean_name, var_name))
        mean, var = pool(means, variances, shares)
        combined[mean_name] = mean.to(current[mean_name].dtype)
        combined[var_name] = var.to(current[var_name].dtype)
    if (first := not_finite(combined, current)) is not None:  # the variance of two means that are too far apart
        raise UserError(
            f"the clients' values are finite, but together '{first}' is too large for {combined[first].dtype}: lower "
            "the clients' learning rate."
        )
    return combined


def pool(means: Tensor, variances: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance, (C,) in float64, of the union of parts (K, C) with shares (K,)."""
    shares = shares.to(means.device)
    pooled = Moments(shares, means.double(), shares.unsqueeze(1) * variances.double()).pooled()
    return pooled.mean, pooled.var()


def pooled_pairs(reductions: Mapping[str, Reduction]) -> list[tuple[str, str]]:
    """Return the names of the running means and variances that are pooled."""
    variances = [name for name, reduction in reductions.items() if reduction == "pooled" and name.endswith(VARIANCE)]
    return [(name.removesuffix(VARIANCE) + "running_mean", name) for name in variances]


def check_update(
    current: State, state: State, reductions: Mapping[str, Reduction], client: str, *, any_precision: bool = False
) -> None:
    """Raise `ValueError`, with one sentence that names the client, if its update must not enter the global model.

    That is the case if an entry is missing, unknown, of another shape or type, or a negative variance, or has a value
    that is not finite where the global model's is. With `any_precision`, another type of the same kind (real,
    complex, whole) is taken. `current` is the global model's state, and `reductions` is what `rules` returns for it.
    """
    sent = {name for name, reduction in reductions.items() if reduction in SENT}
    if missing := sorted(sent - state.keys()):
        raise ValueError(f"client {client} sent no '{missing[0]}' ({len(missing)} entries are missing).")
    if strange := sorted(state.keys() - current.keys()):
        raise ValueError(f"client {client} sent '{strange[0]}', which the global model does not have.")
    for name in sorted(sent):
        value, own = state[name], current[name]
        if not isinstance(value, Tensor):
            raise ValueError(f"client {client} sent '{name}' as {type(value).__name__}: it must be a tensor.")
        fits = _kind(value.dtype) == _kind(own.dtype) if any_precision else value.dtype == own.dtype
        if value.shape != own.shape or not fits:
            raise ValueError(
                f"client {client} sent '{name}' as {value.dtype} of shape {tuple(value.shape)}: the global model has "
                f"{own.dtype} of shape {tuple(own.shape)}."
            )
    if (first := not_finite({name: state[name] for name in sorted(sent)}, current)) is not None:
        raise ValueError(f"client {client} sent '{first}' with values that are not finite.")
    for name in sorted(sent):
        if name.endswith(VARIANCE) and state[name].lt(0).any():
            raise ValueError(f"client {client} sent '{name}' with a negative variance.")


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
    return given / given.sum()


def _combine(values: Sequence[Tensor], shares: Tensor, reduction: Reduction, dtype: torch.dtype) -> Tensor:
    if reduction == "max":
        return _largest(torch.stack([value.to(dtype) for value in values]))
    stacked = torch.stack([value.to(wide(dtype)) for value in values])
    weighted = shares.to(stacked.device).view(-1, *[1] * values[0].dim()) * stacked
    return weighted.sum(0).to(dtype)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which values of a type are summed."""
    return torch.complex128 if dtype.is_complex else torch.float64


def _largest(stacked: Tensor) -> Tensor:
    """Return the maximum over the first dimension of whole numbers."""
    if stacked.dtype not in (torch.uint16, torch.uint32, torch.uint64):
        return stacked.amax(0)
    # PyTorch has no maximum of these types.
    found = np.asarray(stacked.cpu().numpy().max(0))
    return torch.from_numpy(found).to(stacked.device)
