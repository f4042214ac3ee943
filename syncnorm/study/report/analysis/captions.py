"""What a table's caption says of its intervals: which sources of spread they cover, and how comparisons come out."""

from statistics import median

from syncnorm.study.report.analysis.points import Points
from syncnorm.study.table import MINUS

SURVIVES = "†"
"""Mark of a difference that survives Holm's correction."""


def spread_words(points: Points) -> str:
    """Say how wide intervals over test samples, and over seeds and test samples, are beside those over seeds.

    Empty for charts without a metric `accuracy`, and for those of a single seed.
    """
    if not points.guessed or points.usual_n() < 2:
        return ""
    widths: list[tuple[float, float, float]] = []
    for at, ((low, high), both) in points.sampled.items():
        summary = points.summary(*at)
        if both and summary and summary.half_width is not None:
            widths.append((summary.half_width, (high - low) / 2, both.half_width))
    if not widths:
        return "It covers what a seed redraws; rows without scores of test samples have no interval over these. "
    over_seeds, over_tests, both_ways = (f"{100 * median(some):.1f}" for some in zip(*widths, strict=True))
    return (
        f"Of accuracies, the median ± is {over_seeds}; over test samples (a bootstrap by original) it is "
        f"{over_tests}, and over seeds and test samples {both_ways} (the CSV beside this table has all three). "
    )


def comparisons_words(points: Points) -> str:
    """Say how many comparisons a table of differences makes, how many survive Holm's correction, and what pairing
    does."""
    found = [one for one in points.comparisons.values() if one.p is not None]
    if not found:
        return ""
    survive = sum(one.survives for one in found)
    covers = "seeds and test samples" if all(one.over_both for one in found) else "seeds"
    if covers == "seeds" and any(one.over_both for one in found):
        covers = "seeds, and test samples where rows have their scores"
    count = f"{len(found)} comparison{'s' if len(found) > 1 else ''}"
    words = (
        f"{SURVIVES}: not zero after Holm's correction for {count} (adjusted p < 0.05; p over {covers}): "
        f"{survive or 'none'}. "
    )
    correlations = [one.correlation for one in found if one.correlation is not None]
    if not correlations:
        return words
    low, middle, high = (
        f"{value:.2f}".replace("-", MINUS) for value in (min(correlations), median(correlations), max(correlations))
    )
    span = f"median {middle}, from {low} to {high}" if len(correlations) > 1 else middle
    narrowed = sum(value > 0 for value in correlations)
    return (
        f"{words}Correlation with {points.lines[0]} over seeds: {span}; pairing narrows {narrowed} of "
        f"{len(correlations)} differences. "
    )
