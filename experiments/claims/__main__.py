"""`python -m experiments.claims`: measure what is missing, and write the page of all claims."""

import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from experiments.claims.batches import STUDIES
from experiments.claims.catalogue import CLAIMS, EXPERIMENTS
from experiments.claims.claim import VERDICTS, Judged, judge
from experiments.claims.evidence import Evidence, Experiment, Rows, Setting
from experiments.claims.networks import BN, DROPOUT, NONE, STUDY, line
from experiments.claims.page import write_pages
from syncnorm.commands.options import given_options, read_options, show_help
from syncnorm.errors import UserError
from syncnorm.progress import counted, span
from syncnorm.study.plan.load import load_study
from syncnorm.study.plan.override import quicker
from syncnorm.study.run.runner import run_study

PROG = "python -m experiments.claims"
ROOT = Path(__file__).parents[2]
FEW = 2
"""Seeds of the quick form."""
LINES = {"none": NONE, "bn": BN, "none dropout": line("none", DROPOUT)}
"""The lines of the study whose chosen rates experiments need."""


@dataclass(frozen=True)
class Options:
    """Measure every claim about batch norm that is not measured yet, and write index.html and README.md.

    Started again, it goes on where it stopped: rows are kept as long as the code behind them is the same. Claims
    about whose samples share statistics read the rows of studies in results/.
    """

    out: Path = ROOT / "results" / "claims"
    """Folder of rows and pages. The study of networks lies beside it."""
    quick: bool = False
    """A small form with two seeds, in out/claims-quick: about a minute. It resolves nothing that needs training."""
    only_page: bool = False
    """Measure nothing: write the pages from the rows that are there."""


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    if set(arguments) & {"-h", "--help"}:
        show_help(Options(), PROG)
    options = read_options(Options(), given_options(arguments, PROG), PROG)
    out = options.out
    if options.quick and out == Options.out:
        out = Path("out") / "claims-quick"
    networks = out.with_name(out.name.replace("claims", STUDY) if "claims" in out.name else f"{out.name}-{STUDY}")
    if not options.only_page:
        train(networks, options.quick)
    evidence = Evidence({}, {name: ROOT / "results" / name for name in STUDIES} | {STUDY: networks})
    setting = Setting(chosen_rates(evidence), options.quick)
    if not options.only_page:
        measure(EXPERIMENTS, setting, Rows(out))
    judged = judged_from(Rows(out), setting, evidence)
    page = write_pages(out, judged, Rows(out).all(), evidence_of(Rows(out), setting, evidence), options.quick)
    print(summary(judged), page, sep="\n", flush=True)
    return 0


def train(folder: Path, quick: bool) -> None:
    """Train what the study of networks lacks."""
    study = load_study(str(ROOT / "experiments" / f"{STUDY}.py"))
    run_study(quicker(study) if quick else study, folder, wandb="off", command=f"{PROG}{' --quick' * quick}")


def chosen_rates(evidence: Evidence) -> dict[str, float]:
    """Return the learning rate that the study chose for each line that has rows."""
    rows = evidence.study(STUDY)
    found = {}
    for name, fields in LINES.items():
        row = next(iter(rows.rows(**fields).values()), None) if rows else None
        if row is not None:
            found[name] = float(row["config"]["optim"]["lr"])
    return found


def measure(experiments: tuple[Experiment, ...], setting: Setting, rows: Rows) -> None:
    """Measure what has no row yet, and append a row after each."""
    done = [row["key"] for row in rows.all()]
    todo = []
    for experiment in experiments:
        if missing := set(experiment.rates) - set(setting.rates):
            print(f"{experiment.name}: left out, the study has no rate of {', '.join(sorted(missing))}", flush=True)
            continue
        seeds = range(min(experiment.seeds, FEW) if setting.quick else experiment.seeds)
        keys = [experiment.key(seed, setting) for seed in seeds]
        todo += [(experiment, key) for key in keys if key not in done]
    begin = time.monotonic()
    with rows.writing() as append:
        for number, (experiment, key) in enumerate(todo, start=1):
            start = time.monotonic()
            append(key, experiment.run(key["seed"], setting), time.monotonic() - start)
            passed = time.monotonic() - begin
            left = span(passed / number * (len(todo) - number))
            print(f"{number}/{len(todo)} {experiment.name}, seed {key['seed']}: about {left} left", flush=True)


def evidence_of(rows: Rows, setting: Setting, studies: Evidence) -> Evidence:
    """Return the evidence of the rows whose code and setting are those of now."""
    found: dict[str, dict[int, dict[str, object]]] = {}
    stored = rows.all()
    for experiment in EXPERIMENTS:
        if set(experiment.rates) - set(setting.rates):
            continue
        for row in stored:
            key = row["key"]
            if key["experiment"] == experiment.name and key == experiment.key(key["seed"], setting):
                found.setdefault(experiment.name, {})[key["seed"]] = row["values"]
    return Evidence(found, studies.studies)


def judged_from(rows: Rows, setting: Setting, studies: Evidence) -> list[Judged]:
    """Return the verdict on every claim, from rows alone."""
    evidence = evidence_of(rows, setting, studies)
    return judge(CLAIMS, {claim.name: claim.measure(evidence) for claim in CLAIMS})


def summary(judged: list[Judged]) -> str:
    """Return e.g. "40 claims: 20 holds, 12 does not hold here"."""
    counts = Counter(one.verdict for one in judged)
    return f"{counted(len(judged), 'claim')}: " + ", ".join(
        f"{counts[word]} {word}" for word in VERDICTS if counts[word]
    )


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"{PROG}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
