"""What the README and the manual show works as printed: code, commands, links, numbers.

The Python of `docs/extend.md`, `norms.md`, `policies.md` and `hostile.md` has tests of its own: `test_extend.py`,
`norms/test_norms_page.py`, `federated/test_own_methods.py` and `federated/test_hostile_page.py`.
"""

import copy
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.distributed as dist
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from PIL import Image
from torch import nn

import syncnorm
from syncnorm.commands.catalog import catalog
from syncnorm.commands.compare import PROG as COMPARE
from syncnorm.commands.compare import CompareOptions
from syncnorm.commands.doctor import PROG as DOCTOR
from syncnorm.commands.doctor import DoctorOptions
from syncnorm.commands.merge import PROG as MERGE
from syncnorm.commands.merge import MergeOptions
from syncnorm.commands.options import given_options, read_options
from syncnorm.commands.report import PROG, ReportOptions
from syncnorm.commands.run import run as run_command
from syncnorm.config import Run
from syncnorm.data import SOURCES, load
from syncnorm.errors import UserError
from syncnorm.federated.flower.wire import run_from_text
from syncnorm.study.plan.spec import expand
from syncnorm.study.plan.trials import plan_of
from syncnorm.study.report.plots.check import check_tuning
from syncnorm.study.run.forecast import forecast
from syncnorm.worlds import check

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
"""Their code and commands are run by `test_tutorials.py`."""
PYTHON = {
    "README.md",
    "layers.md",
    "doctor.md",
    "tools.md",
    "studies.md",
    "tuning.md",
    "data.md",
    "federated.md",
    "domains.md",
}
"""The pages whose Python blocks are run here."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.S)


def run_block(text: str, names: dict[str, Any]) -> None:
    exec(compile(text, "a block of the manual", "exec"), names)


@pytest.fixture
def asked(monkeypatch: Any) -> list[Run]:
    """Collect the runs that blocks train; none is trained, but each is checked as before a training."""
    runs: list[Run] = []

    def train(run: Run) -> SimpleNamespace:
        check(run)
        runs.append(run)
        return SimpleNamespace(metrics={}, details={"samples_by_rank": {}})

    monkeypatch.setattr("syncnorm.federated.simulate", train)
    monkeypatch.setattr("syncnorm.domains.fit", train)
    return runs


@pytest.fixture
def names(monkeypatch: Any) -> dict[str, Any]:
    """Return what a block may take for granted: a model and its data, as the text around it says."""
    import syncnorm.doctor  # it takes the class from there as it is imported, so before that is replaced

    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", lambda module: SimpleNamespace(module=module))
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    x = torch.randn(6, 1, 4, 4)
    ids = torch.tensor([0, 1, 2, 0, 1, 2])
    return {"torch": torch, "syncnorm": syncnorm, "model": model, "x": x, "batches": [x], "ids": ids}


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """Make this process the one rank of torch.distributed."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_every_page_with_python_is_run() -> None:
    elsewhere = {"extend.md", "norms.md", "policies.md", "hostile.md", "howto.md"}
    assert {page.name for page in PAGES if blocks(page, "python")} == PYTHON | elsewhere


def test_the_three_examples_of_the_readme(names: dict[str, Any], asked: list[Run]) -> None:
    layer, study, federated = blocks(README, "python")
    run_block(layer, names)
    assert type(names["model"][1]) is nn.BatchNorm2d
    run_block(study, names)
    assert len(expand(names["STUDY"])) == 45
    run_block(federated, names)
    assert [run.world.method for run in asked] == ["fedbn"]


