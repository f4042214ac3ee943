"""Mistakes at surgery: each gets one sentence, and leaves the model as it was."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ranks import ok, run_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from syncnorm import (
    batch_norms,
    convert,
    domain_embeddings,
    domain_ensemble,
    fold,
    fold_report,
    layer_moments,
    recalibrate,
    revert,
    tent,
)
from syncnorm.errors import UserError

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(64, 5))
    model(X * 2 + 1)
    return model.eval()


OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "convert": lambda model: convert(model, "gn"),
    "revert": revert,
    "fold": fold,
    "fold_report": fold_report,
    "recalibrate": lambda model: recalibrate(model, [X]),
    "layer_moments": lambda model: layer_moments(model, [X]),
    "tent": tent,
    "domain_ensemble": lambda model: domain_ensemble(model, X),
    "domain_embeddings": domain_embeddings,
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("model", "what"),
    [(None, "a NoneType"), ("resnet18", "a str"), ([nn.BatchNorm2d(3)], "a list"), (nn.ReLU, "the class ReLU")],
)
def test_what_is_no_model(operation: str, model: Any, what: str) -> None:
    with pytest.raises(UserError, match=f"the model is {what}: give a torch.nn.Module"):
        OPERATIONS[operation](model)


def scripted() -> nn.Module:
    return torch.jit.script(network())


def traced() -> nn.Module:
    return nn.Sequential(torch.jit.trace(network(), X))


def quantised() -> nn.Module:
    quantisation = pytest.importorskip("torch.ao.quantization")
    model = nn.Sequential(quantisation.QuantStub(), network(), quantisation.DeQuantStub()).eval()
    model.qconfig = quantisation.get_default_qconfig("fbgemm")
    prepared = quantisation.prepare(model)
    prepared(X)
    return quantisation.convert(prepared)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("build", "said"),
    [(scripted, "compiled by TorchScript"), (traced, "compiled by TorchS"), (quantised, "quantised")],
)
def test_what_torch_has_sealed(operation: str, build: Callable[[], nn.Module], said: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build()
    before = model(X)
    with pytest.raises(UserError, match=rf"layer '.*1' is {said}.*: give the model from before that"):
        OPERATIONS[operation](model)
    assert torch.equal(model(X), before)


@pytest.mark.parametrize("operation", ["convert", "revert", "fold", "tent"])
def test_a_model_in_ddp_keeps_its_layers(operation: str) -> None:
    def work(rank: int) -> list[type]:
        model = DistributedDataParallel(network())
        with pytest.raises(UserError, match="wrapped in DistributedDataParallel"):
            OPERATIONS[operation](model)
        return [type(module) for module in model.module]

    assert ok(run_ranks(1, work)) == [[type(module) for module in network()]]


@pytest.mark.parametrize("compile_it", [lambda model: torch.compile(model, backend="eager"), nn.Module.compile])
def test_compiled_models(compile_it: Callable[..., Any]) -> None:
    """What was compiled before is measured, swapped, folded and adapted like what was not."""

    def compiled() -> Any:
        model = network()
        if compile_it is nn.Module.compile:
            model.compile(backend="eager")
        else:
            model = compile_it(model)
        model(X)
        return model

    def same(found: Tensor, right: Tensor) -> None:
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)

    same(recalibrate(compiled(), [X])(X), recalibrate(network(), [X])(X))
    same(convert(compiled(), "gn")(X), convert(network(), "gn")(X))
    same(revert(convert(compiled(), "gn"))(X), network()(X))
    same(tent(compiled())(X), tent(network())(X))
    model = fold(compiled())
    assert not batch_norms(model)
    same(model(X), network()(X))


def test_options_of_the_wrong_kind_leave_the_model_untouched() -> None:
    model = network()
    before, types = copy.deepcopy(model.state_dict()), [type(module) for module in model]
    domains = convert(network(), "domain_bn", domains=2)
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: convert(model, None), "unknown norm 'None'"),  # type: ignore[arg-type]
        (lambda: convert(model, ["gn"]), "unknown norm '['gn']'"),  # type: ignore[arg-type]
        (lambda: convert(model, "gn", num_features=3), "norm 'gn': unknown option 'num_features'"),
        (lambda: convert(nn.Sequential(), "gn", group=3), "norm 'gn': unknown option 'group'"),
        (lambda: convert(model, "gn", eps="small"), "eps is 'small': it must be a number, at least 0"),
        (lambda: convert(model, "gn", eps=-1), "eps is -1: it must be a number, at least 0"),
        (lambda: convert(model, "sync_bn", momentum=2), "momentum is 2: it must be a number from 0 to 1, or None"),
        (lambda: convert(model, "sync_bn", affine=3), "affine is 3: it must be True or False"),
        (lambda: convert(model, "gn", device="nowhere"), "norm 'gn' for 4 channels with "),
        (lambda: revert(domains, domain="a"), "cannot be reverted to domain 'a': its layers know the ids 0 to 1"),  # type: ignore[arg-type]
        (lambda: revert(domains, domain=1.0), "cannot be reverted to domain 1.0"),  # type: ignore[arg-type]
        (lambda: revert(domains, domain=True), "cannot be reverted to domain True"),
        (lambda: recalibrate(model, X), "the batches are a Tensor: give a list of them, or a loader; of one, [x]"),
        (lambda: recalibrate(model, 3), "the batches are a int"),  # type: ignore[arg-type]
        (lambda: recalibrate(model, [torch.tensor(1.0)]), "a batch to measure batch norms with is a single number"),
        (
            lambda: recalibrate(model, [X, X.double()]),
            "the model fails on a batch to measure batch norms with",
        ),
        (
            lambda: recalibrate(model, [X, X[0]]),
            "the model fails on a batch to measure batch norms",
        ),
        (lambda: recalibrate(model, [X, X * float("nan")]), "layer '1' got inputs whose mean or variance is not a"),
        (lambda: recalibrate(model, [X], None), "unknown normaliser 'None'"),  # type: ignore[arg-type]
        (lambda: recalibrate(model, [X], "batch", ["population"]), "unknown estimator '['population']'"),  # type: ignore[arg-type]
    ]
    for call, sentence in calls:
        with pytest.raises(UserError) as caught:
            call()
        assert sentence in str(caught.value)
    assert [type(module) for module in model] == types
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert type(domains[1]).__name__ == "DomainBatchNorm"


def test_a_model_built_in_inference_mode_is_recalibrated() -> None:
    with torch.inference_mode():
        model = network()
    right = recalibrate(network(), [X])
    assert torch.equal(recalibrate(model, [X])[1].running_var, right[1].running_var)
    right.train()(X).sum().backward()  # and one that was not stays one to train
    assert right[1].weight.grad is not None
