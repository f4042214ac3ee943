"""How many unlabelled samples of a new user do a network's statistics need, and does training by user prepare it?

Activity recognition from wearable signals with a 1-D CNN. Sixteen persons, four of whom are left out of training at
a time; a stream of a left-out person's windows then sets the statistics: all at once (AdaBN), or step by step,
starting from the source's (online, with the source counted as 16 windows). Training mixes persons in a batch, or uses
batches of one person each, or mixes persons with separate statistics for each (domain_bn). The learning rate of each
way to train is tuned on validation windows of persons who train.

Speaks to: Mazankiewicz et al. (arXiv 2005.12178): batches of one user each in training, the new user's statistics
           estimated from the stream; 44 subjects, up to +14 %, median +4 %, as its abstract says. Its exact recursion
           was not readable, so the one here is a choice (`syncnorm.norms.OnlineBatchNorm`).
Run:       syncnorm run experiments/personalise.py [--quick]
           (on UCI HAR: experiments/personalise_har.py)

The signals are GENERATED (see `syncnorm.data.embedded.activity`): by construction, persons differ in properties that
a channel's statistics can remove (gain, offset) and in others that they cannot (placement, tempo, style, noise), so
the size of a gain compares methods, and says nothing about people.
"""

from collections.abc import Sequence
from dataclasses import replace

from syncnorm.config import Data, Domains, Optim, Run
from syncnorm.study import Choice, Columns, Curve, Grid, LogUniform, Plot, Study, Tune

LINE = ("norm", "batches", "adapt")
OVER = ("unseen",)
QUESTION = (
    "How many unlabelled samples of a new user do a network's statistics need, and does training by user prepare it?"
)


TUNE = Tune(
    {"lr": LogUniform(0.005, 0.5)},
    own={"gn": {"norm.options.groups": Choice([2, 4, 8])}},
    per=("norm", "batches"),
    trials=8,
    halve=True,
    shared=False,
)


def personalise(name: str, base: Run, folds: Sequence[tuple[str, ...]], samples: Sequence[int]) -> Study:
    """Return the study that leaves out each of `folds` once, and adapts to these numbers of `samples` per person."""

    def grid(
        norm: str,
        batches: str,
        adapt: Sequence[str],
        order: str = "shuffled",
        folds: Sequence[tuple[str, ...]] = folds,
    ) -> Grid:
        return Grid(
            {
                "norm": [norm],
                "batches": [batches],
                "unseen": folds,
                "adapt": adapt,
                "adapt_samples": samples,
                "test_order": [order],
            }
        )

    fold = {"unseen": [folds[0]], "adapt": ["none"], "adapt_samples": [samples[0]], "test_order": ["shuffled"]}
    ways, adapted = ["none", "adabn", "online"], ["adabn", "online"]
    return Study(
        name=name,
        question=QUESTION,
        base=base,
        vary=grid("bn", "mixed", ways).vary,
        seeds=6,
        tune=replace(TUNE, at=fold),
        also=(
            grid("bn", "one_domain", ways),
            grid("domain_bn", "mixed", ways),
            grid("gn", "mixed", ["none"]),
            grid("in", "mixed", ["none"]),
            grid("bn", "mixed", adapted, "sorted"),
            grid("bn", "one_domain", adapted, "sorted"),
        ),
        figures=plots(samples[-1]),
        quick={
            "base": replace(base, optim=replace(base.optim, epochs=3)),
            "vary": grid("bn", "mixed", ways, folds=folds[:1]).vary,
            "also": (grid("bn", "one_domain", adapted, folds=folds[:1]),),
            "seeds": 2,
            "tune": replace(TUNE, trials=2, seeds=1, at={**fold, "adapt": ["adabn"]}),
        },
    )


def plots(most: int) -> tuple[Plot, ...]:
    """Return the study's plots; `most` is the largest number of samples for an adaptation."""
    return (
        Curve(
            x="adapt_samples",
            line=LINE,
            mean_over=OVER,
            where={"test_order": "shuffled"},
            title="Accuracy on persons left out of training, by windows of theirs seen",
        ),
        Curve(
            x="adapt_samples",
            line=("adapt", "batches"),
            panel="test_order",
            mean_over=OVER,
            where={"norm": "bn", "adapt": ["adabn", "online"]},
            title="The same stream shuffled, and sorted by activity",
        ),
        Columns(
            line=LINE,
            panel="adapt_samples",
            metrics=("accuracy", "accuracy_seen"),
            mean_over=OVER,
            where={"test_order": "shuffled", "adapt_samples": [16, most]},
            title="Accuracy on persons left out, and on those seen",
        ),
    )


PERSONS = tuple(f"activity-{number:02d}" for number in range(1, 17))

STUDY = personalise(
    "personalise",
    Run(
        data=Data("activity", validation=0.15),
        model="signal_cnn",
        world=Domains(domains=PERSONS, batch=32, test_batch=16),
        optim=Optim(lr=0.05, epochs=8),
    ),
    folds=[PERSONS[start::4] for start in range(4)],
    samples=[1, 4, 16, 240],
)
