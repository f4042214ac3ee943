"""The `syncnorm` command: what it changes in a study, what it prints, its exit codes and sentences."""

import io
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from syncnorm import cli
from syncnorm.commands import run as run_command
from syncnorm.config import Clients, Run
from syncnorm.study.plan.spec import Study, expand
from syncnorm.study.rows import read
from syncnorm.study.run.runner import run_study

EXPERIMENT = '''
"""Does it hold?"""
from syncnorm.config import Devices, Run
from syncnorm.study import Curve, Grid, Study

STUDY = Study(
    name="asked",
    question="Does it hold?",
    base=Run(world=Devices(global_batch=8)),
    vary={"norm": ["bn", "gn"], "per_device_batch": [2, 4]},
    seeds=3,
    also=(Grid({"skew": [100.0]}, seeds=2),),
    figures=(Curve(x="per_device_batch", line="norm"),),
    quick={"seeds": 1},
)
'''


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment file, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent / "study")
    path = tmp_path / "asked.py"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Study, Path]]:
    """Catch studies in place of running them."""
    caught: list[tuple[Study, Path]] = []

    def catch(study: Study, out: Path, **options: Any) -> None:
        caught.append((study, out))

    monkeypatch.setattr(run_command, "run_study", catch)
    monkeypatch.setattr(run_command, "show", lambda directory, results: 0)
    return caught


def syncnorm(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["syncnorm", *arguments])
    return cli.main()


def changed(studies: list[tuple[Study, Path]], monkeypatch: pytest.MonkeyPatch, *options: str) -> list[Run]:
    """Return the runs that `syncnorm run asked.py` with these options would make."""
    assert syncnorm(monkeypatch, "run", "asked.py", *options) == 0
    return expand(studies[-1][0])


def test_a_study_from_its_file_to_its_report(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_command, "run_study", partial(run_study, trainer="fake_fit"))
    assert syncnorm(monkeypatch, "run", "asked.py", "--wandb", "off", "--seeds", "2") == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("10/10 runs, 0 failed, ")
    table = said.out.splitlines()
    assert table[1].startswith("Accuracy (%)")
    assert [line.split()[0] for line in table[3:5]] == ["bn", "gn"]
    assert table[-2:] == ["out/asked/report.html", "out/asked/runs.jsonl"]
    assert read("out/asked").about.command == "syncnorm run asked.py --wandb off --seeds 2"

    page = Path("out/asked/report.html")
    page.unlink()
    assert syncnorm(monkeypatch, "report", "out/asked") == 0
    assert page.is_file()
    assert capsys.readouterr().out.splitlines() == table