def test_doctor(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    from syncnorm.doctor import CHECKS

    diagnose, callback, fix = blocks(DOCS / "doctor.md", "python")
    run_block(diagnose, names)
    assert "per_device_statistics 1 warning measured each of 8 devices" in capsys.readouterr().out
    run_block(callback, names)
    run_block(fix, names | {"batches": [names["x"]]})
    assert "per_device_statistics: converted to" in capsys.readouterr().out
    table = (DOCS / "doctor.md").read_text().partition("## What it checks")[2]
    listed = {name for row in re.findall(r"^\| (`.*?) \|", table, flags=re.M) for name in re.findall(r"`(\w+)`", row)}
    assert listed == set(CHECKS)


@pytest.mark.filterwarnings("ignore:Starting from v1.9.0")  # Lightning, of loggers that are not installed
def test_layers(names: dict[str, Any], one_rank: None) -> None:
    convert, some, synchronise, uneven, lightning, shard, accumulate, domains, masks, freeze, rest = blocks(
        DOCS / "layers.md", "python"
    )
    before = names["model"].eval()(names["x"])
    run_block(convert, names)
    assert torch.equal(names["model"](names["x"]), before)
    parts = {"stem": nn.BatchNorm2d(4), "layer1": nn.Sequential(nn.BatchNorm2d(128)), "head": nn.BatchNorm1d(128)}
    chosen = {**names, "model": nn.ModuleDict(parts)}
    run_block(some, chosen)
    assert [type(layer).__name__ for layer in chosen["model"].values()] == [
        "FrozenBatchNorm",
        "Sequential",
        "GroupNorm",
    ]
    run_block(synchronise, names)
    assert type(names["model"][1]) is nn.BatchNorm2d
    wrapped = nn.parallel.distributed.DistributedDataParallel(copy.deepcopy(names["model"]))
    run_block(uneven, {**names, "model": wrapped, "loader": [(names["x"], None)]})
    run_block(shard, {**names, "model": copy.deepcopy(names["model"])})
    run_block(lightning, names)  # Lightning refuses a plugin that it cannot use
    run_block(accumulate, {**names, "model": copy.deepcopy(names["model"]).train()})
    run_block(domains, names)
    run_block(masks, {**names, "m": torch.ones(6, 2, 2, dtype=torch.bool)})
    run_block(freeze, {**names, "model": nn.ModuleDict({"backbone": nn.BatchNorm2d(4), "head": nn.BatchNorm1d(4)})})
    run_block(rest, names)
    assert names["logits"].shape == (6, 3)
    assert not syncnorm.batch_norms(names["model"])


def test_tools(names: dict[str, Any]) -> None:
    (around,) = blocks(DOCS / "tools.md", "python")
    names["model"] = syncnorm.convert(names["model"], "ghost_bn", virtual_ranks=2)
    run_block(around, names)
    assert type(names["model"][1]) is syncnorm.SyncBatchNorm


def test_domains(names: dict[str, Any], asked: list[Run]) -> None:
    layers, world, ranks = blocks(DOCS / "domains.md", "python")
    run_block(layers, names)
    assert names["logits"].shape == (6, 3)
    assert type(names["model"][1]) is nn.BatchNorm2d
    run_block(world, names)
    assert [run.world.adapt for run in asked] == ["adabn"]
    run_block(ranks, names)
    assert asked[1].world.ranks == 3


def test_federated(names: dict[str, Any], asked: list[Run]) -> None:
    simulation, ranks, server, client, step, privacy, masked = blocks(DOCS / "federated.md", "python")
    run_block(simulation, names)
    assert [run.world.method for run in asked] == ["fedbn"]
    run_block(ranks, names)
    check(names["run"])
    assert names["run"].world.engine == "torchrun"
    trained = []
    names["client_app"] = ClientApp()

    @names["client_app"].train()
    def train(message: Message, context: Context) -> Message:
        trained.append(context.node_id)
        metrics = MetricRecord({"num-examples": 3})
        return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)

    run_block(server, names)
    assert len(trained) == 3 * 5

    def answer(*arguments: Any, **options: Any) -> Message:
        reply: Message = syncnorm.federated.reply_with(*arguments, **options)
        answers.append(set(ArrayRecord.to_torch_state_dict(reply.content["arrays"])))
        return reply

    answers: list[set[str]] = []
    run_block(client, names)
    names["reply_with"] = answer
    run_block(server.replace("fedavg_pooled", "fedbn"), names)
    assert len(answers) == 3 * 5
    assert all(sent == {"0.weight", "0.bias", "3.weight", "3.bias"} for sent in answers)

    for block, told in ((step, "fedavg_pooled"), (privacy, "silobn")):
        run_block(block, names)
        messages = names["strategy"].configure_train(
            1, ArrayRecord(names["model"].state_dict()), ConfigRecord(), names["CohortGrid"](names["client_app"], 10)
        )
        assert {message.content["config"]["norm-policy"] for message in messages} == {told}

    run_block(masked, names)

    @names["masked_client"].train()
    def masked_train(message: Message, context: Context) -> Message:
        model = names["model"]
        names["load_global"](model, message, context)
        with torch.no_grad():
            model[0].weight += 0.25
        return answer(model, message, context, {"num-examples": 3})

    before = names["masked"].arrays.to_torch_state_dict()["0.weight"]
    names["CohortGrid"](names["masked_client"], num_clients=3).run_app(names["masked_server"])
    after = names["masked"].arrays.to_torch_state_dict()["0.weight"]
    torch.testing.assert_close(after, before + 3 * 0.25, rtol=0, atol=0.05)


def test_a_study_of_the_manual(tmp_path: Path, monkeypatch: Any) -> None:
    names: dict[str, Any] = {}
    run_block(*blocks(DOCS / "studies.md", "python"), names)
    assert len(expand(names["STUDY"])) == 45
    monkeypatch.chdir(tmp_path)
    printed = forecast(names["STUDY"], Path("out/mine"))
    assert f"The dry run prints:\n\n```\n{printed}\n```" in (DOCS / "studies.md").read_text()


def test_a_tuned_study_of_the_manual() -> None:
    names: dict[str, Any] = {}
    run_block(*blocks(DOCS / "tuning.md", "python"), names)
    plan = plan_of(names["STUDY"])
    check_tuning(plan)
    roles = Counter(role for one in plan.known({}).values() for role in one.roles)
    assert roles == {"tuning": 32, "shared": 30}
    assert plan.ahead({}) == 30


