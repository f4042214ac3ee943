"""The table of checks, in the order in which they run. A check is a function that yields findings, and a row."""

from __future__ import annotations

from collections.abc import Callable

from syncnorm.doctor.checks import (
    batches,
    deployment,
    federated,
    modes,
    optimiser,
    reach,
    samples,
    shards,
    statistics,
    structure,
)
from syncnorm.doctor.rows import NEEDS, Check, CheckFunction, Need
from syncnorm.errors import UserError, unknown
from syncnorm.registry import Registry, check_named

# fmt: off
CHECKS: Registry[Check] = Registry("check", {
    "left_in_training": Check(modes.left_in_training, ("model",)),
    "stays_in_training": Check(modes.stays_in_training, ("model", "input")),
    "depends_on_batch": Check(modes.depends_on_batch, ("model", "input")),
    "moves_in_evaluation": Check(modes.moves_in_evaluation, ("model", "input")),
    "frozen_but_moving": Check(modes.frozen_but_moving, ("model",)),
    "dropout_before": Check(modes.dropout_before, ("model", "input")),

    "not_finite": Check(statistics.not_finite),
    "negative_variance": Check(statistics.negative_variance),
    "zero_variance": Check(statistics.zero_variance),
    "never_updated": Check(statistics.never_updated),
    "averaged_counter": Check(statistics.averaged_counter),
    "contradicting_flag": Check(statistics.contradicting_flag, ("model",)),
    "odd_momentum": Check(statistics.odd_momentum, ("model",)),
    "odd_eps": Check(statistics.odd_eps, ("model",)),
    "misfitting_statistics": Check(statistics.misfitting_statistics, ("model", "input")),

    "few_values": Check(batches.few_values, ("model", "input", "batch_size")),
    "per_device_statistics": Check(batches.per_device_statistics, ("model", "input", "ranks")),
    "accumulated_statistics": Check(batches.accumulated_statistics, ("model", "input", "accumulate")),
    "counted_twice": Check(batches.counted_twice, ("model", "input")),
    "several_depths": Check(batches.several_depths, ("model", "input")),
    "unreached": Check(batches.unreached, ("model", "input")),
    "skewed_shards": Check(shards.skewed_shards, ("model", "shards")),
    "uneven_reach": Check(shards.uneven_reach, ("model", "shards")),
    "mixup_before": Check(samples.mixup_before, ("model", "input", "mixup")),
    "cutmix_before": Check(samples.cutmix_before, ("model", "input", "cutmix")),
    "depends_on_padding": Check(samples.depends_on_padding, ("model", "input", "padded")),

    "dead_bias": Check(structure.dead_bias, ("model", "input")),
    "dead_channels": Check(structure.dead_channels),
    "two_in_a_row": Check(structure.two_in_a_row, ("model", "input")),
    "after_sum": Check(structure.after_sum, ("model", "input")),
    "before_softmax": Check(structure.before_softmax, ("model", "input")),
    "small_groups": Check(structure.small_groups, ("model", "input")),

    "unlisted": Check(reach.unlisted, ("model", "input")),
    "unconvertible": Check(reach.unconvertible, ("model", "input")),

    "decayed": Check(optimiser.decayed, ("model", "optimizer")),
    "not_optimised": Check(optimiser.not_optimised, ("model", "optimizer")),

    "policy_without_effect": Check(federated.policy_without_effect, ("model", "policy")),
    "missed_by_name": Check(federated.missed_by_name, ("policy",)),
    "left_by_parameters": Check(federated.left_by_parameters, ("policy",)),
    "stepped_by_server": Check(federated.stepped_by_server, ("policy",)),
    "single_samples": Check(federated.single_samples, ("model", "policy")),

    "unfolded": Check(deployment.unfolded, ("model", "input", "deploy")),
})
# fmt: on
"""The checks by name; `syncnorm.register_check` adds to them."""


def register_check(name: str, *, needs: tuple[Need, ...] = ()) -> Callable[[CheckFunction], CheckFunction]:
    """Register a function as the check `name`: it takes a `Case` and yields a `Finding` for each thing that it finds.

        @syncnorm.register_check("wide_eps")
        def wide_eps(case):
            for name, layer in case.batch_norms.items():
                if layer.eps > 0.01:
                    yield Finding(name, f"eps is {layer.eps}", "write eps=1e-5")

    `needs` names what the check cannot do without: "input" (a batch or a shape), "batch_size", "ranks", "optimizer",
    ... (`NEEDS`). Where that is missing, the check is listed as skipped, with the reason.

    Raises:
        UserError: a name that is taken or invalid, an unknown need, or something that cannot be called.
    """
    check_named(name, "register_check")
    for need in needs:
        if need not in NEEDS:
            raise unknown("need of a check", str(need), NEEDS)

    def register(function: CheckFunction) -> CheckFunction:
        if not callable(function):
            raise UserError(f"check '{name}' is {function!r}: give a function of a case that yields findings.")
        CHECKS.add(name, Check(function, tuple(needs)))
        return function

    return register
