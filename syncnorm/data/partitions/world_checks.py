"""Checks of a configuration of clients, before any data is loaded."""

from math import isfinite

from syncnorm.checks import check_fraction
from syncnorm.config import RESAMPLED, Clients, Data
from syncnorm.data.partitions.methods import METHODS, default_options
from syncnorm.errors import UserError, unknown


def check_world(world: Clients, data: Data) -> None:
    """Raise `UserError` for settings that are unknown, out of range or inconsistent."""
    for name, value, holds, rule in (
        ("count", world.count, world.count >= 1, "at least 1"),
        ("held_out", world.held_out, world.held_out >= 0, "0 or more"),
        ("noise", world.noise, isfinite(world.noise) and world.noise >= 0, "0 or more"),
        ("equal_size", world.equal_size, 0 <= world.equal_size <= 1, "from 0 to 1"),
    ):
        if not holds:
            raise UserError(f"world.{name} is {value}: it must be {rule}.")
    check_fraction(data)
    if world.equal_size + data.validation > 1 + 1e-9:
        raise UserError(
            f"world.equal_size {world.equal_size:g} and data.validation {data.validation:g} are more than the "
            "smallest client has: together they must be at most 1."
        )
    for name, domains, holders in (
        ("domains", world.domains, ("count", world.count)),
        ("unseen", world.unseen, ("held_out", world.held_out)),
    ):
        for domain in domains:
            if domains.count(domain) > 1:
                raise UserError(f"world.{name} has '{domain}' twice: name each domain once.")
        if len(domains) > holders[1]:
            raise UserError(
                f"world.{name} names {len(domains)} of them but world.{holders[0]} is {holders[1]}: each needs a "
                f"client, so set {holders[0]} to {len(domains)} or more."
            )
    _check_skew(world)


def _check_skew(world: Clients) -> None:
    if world.skew not in (*METHODS, RESAMPLED):
        raise unknown("skew", world.skew, (*METHODS, RESAMPLED))
    if "alpha" in world.skew_options:
        raise UserError("alpha stands in world.skew_options: write it as world.alpha.")
    dirichlet = [*(method for method in METHODS if "alpha" in default_options(method)), RESAMPLED]
    if world.alpha is not None and world.skew not in dirichlet:
        raise UserError(
            f"world.alpha is {world.alpha} but the skew '{world.skew}' has no such option: leave alpha out (on the "
            f"command line: --world.alpha None), or choose {', '.join(dirichlet[:-1])} or {dirichlet[-1]}."
        )
    if world.noise and world.skew == RESAMPLED:
        raise UserError(
            f"world.noise is {world.noise:g} but clients of the skew {RESAMPLED} share images, and an image has one "
            "level of noise: leave noise out, or choose another skew."
        )
