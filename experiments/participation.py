"""What becomes of batch norm that stays at home when few clients take part in a round?

Speaks to: an independent re-run of FedBN (github.com/surafel58/FedBN, PHASE2_STEP1C.md; Digits-Five, 20 clients, 30
           rounds, 10 % participation, 5 seeds): worst client 32.6 +- 22.6 % for FedBN, 64.9 +- 7.9 % for FedAvg, 64.2
           +- 11.7 % with local affine and shared statistics, and 77.2 +- 1.1 % with statistics re-estimated on each
           client's data under the final weights.
Run:       syncnorm run experiments/participation.py [--quick]

Twenty clients, four in each of five domains of digits, IID within a domain; each domain has digits of its own. The
learning rate is tuned on validation data for every method at every participation. The four corners of a table: gamma
and beta local or shared, running statistics local or shared. A client that is not sampled keeps its old entries while
the shared weights change; one that was never sampled has statistics 0 and 1. The remedy, also evaluated for every
run: running statistics re-estimated on the client's own images, without labels, under the final weights.
"""

from dataclasses import replace

from syncnorm.config import Clients, Data, Optim, Run
from syncnorm.study import Columns, Curve, Evaluations, Grid, LogUniform, Study, Tune

DOMAINS = ("digits", "digits-fonts", "digits-rotated", "digits-inverted", "digits-noisy")
METHODS = ["fedavg", "stats_shared", "silobn", "fedbn"]
PARTICIPATION = [0.1, 0.3, 1.0]
LINE = ("method", "unsampled")

BASE = Run(
    data=Data("digits", size=8, validation=0.15),
    model="small_cnn",
    world=Clients(count=20, rounds=30, batch=16, domains=DOMAINS, engine="cohort"),
    optim=Optim(lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0.0),
)

TUNE = Tune({"lr": LogUniform(0.01, 2.0)}, per=("method", "participation"), trials=8, halve=True, shared=False)

CORNERS = ("accuracy", "client_accuracy_worst", "reestimated_accuracy", "reestimated_accuracy_worst")
FIGURES = (
    Columns(
        line=LINE,
        metrics=CORNERS,
        panel="participation",
        title="Mean and worst client, as trained and with re-estimated statistics",
    ),
    Evaluations(
        x="participation",
        metrics=("accuracy", "reestimated_accuracy"),
        where={"method": "fedavg"},
        title="FedAvg with averaged statistics, and with those of each client's own images",
    ),
    Curve(
        x="participation",
        line=LINE,
        metric="client_accuracy_worst",
        title="Accuracy at the worst client",
    ),
    Curve(
        x="participation",
        line=LINE,
        metric="reestimated_accuracy_worst",
        title="Accuracy at the worst client, with re-estimated statistics",
    ),
    Curve(x="participation", line=LINE, title="Accuracy, mean over clients"),
    Columns(
        line="participation",
        metrics=("never_sampled", "staleness"),
        where={"method": "fedavg"},
        rivals=False,
        title="Clients that no round sampled, and rounds since the others were",
    ),
)

STUDY = Study(
    name="participation",
    question="What becomes of batch norm that stays at home when few clients take part in a round?",
    base=BASE,
    vary={"method": METHODS, "participation": PARTICIPATION},
    seeds=10,
    tune=TUNE,
    also=(Grid({"method": ["silobn", "fedbn"], "unsampled": ["average"], "participation": [0.1, 0.3]}),),
    figures=FIGURES,
    quick={
        "base": replace(BASE, world=replace(BASE.world, rounds=15)),
        "vary": {"method": METHODS, "participation": [0.1, 1.0]},
        "seeds": 2,
        "tune": replace(TUNE, trials=2, seeds=1),
        "also": (),
    },
)
