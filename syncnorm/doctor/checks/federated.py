"""Federated learning: what a client's code or a server would do to the batch norms of this model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from syncnorm.doctor.case import Case
from syncnorm.doctor.finding import Finding
from syncnorm.doctor.words import some
from syncnorm.errors import UserError
from syncnorm.federated.policies import batch_norm_entries, policy_named, rules

SERVER_STEPS = {"fedadam": 0.1, "fedyogi": 0.01, "fedadagrad": 0.1, "fedavgm": None, "fedopt": None}
"""Algorithms whose server takes a step of an optimiser; of adaptive ones, Flower's default size of a step (eta)."""


def policy_without_effect(case: Case) -> Iterator[Finding]:
    """A batch-norm policy that changes nothing on this model, or cannot be applied to it."""
    assert case.policy is not None
    try:
        rules(case.model, case.policy)
    except UserError as error:
        what, _, remedy = str(error).rstrip(".").rpartition(": ")
        yield Finding("", what, remedy, "error")
        return
    policy = policy_named(case.policy)
    kept = any(part.startswith("running") for part in batch_norm_entries(case.model).values())
    about = policy.affine == "shared" and (policy.statistics, policy.statistics_source) != ("average", "ema")
    if about and not kept:
        yield Finding(
            "",
            f"{case.policy} is about running statistics, and no batch norm of the model keeps any: it does what "
            "fedavg does",
            "build the batch norms with track_running_stats=True, or choose fedavg",
            "error",
        )


def missed_by_name(case: Case) -> Iterator[Finding]:
    """A batch norm that a rule such as `"bn" in name` misses."""
    for name in case.batch_norms:
        if "bn" not in name:
            yield Finding(
                name,
                f"a rule such as '\"bn\" in name' misses it: {_missed(case)} of {len(case.batch_norms)} batch norms",
                "find batch norms by type: syncnorm.batch_norms(model), or a policy of syncnorm.federated",
                "note",
            )


def left_by_parameters(case: Case) -> Iterator[Finding]:
    """Statistics that `model.parameters()` leaves behind."""
    buffers = [
        (name, buffer)
        for name, layer in case.batch_norms.items()
        for buffer in layer.buffers(recurse=False)
        if buffer.is_floating_point()
    ]
    if buffers:
        values = sum(buffer.numel() for _, buffer in buffers)
        yield Finding(
            "",
            f"model.parameters() leaves {len(buffers)} running means and variances ({values} values) of "
            f"{len({name for name, _ in buffers})} batch norms behind: a server that averages parameters alone keeps "
            "those of its own start, or of one client",
            "send model.state_dict(), and let the policy say what happens to statistics",
            "note",
        )


def stepped_by_server(case: Case) -> Iterator[Finding]:
    """A server optimiser that would step running variances and counters as if they were weights."""
    name = (case.algorithm or "").lower()
    variances = [
        layer.running_var.detach().double().flatten()
        for layer in case.batch_norms.values()
        if isinstance(getattr(layer, "running_var", None), Tensor)
    ]
    if name not in SERVER_STEPS or not variances:
        return
    eta, every = SERVER_STEPS[name], torch.cat(variances)
    cost = ""
    if eta is not None:
        cost = (
            f"a first step has about the size eta ({eta:g} in Flower) in every entry: it can bring "
            f"{int((every <= eta).sum())} of {len(every)} variances to 0 or below"
        )
    yield Finding(
        "",
        f"the server of {name} steps every entry that it is given: {len(every)} running variances would be stepped "
        "as weights, and whole-number counters would become fractions",
        "step trained parameters alone, as syncnorm's algorithms do; in Flower: class A(NormFedAvg, FedAdam)",
        "warning",
        "certain",
        cost,
    )


def single_samples(case: Case) -> Iterator[Finding]:
    """Clients whose last batch has one sample."""
    if case.batch_size is None or not case.client_sizes or not case.batch_norms:
        return
    size = case.batch_size
    clients = [client for client, count in enumerate(case.client_sizes) if count % size == 1 or size == 1]
    if not clients:
        return
    refused = []
    if not case.lacks(("input",)):
        count = case.given.count
        refused = [call.name for call in case.training.of("batch") if call.by_batch and call.values == count]
    listed = [f"client {client}" for client in clients]
    yield Finding(
        refused[0] if refused else "",
        f"{len(clients)} of {len(case.client_sizes)} clients ({some(listed)}) end their epoch with a batch of one "
        f"sample, at batch size {size}"
        + (f": {len(refused)} batch norms then get one value a channel, and PyTorch raises" if refused else ""),
        "drop the last incomplete batch where a client has another one, or choose another batch size",
        "error" if refused else "warning",
    )


def _missed(case: Case) -> int:
    return sum("bn" not in name for name in case.batch_norms)
