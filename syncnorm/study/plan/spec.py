"""The definition of a study (a base run, varied fields, seeds), and its expansion into runs."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from itertools import product
from typing import Any

from syncnorm.checks import check_types
from syncnorm.config import WORLD_CONFIGS, Norm, Run, default_of, run_id
from syncnorm.errors import UserError, unknown
from syncnorm.study.plot import Plot
from syncnorm.study.rows import Agreement
from syncnorm.study.tuning.tune import Tune

KIND = "world.kind"
"""Name of the world in a row's config: a key of `WORLDS`."""
WORLDS = {world.kind: world for world in WORLD_CONFIGS}


Axes = dict[str, Sequence[Any]]
"""Values of fields of a run, by field."""


@dataclass(frozen=True)
class Grid:
    """Additional runs of a study: other fields vary, with the same base. `seeds` None means the study's.

    If a grid varies `world`, its other field names refer to the first of its worlds.
    """

    vary: dict[str, Sequence[Any]]
    seeds: int | None = None


@dataclass(frozen=True)
class Study:
    """A set of runs that answers one question.

    `vary` maps a field of `Run` (its name if that is unique, else a dotted path) to its values. The runs are the
    product of all values and the seeds first_seed .. first_seed + seeds - 1. `quick` holds the fields of this class
    that `--quick` replaces.

    A field of the wrong type raises `UserError`.
    """

    name: str
    question: str
    base: Run
    vary: dict[str, Sequence[Any]]
    seeds: int = 5
    also: tuple[Grid, ...] = ()
    figures: tuple[Plot, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    quick: Mapping[str, Any] = field(default_factory=dict)
    first_seed: int = 0
    baselines: tuple[str, ...] = ()
    """Pixel baselines to show beside the runs, of `baselines.BASELINES`: e.g. ("svm", "nearest", "logistic")."""
    tune: Tune | None = None
    """What every line of the study tunes on validation data; None: every run has the values written here."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.name:
            raise UserError("a study needs a name: it is that of its results folder.")
        known = [item.name for item in fields(self)]
        for name in self.quick:
            if name not in known:
                raise unknown("field of a study, in quick,", name, known)


def expand(study: Study) -> list[Run]:
    """Return a study's runs without repeats, in a fixed order: all points of one seed before the next seed.

    Those of a study that tunes have the base's own values; `plan_of` has its trials and the chosen values.
    An invalid value of a field, or a study without runs, raises `UserError`.
    """
    points = points_of(study)
    most = max((seeds for _, seeds in points), default=0)
    return [
        replace(run, seed=study.first_seed + number)
        for number in range(most)
        for run, seeds in points
        if number < seeds
    ]


def once(study: Study) -> Study:
    """Return a study with a single seed: it has all that tells its points apart."""
    return replace(study, seeds=1, also=tuple(replace(grid, seeds=None) for grid in study.also))


def points_of(study: Study) -> list[tuple[Run, int]]:
    """Return the points of a study without repeats: a run with seed 0, and the number of its seeds.

    An invalid value of a field raises `UserError`.
    """
    found: dict[str, tuple[Run, int]] = {}
    if study.first_seed < 0:
        raise UserError(f"study '{study.name}' has first_seed {study.first_seed}: it must be at least 0.")
    for grid in grids_of(study):
        seeds = study.seeds if grid.seeds is None else grid.seeds
        if seeds < 1:
            raise UserError(f"study '{study.name}' has {seeds} seeds: it needs at least 1.")
        for name, axis in grid.vary.items():
            if field_path(base_of(grid.vary, study.base), name) == ("seed",):
                raise UserError(f"study '{study.name}' varies seed: give `seeds`, their number, and `first_seed`.")
            if isinstance(axis, str) or not isinstance(axis, Sequence) or not axis:
                raise UserError(f"study '{study.name}' varies {name} over {axis!r}: write a list of values.")
        for values in product(*grid.vary.values()):
            run = with_fields(study.base, dict(zip(grid.vary, values, strict=True)))
            check_types(run)
            point = replace(run, seed=0)
            _, before = found.get(name := run_id(point), (point, 0))
            found[name] = (point, max(before, seeds))
    return list(found.values())


def grids_of(study: Study) -> tuple[Grid, ...]:
    """Return the study's grids, the main one first."""
    return (Grid(study.vary, study.seeds), *study.also)


def with_field(run: Run, name: str, value: Any) -> Run:
    """Return `run` with the field `name` (unique name or dotted path) set to `value`."""
    changed: Run = _set(run, field_path(run, name), value)
    return changed


def with_fields(run: Run, values: Mapping[str, Any]) -> Run:
    """Return `run` with several fields set, one after the other."""
    for name, value in values.items():
        run = with_field(run, name, value)
    return run


def field_path(run: Run, name: str) -> tuple[str, ...]:
    """Return the path of a run's field from its dotted path or its own name.

    Options are fields too: "model_options.width". An unknown or ambiguous name raises `UserError`.
    """
    paths = {path: value for path, value in _leaves(run)}
    wanted = tuple(name.split("."))
    if wanted in paths:
        return wanted
    if len(wanted) > 1 and wanted[-2].endswith("options"):
        return (*field_path(run, name.rpartition(".")[0]), wanted[-1])
    hits = [path for path in paths if path[-1] == name]
    if len(hits) > 1:
        raise UserError(f"field '{name}' is ambiguous: write one of {', '.join('.'.join(p) for p in hits)}.")
    if not hits:
        own = Counter(path[-1] for path in paths)
        short = [path[-1] if own[path[-1]] == 1 and "." not in name else ".".join(path) for path in paths]
        raise unknown("field of a run", name, short)
    return hits[0]


def value_at(config: dict[str, Any], name: str) -> Any:
    """Return the value of the field `name` in a row's `config` (plain data); a norm or data set gives its name.

    "world.kind" is a key of `WORLDS`. A name that is not a field of a run in this world, or that is not part of a
    run's id (data.path), raises `UserError`.
    """
    value: Any = config
    path = path_in(config, name)
    for part in path:
        if part not in value:
            return _default_at(config["world"]["kind"], path, name)
        value = value[part]
    return value["name"] if isinstance(value, dict) and "name" in value else value


def _default_at(kind: str, path: tuple[str, ...], name: str) -> Any:
    """Return the default of a field that descriptions leave out at its default, since it was added later."""
    node: Any = Run(world=WORLDS[kind]())
    for part in path:
        item = next((item for item in fields(node) if item.name == part), None) if is_dataclass(node) else None
        if item is None:
            break
        if item.metadata.get("added"):
            return default_of(item)
        node = getattr(node, part)
    raise UserError(f"'{name}' is not part of what names a run, so nothing can be told apart by it.")


def path_in(config: dict[str, Any], name: str) -> tuple[str, ...]:
    """Return the path of the field `name` in a row's `config`; raises `UserError` if its world has no such field."""
    return _path(config["world"]["kind"], name)


def has(config: dict[str, Any], name: str) -> bool:
    """Return whether a row's `config` has the field `name`: not every world has it."""
    try:
        value_at(config, name)
    except UserError:
        return False
    return True


def values_at(configs: Sequence[dict[str, Any]], names: Iterable[str]) -> list[dict[str, Any]]:
    """Return every row's values of those `names` that its world has; raises `UserError` for a name that none has."""
    names = list(names)
    for name in names:
        if not any(has(config, name) for config in configs):
            value_at(configs[0], name)  # raises the error
    return [{name: value_at(config, name) for name in names if has(config, name)} for config in configs]


@cache
def _path(kind: str, name: str) -> tuple[str, ...]:
    if name == KIND:
        return ("world", "kind")
    return field_path(Run(world=WORLDS[kind]()), name)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a row's nested config as a flat dict of dotted paths, e.g. {"world.skew": 50.0}."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def with_engine(study: Study, engine: str) -> Study:
    """Return the study with every run on `engine`; with several worlds, every run of the worlds that have it.

    An engine that no world of the study has raises `UserError`.
    """
    worlds = dict.fromkeys(type(base_of(grid.vary, study.base).world) for grid in grids_of(study))
    if not any(engine in world.engines for world in worlds):
        own = {world.kind: ", ".join(world.engines) or "none to choose" for world in worlds}
        known = "; ".join(f"those of {world} have {engines}" for world, engines in own.items())
        raise UserError(f"no run of study '{study.name}' has an engine '{engine}': {known}.")

    def moved(vary: dict[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        base = base_of(vary, study.base)
        if engine not in base.world.engines:
            return vary
        others = {name: values for name, values in vary.items() if field_path(base, name) != ("world", "engine")}
        return {**others, "engine": [engine]}

    also = tuple(replace(grid, vary=moved(grid.vary)) for grid in study.also)
    return replace(study, vary=moved(study.vary), also=also)


def with_axis(study: Study, name: str, values: Sequence[Any]) -> Study:
    """Return the study with `values` for a field, in its main grid and in every additional grid.

    An additional grid that varies the field itself keeps only those of its values that are among the new ones, and is
    left out if there are none: it was written for its own values. A grid whose world has no such field does not
    change; at least one grid must have it.
    """
    had = [has_field(base_of(grid.vary, study.base), name) for grid in grids_of(study)]
    if not any(had):
        field_path(base_of(study.vary, study.base), name)  # raises the error
    main = _with_values(study.base, study.vary, name, values) if had[0] else study.vary
    also = []
    for grid, has_it in zip(study.also, had[1:], strict=True):
        vary = _narrowed(study.base, grid.vary, name, values) if has_it else grid.vary
        if all(vary.values()):
            also.append(replace(grid, vary=vary))
    return replace(study, vary=main, also=tuple(also))


def has_field(run: Run, name: str) -> bool:
    """Return whether a run has the field `name`."""
    try:
        field_path(run, name)
    except UserError:
        return False
    return True


def _with_values(base: Run, vary: Axes, name: str, values: Sequence[Any]) -> Axes:
    """Return a grid's axes with `values` for one field, at the field's old position if it was varied."""
    own = base_of(vary, base)
    path = field_path(own, name)
    replaced = {key: values if field_path(own, key) == path else old for key, old in vary.items()}
    return replaced if varies(vary, base, name) else {**vary, name: values}


def _narrowed(base: Run, vary: Axes, name: str, values: Sequence[Any]) -> Axes:
    """Return an additional grid's axes, with only the wanted values of a field if it varies that field."""
    own = base_of(vary, base)
    path = field_path(own, name)
    for key, old in vary.items():
        if field_path(own, key) == path:
            wanted = [with_field(own, key, value) for value in values]
            return {**vary, key: [value for value in old if with_field(own, key, value) in wanted]}
    return {**vary, name: values}


def varies(vary: Axes, base: Run, name: str) -> bool:
    """Return whether `vary` has the field `name`, by either of its names."""
    return field_path(base, name) in {field_path(base_of(vary, base), key) for key in vary}


def base_of(vary: Axes, base: Run) -> Run:
    """Return the run to which a grid's field names refer: the study's base, in the first of the grid's worlds."""
    worlds = vary.get("world", ())
    world = worlds[0] if worlds else None
    return replace(base, world=world) if isinstance(world, WORLD_CONFIGS) else base


def _leaves(node: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every path of a dataclass tree and its value: inner nodes and leaves."""
    for item in fields(node):
        path, value = (*prefix, item.name), getattr(node, item.name)
        yield path, value
        if is_dataclass(value):
            yield from _leaves(value, path)


def _set(node: Any, path: tuple[str, ...], value: Any) -> Any:
    head, *rest = path
    if isinstance(node, dict):
        return {**node, head: value}
    if rest:
        return replace(node, **{head: _set(getattr(node, head), tuple(rest), value)})
    current = getattr(node, head)
    if isinstance(current, Norm) and isinstance(value, str):
        value = Norm(value)
    elif hasattr(current, "name") and isinstance(value, str):
        value = replace(current, name=value)
    return replace(node, **{head: value})
