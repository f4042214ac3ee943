"""The kinds of plots: one file and one row here per kind. `register_plot` adds kinds from elsewhere."""

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, TypeVar

from syncnorm.errors import UserError
from syncnorm.registry import Registry, check_named
from syncnorm.study.plot import Plot
from syncnorm.study.report.plots.columns import Columns
from syncnorm.study.report.plots.curve import Curve
from syncnorm.study.report.plots.drift import Drift
from syncnorm.study.report.plots.effects import Effects
from syncnorm.study.report.plots.evaluations import Evaluations
from syncnorm.study.report.plots.gap import Gap
from syncnorm.study.report.plots.history import History
from syncnorm.study.report.plots.improvement import Improvement
from syncnorm.study.report.plots.profile import Profile
from syncnorm.study.report.plots.trade import Trade

__all__ = [
    "PLOTS",
    "Columns",
    "Curve",
    "Drift",
    "Effects",
    "Evaluations",
    "Gap",
    "History",
    "Improvement",
    "Profile",
    "Trade",
    "from_plain",
    "register_plot",
]

Kind = TypeVar("Kind", bound=type[Plot])

BUILT_IN: tuple[type[Plot], ...] = (
    Curve,
    History,
    Trade,
    Columns,
    Drift,
    Effects,
    Evaluations,
    Gap,
    Profile,
    Improvement,
)
PLOTS: Registry[type[Plot]] = Registry("plot", {plot.kind: plot for plot in BUILT_IN})
"""The kinds of plots, by their names in `study.json`."""


def register_plot(kind: str) -> Callable[[Kind], Kind]:
    """Return a class decorator that registers your own plot under a name, which `study.json` stores.

    A study file can use the plot immediately; an installed package registers it in a module named by its entry point
    in the group "syncnorm.plugins". This example shows how long runs took:

        from dataclasses import dataclass
        import syncnorm
        from syncnorm.study import Plot, View

        @syncnorm.register_plot("minutes")
        @dataclass(frozen=True)
        class Minutes(Plot):
            def collect(self, results):
                rows = [row for row in results.finished if self.fits(results.about.runs[row["run_id"]])]
                return MinutesView(name="minutes", title="Minutes a run", rows=rows, empty=not rows)

        @dataclass(frozen=True, kw_only=True)
        class MinutesView(View):
            rows: list
            def figure(self):
                from matplotlib.figure import Figure
                figure = Figure(figsize=(6, 3))
                figure.subplots().hist([row["seconds"] / 60 for row in self.rows])
                return figure

    Args:
        kind: a name that no other plot has.

    Raises:
        UserError: a name that is taken; a class that is not a plot, or not a frozen dataclass.
    """
    check_named(kind, "register_plot")

    def register(plot: Kind) -> Kind:
        if not (isinstance(plot, type) and issubclass(plot, Plot)):
            raise UserError(f"plot '{kind}' is {plot!r}: it must be a class derived from syncnorm.study.Plot.")
        if not is_dataclass(plot) or "__dataclass_fields__" not in plot.__dict__:
            raise UserError(
                f"plot '{kind}': write @dataclass(frozen=True) between @register_plot and class {plot.__name__}."
            )
        PLOTS.add(kind, plot)
        plot.kind = kind
        return plot

    return register


def from_plain(plain: dict[str, Any]) -> Plot:
    """Return the plot from the output of `as_plain`. Data without a kind are a curve, formerly the only kind.

    Raises:
        UserError: an unknown kind, or fields that this kind does not have.
    """
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
    }
    kind = values.pop("kind", "curve")
    try:
        return PLOTS[kind](**values)
    except TypeError as error:
        raise UserError(f"plots of kind '{kind}' do not have these fields: {', '.join(values)}.") from error
