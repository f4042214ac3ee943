"""Does FedBN's order hold on Office-Caltech10, in its own protocol, with a network that trains on a CPU?

Speaks to: Li et al. (FedBN, arXiv 2102.07623): AlexNet with batch norm at 256x256, 300 rounds; published averages
           over the four domains 62.7 % for FedAvg and 70.5 % for FedBN (as transcribed by others).
Run:       syncnorm run experiments/fedbn_office.py --data.path FOLDER [--quick]

FOLDER holds amazon, caltech10, dslr and webcam, each as a parquet file or an image folder. The protocol: one client
per domain; training data cut to half of the smallest domain's, two fifths of each domain for validation; SGD with
learning rate 1e-2 and no momentum, batch 32, one local epoch per round, equal client weights; the round with the best
mean validation accuracy is reported. Differences from the paper: the network is four strided 5x5 convolutions with 32
to 128 channels at 64x64 instead of AlexNet at 256x256; 80 rounds instead of 300; shifts and flips instead of flips
and rotations; a random fifth of each domain is its test set. FedProx penalises the norm itself with mu = 1e-3, as the
authors' code for this data does.
"""

from dataclasses import replace

from syncnorm.config import Clients, Data, Optim, Run
from syncnorm.study import Columns, Grid, History, Study

DOMAINS = ("amazon", "caltech10", "dslr", "webcam")
LINE = ("method", "norm", "algorithm")
BY_DOMAIN = tuple(f"accuracy_{domain}" for domain in DOMAINS)

BASE = Run(
    data=Data("office_caltech10", size=64, augment="shift_flip", validation=0.4),
    model="strided_cnn",
    world=Clients(
        count=4,
        rounds=80,
        batch=32,
        domains=DOMAINS,
        equal_size=0.5,
        weighting="uniform",
        engine="cohort",
    ),
    optim=Optim(lr=0.01, momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0.0),
    select="best",
)

FEDPROX = {"algorithm": ["fedprox"], "algorithm_options": [{"mu": 0.001, "squared": False}]}
OTHERS = (Grid({"norm": ["gn"]}), Grid(FEDPROX))

STUDY = Study(
    name="fedbn_office",
    question="Does FedBN's order hold on Office-Caltech10, in its own protocol, with a network that trains on a CPU?",
    base=BASE,
    vary={"method": ["fedavg", "fedavg_pooled", "silobn", "fedbn"]},
    seeds=5,
    also=OTHERS,
    figures=(
        Columns(line=LINE, metrics=("accuracy", *BY_DOMAIN), title="Accuracy on each domain's own test images"),
        Columns(
            line=LINE,
            metrics=("accuracy", "reestimated_accuracy", "global_accuracy"),
            title="As trained, with re-estimated statistics, and one model on all domains",
        ),
        Columns(line=LINE, metrics=("round",), title="The round that validation chose"),
        History(line=LINE, metric="validation_accuracy", title="Validation accuracy, mean over domains"),
    ),
    quick={
        "base": replace(BASE, data=replace(BASE.data, size=32), world=replace(BASE.world, rounds=15)),
        "vary": {"method": ["fedavg", "fedbn"]},
        "seeds": 2,
        "also": (),
    },
)
