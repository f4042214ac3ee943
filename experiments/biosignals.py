"""Does batch norm help a small 1-D CNN to read the state of a person whom it has never seen?

Leave one subject out: a network is trained on the physiological signals of seven persons, and tested on the eighth.
Each norm's learning rate is tuned on validation windows of persons who train, with two subjects left out in turn.

Speaks to: Giri et al. (arXiv 1610.01757): 62 people, 24 handcrafted features, leave one subject out; accuracy 0.86
           with batch norm in a 1-D CNN after 200 epochs, 0.69 for the best other classifier, as its abstract says.
           Its data are not public, so its numbers are not reproduced; this study asks the protocol's question: batch
           norm on or off, epoch by epoch.
Run:       syncnorm run experiments/biosignals.py [--quick]

The signals are GENERATED (see `syncnorm.data.embedded.biosignal`): nothing here says anything about people.
"""

from dataclasses import replace

from syncnorm.config import Data, Domains, Optim, Run
from syncnorm.study import Choice, Columns, Curve, Grid, History, LogUniform, Study, Tune

SUBJECTS = tuple(f"biosignal-{number:02d}" for number in range(1, 9))
LEFT_OUT = [(subject,) for subject in SUBJECTS]
LINE = ("norm", "adapt")

BASE = Run(
    data=Data("biosignal", validation=0.15),
    model="signal_cnn",
    world=Domains(domains=SUBJECTS, batch=32),
    optim=Optim(lr=0.05, epochs=12, schedule="constant"),
)

TUNE = Tune(
    {"lr": LogUniform(0.0003, 0.5)},
    own={"gn": {"norm.options.groups": Choice([2, 4, 8])}},
    per=("norm",),
    at={"unseen": LEFT_OUT[:2], "adapt": ["none"]},
    trials=8,
    seeds=2,
    halve=True,
    shared=False,
)

STUDY = Study(
    name="biosignals",
    question="Does batch norm help a small 1-D CNN to read the state of a person whom it has never seen?",
    base=BASE,
    vary={"norm": ["bn"], "unseen": LEFT_OUT, "adapt": ["none", "adabn"]},
    seeds=10,
    tune=TUNE,
    also=(Grid({"norm": ["none", "gn"], "unseen": LEFT_OUT}),),
    figures=(
        History(
            line="norm",
            metric="unseen_accuracy",
            mean_over=("unseen",),
            where={"adapt": "none"},
            title="Accuracy on the subject left out, epoch by epoch",
        ),
        History(
            line="norm",
            metric="seen_accuracy",
            mean_over=("unseen",),
            where={"adapt": "none"},
            title="Accuracy on other windows of the subjects seen, epoch by epoch",
        ),
        Columns(
            line=LINE,
            metrics=("accuracy", "accuracy_seen"),
            mean_over=("unseen",),
            title="After the last epoch: the subject left out, and those seen",
        ),
        Curve(x="unseen", line=LINE, title="Accuracy by the subject left out"),
    ),
    quick={
        "base": replace(BASE, optim=replace(BASE.optim, epochs=4)),
        "vary": {"norm": ["bn"], "unseen": LEFT_OUT[:3], "adapt": ["none", "adabn"]},
        "also": (Grid({"norm": ["none"], "unseen": LEFT_OUT[:3]}),),
        "seeds": 2,
        "tune": replace(TUNE, trials=2, seeds=1, shared=False),
    },
)
