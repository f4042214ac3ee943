"""Trained weights on disk give the model and the accuracy of the row back."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch

import syncnorm
from syncnorm.config import Clients, Data, Devices, Domains, Execution, Norm, Optim, Run, run_from, run_id
from syncnorm.data import load
from syncnorm.domains.measure import measure
from syncnorm.domains.prepare import prepare
from syncnorm.errors import UserError
from syncnorm.federated.federation import Federation
from syncnorm.federated.server.scores import score, uniform, weighted
from syncnorm.study import Study
from syncnorm.study.rows import read
from syncnorm.study.run.runner import run_study
from syncnorm.training.evaluation import evaluate
from syncnorm.training.saved import load_model
from syncnorm.worlds import fit

DEVICES = Run(
    data=Data("digits", train_limit=96, test_limit=60),
    model_options={"width": 4},
    world=Devices(ranks=2, per_device_batch=8, skew=100.0),
    optim=Optim(epochs=2),
)
DOMAINS = replace(
    DEVICES,
    data=Data("few", train_limit=48, test_limit=40),
    world=Domains(("digits", "digits-inverted", "digits-noisy"), unseen=("digits-noisy",), batch=16),
)
CLIENTS = replace(DEVICES, data=Data("digits", train_limit=200, test_limit=60), world=Clients(count=3, rounds=3))


@pytest.mark.parametrize("norm", ["bn", "sync_bn", "brn", "cbn", "ws", "weight_norm", "spectral_norm", "gn", "none"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_devices(norm: str, precision: str, tmp_path: Path) -> None:
    run = replace(DEVICES, norm=Norm(norm), precision=precision)  # type: ignore[arg-type]
    result = fit(run, Execution(model=tmp_path))
    loaded = load_model(tmp_path)
    data = load("digits", train_limit=96, test_limit=60).to(torch.device("cpu"), getattr(torch, precision))
    assert evaluate(loaded.model, data.test_x, data.test_y) == (result.metrics["accuracy"], result.metrics["loss"])
    assert loaded.accuracy == result.metrics["accuracy"]
    assert (loaded.run, loaded.evaluated_by) == (run_from(result.config), result.evaluated_by)
    assert not loaded.model.training


@pytest.mark.parametrize("whose", ["rank0", "pooled"])
def test_the_statistics_are_those_that_evaluated(whose: str, tmp_path: Path) -> None:
    assert isinstance(DEVICES.world, Devices)
    result = fit(replace(DEVICES, world=replace(DEVICES.world, buffers=whose)), Execution(model=tmp_path))  # type: ignore[arg-type]
    data = load("digits", train_limit=96, test_limit=60).to(torch.device("cpu"), torch.float32)
    accuracy, loss = evaluate(load_model(tmp_path).model, data.test_x, data.test_y)
    assert (accuracy, loss) == (result.metrics[f"accuracy_{whose}"], result.metrics["loss"])


@pytest.mark.parametrize("adapt", ["none", "adabn", "pooled"])
def test_domains(adapt: str, tmp_path: Path) -> None:
    assert isinstance(DOMAINS.world, Domains)
    run = replace(DOMAINS, norm=Norm("domain_bn"), world=replace(DOMAINS.world, adapt=adapt))  # type: ignore[arg-type]
    result = fit(run, Execution(model=tmp_path))
    loaded = load_model(tmp_path)
    prepared = prepare(run, torch.device("cpu"))
    assert isinstance(run.world, Domains)
    for index, name in enumerate(run.world.domains):
        accuracy, _ = measure(run, prepared, loaded.model, index, run.world.adapt)
        assert accuracy == result.metrics[f"accuracy_{name}"]
    assert loaded.accuracy == result.metrics["accuracy_digits-noisy"]


@pytest.mark.parametrize("method", ["fedavg", "fedbn", "silobn", "hbn", "fbn"])
def test_clients(method: str, tmp_path: Path) -> None:
    assert isinstance(CLIENTS.world, Clients)
    run = replace(CLIENTS, world=replace(CLIENTS.world, method=method, engine="loop", skew="dirichlet_by_class"))
    result = fit(run, Execution(model=tmp_path))
    loaded = load_model(tmp_path)
    federation = Federation(run, torch.device("cpu"))
    state = dict((*loaded.model.named_parameters(), *loaded.model.named_buffers()))
    scores = [score(federation, client, {**state, **loaded.clients.get(client, {})}) for client in range(3)]
    assert fmean(one.accuracy for one in scores) == loaded.accuracy == result.metrics["accuracy"]
    if "global_accuracy" in result.metrics:
        x, y = federation.population.global_test
        found = weighted(loaded.model, x, y, uniform(len(y)))
        assert found == (result.metrics["global_accuracy"], result.metrics["global_loss"])
    else:
        assert set(loaded.clients) == {0, 1, 2}
    assert "tensor(" not in repr(loaded)


def test_a_study_keeps_the_model_of_every_run(tmp_path: Path) -> None:
    study = Study("small", "?", base=DEVICES, vary={"norm": ["bn", "gn"]}, seeds=1)
    run_study(study, tmp_path, jobs=1, wandb="off", save_models=True)
    data = load("digits", train_limit=96, test_limit=60).to(torch.device("cpu"), torch.float32)
    rows = read(tmp_path).finished
    assert len(rows) == 2
    for row in rows:
        loaded = syncnorm.load_run(tmp_path, row["run_id"])
        assert evaluate(loaded.model, data.test_x, data.test_y)[0] == loaded.accuracy == row["metrics"]["accuracy"]
        assert run_id(loaded.run) == row["run_id"]
    with pytest.raises(UserError, match=r"no model of run 'abc' \(it has 2, the first of run \w+\): train the run"):
        syncnorm.load_run(tmp_path, "abc")


def test_mistakes_have_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"has no model of run 'abc' \(it has none\)"):
        syncnorm.load_run(tmp_path, "abc")
    with pytest.raises(UserError, match="holds no trained model"):
        load_model(tmp_path)
    flower = replace(CLIENTS, world=Clients(count=3, rounds=1, engine="flower"))
    with pytest.raises(UserError, match="the engine flower saves no models"):
        fit(flower, Execution(model=tmp_path))
    fit(DEVICES, Execution(model=tmp_path / "model"))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["run"]["model_options"]["width"] = 8
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="does not fit the model 'small_cnn'"):
        load_model(tmp_path / "model")
    monkeypatch.setattr("syncnorm.training.saved.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package safetensors"):
        fit(DEVICES, Execution(model=tmp_path))
