"""What a study expands into, and how the command line changes it."""

from dataclasses import replace

import pytest

from syncnorm.config import Clients, Data, Devices, Norm, Run, describe, run_id
from syncnorm.errors import UserError
from syncnorm.study.plan.about import about_study
from syncnorm.study.plan.override import parse, quicker, refuse_varied, with_vary
from syncnorm.study.plan.spec import (
    Agreement,
    Grid,
    Study,
    expand,
    has,
    value_at,
    with_axis,
    with_engine,
    with_field,
)
from syncnorm.study.report.plots import Curve

BASE = Run(world=Devices(global_batch=32))


def make(**changes: object) -> Study:
    study = Study("s", "?", BASE, {"norm": ["bn", "gn"], "per_device_batch": [4, 32]}, seeds=2)
    return replace(study, **changes)  # type: ignore[arg-type]


def points(study: Study) -> list[tuple[str, int | None, int]]:
    return [(run.norm.name, run.world.per_device_batch, run.seed) for run in expand(study)]


def test_an_option_is_a_field_of_those_that_hold_it() -> None:
    base = Run(model_options={"width": 4}, world=Clients(method="fixbn"))
    run = with_field(with_field(base, "model_options.depth", 3), "method_options.frozen_from", 0.5)
    assert run.model_options == {"width": 4, "depth": 3}
    assert base.model_options == {"width": 4}
    config = describe(run)
    assert value_at(config, "world.method_options.frozen_from") == 0.5
    assert has(config, "model_options.width")
    assert not has(config, "model_options.init")
    with pytest.raises(UserError, match=r"unknown field of a run 'model_option.width'"):
        with_field(base, "model_option.width", 3)
    texts = ["4", "0.5", "true", "glorot"]
    assert [parse(base, "model_options.width", text) for text in texts] == [4, 0.5, True, "glorot"]


def test_runs_are_the_product_of_values_one_seed_after_the_other() -> None:
    assert points(make()) == [
        ("bn", 4, 0), ("bn", 32, 0), ("gn", 4, 0), ("gn", 32, 0),
        ("bn", 4, 1), ("bn", 32, 1), ("gn", 4, 1), ("gn", 32, 1),
    ]  # fmt: skip


def test_a_run_of_two_grids_is_there_once() -> None:
    study = make(also=(Grid({"per_device_batch": [32, 8]}), Grid({"norm": ["ln"]}, seeds=1)))
    ids = [run_id(run) for run in expand(study)]
    assert len(ids) == len(set(ids)) == 8 + 2 + 1


def test_the_same_layout_written_in_two_ways_is_one_run() -> None:
    layouts = [Devices(ranks=2, per_device_batch=4), Devices(global_batch=8, ranks=2)]
    assert len(expand(make(vary={"world": layouts}, seeds=1))) == 1


def test_ids_do_not_depend_on_paths_and_do_on_everything_else() -> None:
    moved = replace(BASE, data=Data(path="elsewhere"))
    assert run_id(moved) == run_id(BASE)
    others = [replace(BASE, seed=1), replace(BASE, norm=Norm("gn")), replace(BASE, model="resnet20")]
    assert len({run_id(run) for run in [BASE, *others]}) == 4


def test_ids_stay_the_same_from_version_to_version() -> None:
    """Results that were made before must be found again: a change here loses every user's finished runs."""
    assert run_id(Run()) == "8c463d670905"


