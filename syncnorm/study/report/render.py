"""What a report shows of an exhibit: its tables and its figure, whatever its kind."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from syncnorm.study.exhibits import Columns, Drift, Exhibit, Gap, Profile
from syncnorm.study.report.drift import draw_drift, drift_table, maps_of
from syncnorm.study.report.figures import draw
from syncnorm.study.report.gap import draw_gap, gap_table, shares_of
from syncnorm.study.report.points import gather
from syncnorm.study.report.profile import draw_profile, profile_table, profiles_of
from syncnorm.study.report.tables import Table, tables_of
from syncnorm.study.rows import Results


@dataclass(frozen=True)
class Shown:
    """An exhibit with its rows."""

    name: str
    """Of its files."""
    number: int
    """Among the exhibits of its study, from 1."""
    title: str
    panels: int
    tables: list[Table]
    drawing: Callable[[], Figure] | None
    """Draws its figure, if it has one."""
    empty: bool
    """Whether no run that has finished is in it."""


def show(exhibit: Exhibit, results: Results) -> Shown:
    """Collect the rows of an exhibit of the study."""
    if isinstance(exhibit, Drift):
        maps = maps_of(exhibit, results)
        tables = [drift_table(maps)] if maps.values else []
        drawn = partial(draw_drift, maps)
        return Shown(maps.name, maps.number, maps.title, len(maps.panels), tables, drawn, not maps.values)
    drawing: Callable[[], Figure] | None
    if isinstance(exhibit, Gap):
        shares = shares_of(exhibit, results)
        points, tables, drawing = shares.points, [gap_table(shares)], partial(draw_gap, shares)
    elif isinstance(exhibit, Profile):
        profiles = profiles_of(exhibit, results)
        points, tables, drawing = profiles.points, [profile_table(profiles)], partial(draw_profile, profiles)
    else:
        points = gather(exhibit, results)
        tables, drawing = tables_of(points), None if isinstance(exhibit, Columns) else partial(draw, points)
    return Shown(points.name, points.number, points.title, len(points.panels), tables, drawing, not points.values)