def test_failed_runs_are_told_and_make_the_exit_code_1(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment.write_text(EXPERIMENT.replace("base=Run(", 'base=Run(model_options={"fault": "mistake"}, '))
    monkeypatch.setattr(run_command, "run_study", partial(run_study, trainer="fake_fit"))
    assert syncnorm(monkeypatch, "run", "asked.py", "--wandb", "off", "--quick") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "6 of 6 runs failed, the first with: the model cannot do that: choose another."


def test_options_change_every_run(
    experiment: Path, studies: list[tuple[Study, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = "--data.name cifar10 --data.path ../data --model resnet20 --optim.epochs 3 --world.buffers pooled"
    runs = changed(studies, monkeypatch, *options.split())
    assert len(runs) == 3 * 4 + 2
    for run in runs:
        assert (run.data.name, run.data.path, run.model) == ("cifar10", "../data", "resnet20")
        assert (run.optim.epochs, run.world.buffers) == (3, "pooled")


def test_vary_seeds_quick_engine_and_out(
    experiment: Path, studies: list[tuple[Study, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = "--vary norm=ln per-device-batch=1,8 skew=0,50 --seeds 1"
    runs = changed(studies, monkeypatch, *options.split())
    assert [(run.norm.name, run.world.per_device_batch, run.world.skew) for run in runs] == [
        ("ln", 1, 0.0), ("ln", 1, 50.0), ("ln", 8, 0.0), ("ln", 8, 50.0)
    ]  # fmt: skip
    same = "--vary norm=ln --vary per-device-batch=1,8 --vary skew=0,50 --seeds 1"
    assert changed(studies, monkeypatch, *same.split()) == runs
    runs = changed(studies, monkeypatch, *["--vary", "lr=0.1,0.2", "--first-seed", "7", "--seeds", "1"])
    assert {run.seed for run in runs} == {7}
    assert sorted((run.world.skew, run.optim.lr) for run in runs)[-2:] == [(100.0, 0.1), (100.0, 0.2)]
    assert studies[-1][1] == Path("out/asked")
    assert len(changed(studies, monkeypatch, "--quick")) == 4 + 2
    assert (studies[-1][0].name, studies[-1][1]) == ("asked-quick", Path("out/asked-quick"))
    runs = changed(studies, monkeypatch, "--engine", "torchrun", "--out", "elsewhere")
    assert {run.world.engine for run in runs} == {"torchrun"}
    assert studies[-1][1] == Path("elsewhere")


CLIENTS = """
from syncnorm.config import Clients, Run
from syncnorm.study import Study

STUDY = Study("sites", "Does it hold?", Run(world=Clients(rounds=7)), {"method": ["fedavg", "fedbn"]}, seeds=1)
"""


@pytest.fixture
def sites(experiment: Path) -> None:
    """An experiment of clients, in the working directory."""
    experiment.with_name("sites.py").write_text(CLIENTS)


def test_help_of_a_study_of_clients_shows_their_options(
    sites: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        syncnorm(monkeypatch, "run", "sites.py", "--help")
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--world.rounds INT Number of rounds. (default: 7)" in text
    assert "--world.domains [STR [STR ...]]" in text
    assert "global-batch" not in text
    assert "subcommand" not in text


def test_options_of_clients_change_every_run(
    sites: None, studies: list[tuple[Study, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = "--world.count 3 --world.domains digits digits-photo --world.keep-momentum --engine loop"
    assert syncnorm(monkeypatch, "run", "sites.py", *options.split()) == 0
    runs = expand(studies[-1][0])
    domains = ("digits", "digits-photo")
    expected = Clients(rounds=7, count=3, domains=domains, keep_momentum=True, engine="loop")
    assert [run.world for run in runs] == [expected, replace(expected, method="fedbn")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--world.round 3", "unknown option '--world.round': did you mean '--world.rounds'?"),
        ("--world.per-device-batch 3", "unknown option '--world.per-device-batch'"),
        ("--world.method fedbn", "--world.method would set what the study varies: write --vary world.method=VALUE"),
        ("--optim.epochs 3", "clients train in rounds: write --world.rounds N in place of --optim.epochs."),
        ("--engine virtual", "no run of study 'sites' has an engine 'virtual': those of clients have auto, cohort"),
        ("--vary engine=virtual", "unknown world.engine 'virtual'"),
        ("--vary participation=half", "--vary participation: 'half' is not a number."),
    ],
)
def test_mistakes_about_clients_get_one_sentence(
    arguments: str,
    sentence: str,
    sites: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert syncnorm(monkeypatch, "run", "sites.py", *arguments.split()) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"syncnorm: {sentence}")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("run asked.py --engine cohort", "no run of study 'asked' has an engine 'cohort': those of devices have"),
        (
            "rn asked.py",
            "unknown command 'rn': did you mean 'run'? Known: compare, doctor, list, merge, report, run.",
        ),
        ("run", "write the experiment file first: syncnorm run EXPERIMENT.py [options]."),
        ("run --quick asked.py", "write the experiment file first: syncnorm run EXPERIMENT.py [options]."),
        ("run nowhere.py", "there is no experiment file nowhere.py."),
        ("run asked.py --dat.name x", "unknown option '--dat.name': did you mean '--data.name'?"),
        ("run asked.py --quik", "unknown option '--quik': did you mean '--quick'?"),
        ("run asked.py again", "'again' belongs to no option: see syncnorm run EXPERIMENT.py --help."),
        ("run asked.py --vary nrm=bn", "unknown field of a run 'nrm': did you mean 'norm'?"),
        ("run asked.py --vary", "--vary needs a field and its values, such as norm=bn,gn."),
        ("run asked.py --vary engine=torch", "unknown world.engine 'torch': did you mean 'torchrun'?"),
        ("run asked.py --vary path=a,b", "'path' is not part of what names a run"),
        ("run asked.py --vary skew=x", "--vary skew: 'x' is not a number."),
        ("run asked.py --norm.name gn", "--norm.name would set what the study varies: write --vary norm=VALUE"),
        ("run asked.py --seed 3", "a study runs several seeds: write --first-seed K for the first, --seeds N"),
        ("run asked.py --lr 0.1", "unknown option '--lr': write --optim.lr."),
        ("run asked.py --optim.lr high", "--optim.lr: 'high' is not a number."),
        ("run asked.py --optim.lr", "--optim.lr needs a value."),
        ("run asked.py --optim.lr 1 2", "--optim.lr needs one value, not 1 2."),
        ("run asked.py --optim.lr 1 --optim.lr 2", "--optim.lr is there twice: write it once."),
        ("run asked.py --optim.name sdg", "unknown --optim.name 'sdg': did you mean 'sgd'?"),
        ("run asked.py --seeds many", "--seeds: 'many' is not a whole number."),
        ("run asked.py --wandb on", "unknown --wandb 'on': did you mean 'online'?"),
        ("run asked.py --engine tochrun", "unknown --engine 'tochrun': did you mean 'torchrun'?"),
        ("run asked.py --first-seed -1", "study 'asked' has first_seed -1: it must be at least 0."),
        ("run asked.py --quick 3", "'3' belongs to no option: see syncnorm run EXPERIMENT.py --help."),
        ("run asked.py --model-options.width 3", "unknown option '--model-options.width'"),
        ("list nrom", "unknown kind of name 'nrom': did you mean 'norm'?"),
        ("report", "write the results folder first: syncnorm report DIR."),
        ("run asked.py --seeds 0", "study 'asked' has 0 seeds: it needs at least 1."),
        ("run asked.py --jobs 0", "jobs is 0: it must be at least 1."),
        ("run asked.py --out asked.py", "asked.py is not a folder: choose another --out."),
        ("run asked.py --out asked.py/out", "cannot write results to asked.py/out: Not a directory; choose"),
        ("run asked.py --out .", ". is not empty and not a results folder: choose another --out."),
        ("report nowhere", "nowhere has no study.json: give the --out folder of a `syncnorm run`."),
    ],
)
def test_mistakes_get_one_sentence_and_code_2(
    arguments: str,
    sentence: str,
    experiment: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert syncnorm(monkeypatch, *arguments.split()) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"syncnorm: {sentence}")
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\nSTUDY = (", "asked.py, line 2: '(' was never closed."),
        ("import nothing_here\n", "asked.py, line 1: ModuleNotFoundError: No module named 'nothing_here'"),
        ("\n\ndef f():\n    return 1 / 0\nf()\n", "asked.py, line 4: ZeroDivisionError: division by zero"),
        (
            "from syncnorm.study import *\nSTUDY = Study('s', '?', None, {})\n",
            "asked.py, line 2: base is None: it must be a Run.",
        ),
        ("STUDYY = 3\n", "asked.py defines no STUDY: write STUDY = Study(...) with syncnorm.study.Study."),
        ("STUDY = 3\n", "asked.py defines no STUDY: write STUDY = Study(...) with syncnorm.study.Study."),
    ],
)
def test_a_broken_experiment_file_gets_one_sentence_with_its_line(
    text: str,
    sentence: str,
    experiment: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    experiment.write_text(text)
    assert syncnorm(monkeypatch, "run", "asked.py") == 2
    assert capsys.readouterr().err == f"syncnorm: {sentence}\n"


def test_what_lies_beside_the_experiment_can_be_imported(
    experiment: Path, studies: list[tuple[Study, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (experiment.parent / "my_own_models.py").write_text("NAME = 'my_own_models:net'")
    text = EXPERIMENT.replace("base=Run(", "base=Run(model=NAME, ")
    experiment.write_text("from my_own_models import NAME\n" + text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert changed(studies, monkeypatch)[0].model == "my_own_models:net"


def test_an_interrupt_says_how_to_go_on(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_command, "run_study", interrupted)
    assert syncnorm(monkeypatch, "run", "asked.py") == 130
    assert capsys.readouterr().err == "interrupted: finished runs are kept; run the same command again to resume.\n"


def test_help_shows_the_defaults_of_the_study(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        syncnorm(monkeypatch, "run", "asked.py", "--help")
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--world.global-batch {None}|INT Samples per step on all devices together. (default: 8)" in text
    assert "--vary" in text
    assert "--seed " not in text, "it would be refused"


def test_help_is_there_at_once() -> None:
    code = (
        "import sys; sys.argv = ['syncnorm', '--help']; from syncnorm.cli import main; assert main() == 0;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'matplotlib', 'scipy', 'wandb')))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0
    assert "syncnorm run EXPERIMENT.py" in ended.stdout


def test_the_module_is_the_command() -> None:
    ended = subprocess.run([sys.executable, "-m", "syncnorm", "runn"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert (
        ended.stderr
        == "syncnorm: unknown command 'runn': did you mean 'run'? Known: compare, doctor, list, merge, report, run.\n"
    )


def test_without_its_packages_the_command_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['tyro'] = None; sys.argv = ['syncnorm', 'run', 'a.py'];"
        "from syncnorm.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "needs the package 'tyro'" in done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--vary", "norm=bn,gnn"], "unknown norm 'gnn'"),
        (["--model", "resnet19"], "unknown model 'resnet19'"),
        (["--jobs", "0"], "jobs is 0: it must be at least 1."),
        (["--checkpoint-every", "nan"], "checkpoint_every is nan"),
    ],
)
def test_a_dry_run_refuses_what_a_run_would(
    experiment: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    sentence: str,
) -> None:
    assert syncnorm(monkeypatch, "run", "asked.py", "--dry-run", *options) == 2
    assert sentence in capsys.readouterr().err


def test_a_dry_run_refuses_a_plot_of_a_metric_that_no_run_has(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment.write_text(EXPERIMENT.replace('line="norm"', 'line="norm", metric="acuracy"'))
    assert syncnorm(monkeypatch, "run", "asked.py", "--dry-run") == 2
    assert "unknown metric 'acuracy': did you mean 'accuracy'?" in capsys.readouterr().err


def test_a_terminal_that_lacks_a_sign_ends_nothing(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert syncnorm(monkeypatch, "run", "asked.py", "--dry-run", "--out", "résultats") == 0
    terminal.flush()
    assert b"results: r?sultats" in terminal.buffer.getvalue()  # type: ignore[attr-defined]
    assert capsys.readouterr().err == ""


def test_a_warning_of_ours_is_a_sentence_without_its_place_in_the_source() -> None:
    program = """
import sys, warnings
from syncnorm import cli
sys.argv[1:] = ["--version"]
cli.main()
warnings.warn_explicit("layer 'a' has groups of 2 values", UserWarning, cli.__file__, 1)
warnings.warn_explicit("not ours", UserWarning, "mine.py", 3)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    first, *others = done.stderr.splitlines()
    assert first == "syncnorm: layer 'a' has groups of 2 values"
    assert others[0] == "mine.py:3: UserWarning: not ours"