def test_a_norm_or_data_set_may_be_varied_by_name_or_by_value() -> None:
    runs = expand(make(vary={"norm": ["bn", Norm("gn", {"groups": 2})], "data": ["digits"]}, seeds=1))
    assert [run.norm.options for run in runs] == [{}, {"groups": 2}]
    assert runs[0].data == replace(BASE.data, name="digits")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vary": {"nrm": ["bn"]}}, "unknown field of a run 'nrm': did you mean 'norm'?"),
        ({"vary": {"world.skw": [0]}}, "did you mean 'world.skew'?"),
        ({"vary": {"name": ["bn"]}}, "'name' is ambiguous: write one of data.name, norm.name, optim.name."),
        ({"vary": {"norm": "bn"}}, "study 's' varies norm over 'bn': write a list of values."),
        ({"vary": {"norm": []}}, "study 's' varies norm over []: write a list of values."),
        ({"vary": {"engine": ["torchrn"]}}, "unknown world.engine 'torchrn': did you mean 'torchrun'?"),
        ({"vary": {"lr": ["0.1"]}}, "optim.lr is '0.1': it must be a number."),
        ({"vary": {"per_device_batch": [4.0]}}, "world.per_device_batch is 4.0: it must be a whole number."),
        ({"vary": {"norm": [3]}}, "norm is 3: it must be a Norm."),
        ({"vary": {"world": ["2"]}}, "world is '2': it must be a Devices or a Clients or a Domains."),
        (
            {"vary": {"norm": [Norm("gn", {"dtype": object()})]}},
            "it must hold plain numbers, texts, lists and dicts.",
        ),
        ({"vary": {"seed": [0, 1]}}, "study 's' varies seed: give `seeds`, their number, and `first_seed`"),
        ({"vary": ["norm"]}, "vary is ['norm']: it must be a dict."),
        ({"base": Run}, "it must be a Run."),
        ({"name": ""}, "a study needs a name"),
        ({"seeds": "3"}, "seeds is '3': it must be a whole number."),
        ({"figures": Curve("skew", "norm")}, "it must be a tuple."),
        (
            {"figures": ("skew",)},
            "one of figures is 'skew': it must be a Plot.",
        ),
        ({"quick": {"sedes": 1}}, "unknown field of a study, in quick, 'sedes': did you mean 'seeds'?"),
        ({"seeds": 0}, "study 's' has 0 seeds: it needs at least 1."),
        ({"vary": {"per_device_batch": [5]}}, "global_batch 32 is not ranks x per_device_batch"),
    ],
)
def test_mistakes_get_a_sentence(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        expand(make(**changes))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"figures": (Curve("path", "norm"),)}, "'path' is not part of what names a run"),
        ({"agreements": (Agreement("engin"),)}, "unknown field of a run 'engin': did you mean 'engine'?"),
    ],
)
def test_what_a_report_could_not_show_is_refused_before_training(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        about_study(make(**changes))
    assert words in str(caught.value)


def test_types_that_fit_are_taken() -> None:
    changes = {"vary": {"lr": [1, 0.1]}, "also": [Grid({"norm": [Norm("gn", {"groups": 2})]})], "figures": []}
    assert len(expand(make(**changes))) == 6


def test_quick_replaces_what_it_names_and_the_name() -> None:
    study = quicker(make(quick={"seeds": 1, "vary": {"norm": ["gn"]}}))
    assert (study.name, study.quick) == ("s-quick", {})
    assert points(study) == [("gn", None, 0)]


def test_engine_holds_for_every_run() -> None:
    study = make(also=(Grid({"engine": ["virtual", "torchrun"]}), Grid({"skew": [5.0]})))
    assert {run.world.engine for run in expand(with_engine(study, "torchrun"))} == {"torchrun"}


def test_an_axis_holds_in_every_grid_however_it_is_named() -> None:
    study = make(also=(Grid({"world.per_device_batch": [8], "norm": ["ln"]}, seeds=1),), seeds=1)
    main = [("bn", 16, 0), ("gn", 16, 0)]
    assert points(with_axis(study, "per_device_batch", [16])) == main, "a further grid keeps what it was written for"
    both = points(with_axis(study, "per_device_batch", [8, 16]))
    assert sorted(both) == sorted([("bn", 8, 0), ("gn", 8, 0), ("ln", 8, 0), *main])


def test_an_axis_that_no_grid_has_is_added_to_all() -> None:
    study = make(also=(Grid({"norm": ["ln"]}, seeds=1),), seeds=1)
    runs = expand(with_axis(study, "lr", [0.1, 0.2]))
    assert {(run.norm.name, run.optim.lr) for run in runs} >= {("ln", 0.1), ("ln", 0.2), ("bn", 0.1), ("bn", 0.2)}


def test_an_axis_that_one_world_has_leaves_the_others_as_they_are() -> None:
    study = make(also=(Grid({"world": [Clients()], "method": ["fedbn", "silobn"]}, seeds=1),), seeds=1)
    runs = expand(with_axis(study, "method", ["fedbn"]))
    assert [run.world.method for run in runs if isinstance(run.world, Clients)] == ["fedbn"]
    assert len(runs) == len(expand(study)) - 1


def test_vary_reads_values_by_the_type_of_their_field() -> None:
    study = with_vary(make(), ["norm=ln", "per-device-batch=2,none", "skew=0,50", "data.size=8"])
    assert study.vary == {
        "norm": ["ln"], "per_device_batch": [2, None], "skew": [0.0, 50.0], "data.size": [8]
    }  # fmt: skip
    assert len(expand(replace(study, seeds=1))) == 4


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ("norm", "--vary norm: write a field and its values, such as norm=bn,gn."),
        ("nrm=bn", "did you mean 'norm'?"),
        ("norm=bn norm=gn", "--vary norm=gn: norm is there twice; write all of its values at once: norm=A,B."),
        ("skew=much", "--vary skew: 'much' is not a number."),
        ("epochs=1.5", "--vary epochs: '1.5' is not a whole number."),
        ("model_options=a", "--vary model_options: its values cannot be written on the command line"),
    ],
)
def test_vary_mistakes_get_a_sentence(axis: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        with_vary(make(), axis.split())
    assert words in str(caught.value)


def test_an_option_may_not_set_what_the_study_varies() -> None:
    refuse_varied(make(), ["optim.epochs", "world.skew", "data.name"])
    for option, field in [("norm.name", "norm"), ("world.per_device_batch", "world.per_device_batch")]:
        with pytest.raises(UserError, match=f"write --vary {field}=VALUE instead"):
            refuse_varied(make(), [option])


def test_parse_follows_dotted_names() -> None:
    assert parse(BASE, "optim.lr", "0.1") == 0.1
    assert parse(BASE, "train_limit", "100") == 100
    assert parse(BASE, "model", "resnet20") == "resnet20"


CLIENTS = Run(world=Clients(count=4))


def of_clients(**changes: object) -> Study:
    return replace(Study("c", "?", CLIENTS, {"method": ["fedavg", "fedbn"]}, seeds=1), **changes)  # type: ignore[arg-type]


def test_names_are_those_of_the_world_at_hand() -> None:
    domains = ("digits", "digits-photo")
    vary = {"method": ["fedbn"], "participation": [0.5, 1], "skew": ["iid"], "domains": [domains]}
    first, second = expand(of_clients(vary=vary))
    assert first.world == replace(CLIENTS.world, method="fedbn", participation=0.5, domains=domains)
    assert run_id(first) != run_id(second)


def test_a_grid_that_varies_the_world_names_fields_of_its_own() -> None:
    study = make(also=(Grid({"world": [Clients()], "method": ["fedbn"], "skew": ["iid"]}, seeds=1),))
    assert [run.world.method for run in expand(study) if isinstance(run.world, Clients)] == ["fedbn"]
    assert len(expand(with_axis(study, "norm", ["ln"]))) == 2 * 2 + 1
    with pytest.raises(UserError, match="unknown field of a run 'method'"):
        expand(make(also=(Grid({"method": ["fedbn"]}),)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vary": {"per_device_batch": [2]}}, "unknown field of a run 'per_device_batch'"),
        ({"vary": {"skew": [50]}}, "world.skew is 50: it must be a text."),
        ({"vary": {"domains": ["digits"]}}, "world.domains is 'digits': it must be a tuple."),
        ({"vary": {"domains": [(1,)]}}, "one of world.domains is 1: it must be a text."),
        ({"vary": {"keep_momentum": [1]}}, "world.keep_momentum is 1: it must be True or False."),
        ({"vary": {"rounds": [True]}}, "world.rounds is True: it must be a whole number."),
        ({"vary": {"method_options": [{"frozen_from": object()}]}}, "it must hold plain numbers"),
        ({"figures": (Curve("alpha", 3),)}, "one of figures.line is 3"),
        ({"figures": (Curve("alpha", ("method", 3)),)}, "one of"),
    ],
)
def test_mistakes_about_clients_get_a_sentence(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        expand(of_clients(**changes))
    assert words in str(caught.value)


def test_booleans_names_and_options_are_taken() -> None:
    vary = {"keep_momentum": [False, True], "unseen": [()], "method_options": [{}, {"frozen_from": 0.5}]}
    assert len(expand(of_clients(vary=vary))) == 4


def test_vary_reads_what_clients_have() -> None:
    axes = ["domains=digits+digits-photo,digits,none", "alpha=0.1,none", "keep-momentum=true,false", "method=fedbn"]
    assert with_vary(of_clients(), axes).vary == {
        "method": ["fedbn"],
        "domains": [("digits", "digits-photo"), ("digits",), ()],
        "alpha": [0.1, None],
        "keep_momentum": [True, False],
    }
    with pytest.raises(UserError, match="its values cannot be written on the command line"):
        with_vary(of_clients(), ["method_options=x"])


def test_an_option_of_the_world_may_not_set_what_a_grid_of_worlds_replaces() -> None:
    study = of_clients(also=(Grid({"world": [Clients(rounds=3), Clients(rounds=4)]}),))
    with pytest.raises(UserError, match=r"--world\.rounds would set what the study varies"):
        refuse_varied(study, ["world.rounds"])
    refuse_varied(study, ["optim.lr"])


def test_disjoint_ranges_of_seeds_share_no_run(study: Study) -> None:
    first = {run_id(run) for run in expand(study)}
    second = {run_id(run) for run in expand(replace(study, first_seed=study.seeds))}
    assert len(first) == len(second)
    assert not first & second
    overlapping = {run_id(run) for run in expand(replace(study, first_seed=study.seeds - 1))}
    assert first & overlapping