def test_data_of_ones_own(monkeypatch: Any, tmp_path: Path) -> None:
    for name in ("_items", "_sources"):
        monkeypatch.setattr(SOURCES, name, dict(getattr(SOURCES, name)))
    monkeypatch.chdir(tmp_path)
    tables = [
        [f"{age},{age % 2},{age % 10}" for age in range(400)],
        [f"{age},{age % 2},{hospital}" for age in range(100) for hospital in ("north", "east", "west")],
    ]
    names: dict[str, Any] = {}
    stream, *runs, at_sites, function = blocks(DOCS / "data.md", "python")
    for block, lines in zip(runs, tables, strict=True):
        Path("patients.csv").write_text("\n".join(["age,outcome,hospital", *lines]))
        run_block(block, names)
        check(names["run"])
    run_block(at_sites, names)
    with pytest.raises(UserError, match=r"the data lie at their sites: give data\.path"):
        check(names["run"])
    run_block(stream, names)
    rows = {"image": [Image.fromarray(np.full((8, 8), 10 * row, np.uint8)) for row in range(20)]}
    table = datasets.Dataset.from_dict({**rows, "label": [0, 1] * 10})
    table.cast_column("image", datasets.Image()).to_parquet("rows/train.parquet")
    assert len(load("streamed", path=str(tmp_path / "rows"), on_disk=True).train_y) == 16
    run_block(function, names)
    data = load("wards", options={"samples": 80})
    assert len(data.train_y) + len(data.test_y) == 80
    assert data.natural
    assert len(data.natural.names) == 4
    assert data.class_names == ("well", "ill")


def commands(page: Path) -> Iterator[tuple[list[str], int | None]]:
    """Yield each command of a page's shell blocks as words, with the number of runs that its comment promises."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                promised = re.search(r"#.*?(\d+) runs", line)
                yield words, int(promised[1]) if promised else None


def dry_run(words: list[str], *more: str) -> None:
    """Read the options of `syncnorm run` and expand the study, without training."""
    file, *options = words
    file = file if Path(file).exists() else str(ROOT / file)
    if "--help" in options:
        with pytest.raises(SystemExit) as ended:
            run_command([file, *options])
        assert ended.value.code == 0
    else:
        assert run_command([file, *options, *(one for one in (*more, "--dry-run") if one not in options)]) == 0


def try_command(words: list[str], *more: str) -> None:
    """Do as much of a command as costs nothing; one that is not known here fails. `more`: options of a study."""
    while re.fullmatch(r"[A-Z_]+=\S+", words[0]):
        words = words[1:]
    match words:
        case ["make", target, *_]:
            assert f"\n{target}:" in (ROOT / "Makefile").read_text(), target
        case ["syncnorm", "run", *rest]:
            dry_run(rest, *more)
        case ["syncnorm", "list", *kinds]:
            assert catalog(kinds) == 0
        case ["syncnorm", "compare", _, _, *options]:
            read_options(CompareOptions(), given_options(options, COMPARE), COMPARE)
        case ["syncnorm", "merge", _, _, *options]:
            read_options(MergeOptions(), given_options(options, MERGE), MERGE)
        case ["syncnorm", "report", _, *options]:
            read_options(ReportOptions(), given_options(options, PROG), PROG)
        case ["syncnorm", "doctor", _, *options]:
            read_options(DoctorOptions(), given_options(options, DOCTOR), DOCTOR)
        case ["sh", "launch/flower.sh", text]:
            run_from_text(text)
        case ["sh" | "sbatch", *rest]:
            script = next(word for word in rest if word.startswith("launch/"))
            assert (ROOT / script).is_file()
            dry_run(rest[[word.endswith(".py") for word in rest].index(True) :], *more)
        case ["python", script]:
            assert (ROOT / script).is_file()
        case ["pip", "install", what]:
            extra = re.fullmatch(r"\.(?:\[(\w+)\])?", what)
            assert extra
            assert not extra[1] or f"\n{extra[1]} = [" in (ROOT / "pyproject.toml").read_text()
        case [".", _]:
            pass
        case _:
            pytest.fail(f"no check for the command {words}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands(page: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / "mine.py").write_text(blocks(DOCS / "studies.md", "python")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for words, promised in commands(page):
        try_command(words, *(["--seeds=1"] if promised is None else []))  # fewer runs to expand
        printed = capsys.readouterr().out
        assert promised is None or f": {promised} runs, 0 finished" in printed, printed


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as hosted Markdown makes them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", [*PAGES, *TUTORIALS], ids=lambda page: page.name)
def test_links(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text):
        found = page.parent / target if target else page
        assert found.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in headings(found), f"{page.name}: {target}#{anchor}"


def test_numbers_of_names() -> None:
    """The pages of norms and policies are held to their tables by tests of their own."""
    text = README.read_text()
    for page, what in (("norms", "norms"), ("policies", "policies")):
        tables = (DOCS / f"{page}.md").read_text().partition("\n## Algorithms")[0]
        rows = set(re.findall(r"^\| `\w+`", tables, flags=re.M))  # a norm has two rows
        assert f"[the {len(rows)} {what}](docs/{page}.md)" in text
    assert len(text.splitlines()) <= 90
