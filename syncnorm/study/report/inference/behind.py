"""What lies behind a point of a chart: the test samples of its runs, and its runs at chance."""

from collections.abc import Iterable, Mapping, Sequence

from syncnorm.samples import details_on, samples_of
from syncnorm.study.report.inference.sampling import Clusters, clusters_of
from syncnorm.study.rows import Row, at_chance


def samples_behind(seeds: Mapping[int, Sequence[Row]], wanted: Iterable[int], metric: str) -> dict[int, Clusters]:
    """Return the test samples of those seeds whose rows all have their scores."""
    found = {
        seed: [samples_of(details_on(row.get("details", {}), metric) or {}) for row in seeds.get(seed, ())]
        for seed in wanted
    }
    return {
        seed: clusters_of([one for one in some if one]) for seed, some in found.items() if some and None not in some
    }


def guesses(seeds: Mapping[int, Sequence[Row]], metric: str) -> tuple[list[int], int]:
    """Return the seeds of runs that are no better than a guess, and the number of runs that can say."""
    said = [
        (seed, one) for seed, rows in seeds.items() for row in rows if (one := at_chance(row, metric)) is not None
    ]
    return [seed for seed, guessed in said if guessed], len(said)
