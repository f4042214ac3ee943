"""Analysis of variance: which factors of a study move a difference, and by how much."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

SEED = "seed"
RESIDUAL = "residual"


@dataclass(frozen=True)
class Term:
    """A factor, a pair of factors, the seeds, or the residual."""

    names: tuple[str, ...]
    df: int
    """Degrees of freedom."""
    squares: float
    """Sum of squares of type II: what the term explains beyond all terms that do not contain it."""
    share: float
    """`squares` divided by the total sum of squares around the mean (eta squared)."""
    f: float | None = None
    """Mean square divided by the residual's; None for the residual, or if nothing is left for it."""
    p: float | None = None
    """Probability of an F at least this large if the term had no effect."""


def variance_terms(
    values: Sequence[float], levels: Sequence[tuple[Any, ...]], seeds: Sequence[int], names: Sequence[str]
) -> list[Term]:
    """Return the analysis of variance of `values` over factors, pairs of factors, and seeds as blocks.

    The model is value = mean + main effects + effects of all pairs + effect of the seed + noise, fitted by least
    squares. A term's sum of squares is of type II (Langsrud 2003): the residual sum of squares without the term and
    without every term that contains it, minus the same with the term. In a balanced design these are the textbook
    sums of squares. Runs of one seed share data and initialisation, so seeds are blocks. F and p assume independent
    noise of equal variance; settings near an accuracy of 0 or 1 have less, so a p near a limit decides nothing.

    Args:
        values: the responses (n,).
        levels: each response's level of each factor.
        seeds: each response's seed (n,).
        names: the factors' names.
    """
    import numpy as np
    from scipy import stats

    y = np.asarray(values, dtype=np.float64)
    columns: dict[tuple[str, ...], list[Any]] = {
        (name,): [level[index] for level in levels] for index, name in enumerate(names)
    }
    columns = {key: column for key, column in columns.items() if len(set(column)) > 1}
    for a, b in combinations(list(columns), 2):
        columns[*a, *b] = list(zip(columns[a], columns[b], strict=True))
    if len(set(seeds)) > 1:
        columns[SEED,] = list(seeds)
    designs = {key: _indicators(column) for key, column in columns.items()}
    rest, rank = _residual(y, list(designs.values()))
    left = len(y) - rank
    total = float(np.square(y - y.mean()).sum())
    terms = []
    for key in designs:
        others = [design for other, design in designs.items() if not set(key) <= set(other)]
        without, rank_without = _residual(y, others)
        including, rank_including = _residual(y, [*others, designs[key]])
        df, squares = rank_including - rank_without, max(0.0, without - including)
        if df == 0:  # these levels never vary apart from other terms
            continue
        f = squares / df / (rest / left) if left and rest > 0 else None
        p = None if f is None else float(stats.f.sf(f, df, left))
        terms.append(Term(key, df, squares, squares / total if total else 0.0, f, p))
    if left:
        terms.append(Term((RESIDUAL,), left, rest, rest / total if total else 0.0))
    return terms


def _indicators(column: Sequence[Any]) -> "Matrix":
    """Return one column of 0 and 1 per level, (n, levels)."""
    import numpy as np

    places = {level: index for index, level in enumerate(dict.fromkeys(column))}
    return np.eye(len(places))[[places[level] for level in column]]


def _residual(y: "Matrix", designs: Sequence["Matrix"]) -> tuple[float, int]:
    """Return the residual sum of squares of the least-squares fit with a mean, and the rank of the design."""
    import numpy as np

    design = np.column_stack([np.ones(len(y)), *designs])
    found, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    return float(np.square(y - design @ found).sum()), int(rank)
