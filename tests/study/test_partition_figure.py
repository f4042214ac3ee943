"""The figure of who holds what shows the numbers of its card, and fits on its page."""

import pytest
from matplotlib.colors import to_hex

from syncnorm.config import Clients, Data
from syncnorm.data import make_federated_dataset, partition_card
from syncnorm.errors import UserError
from syncnorm.study.report.drawing.partition_figure import partition_figure

TWO = ("digits", "digits-noisy")


def drawn(world):
    card = partition_card(make_federated_dataset(Data("digits"), world, seed=0))
    figure = partition_figure(card)
    classes, sizes = figure.axes
    return card, figure, classes, sizes


def title(figure):
    return figure.texts[0].get_text().replace("\n", " ")


def test_every_bar_is_a_number_of_the_card():
    card, _, classes, sizes = drawn(Clients(count=6, domains=TWO, skew="dirichlet_by_class", alpha=0.2))
    order = [0, 2, 4, 1, 3, 5]  # clients of a domain stand together
    assert [int(label.get_text()) for label in classes.get_xticklabels()] == order
    assert [bar.get_height() for bar in sizes.patches] == [card["clients"][k]["train"] for k in order]
    places = dict(zip(order, classes.get_xticks(), strict=True))
    highest = max(max(one["histogram"]) for one in card["clients"])
    shown = {(round(bar.get_x() + 0.4, 6), bar.get_y() - 0.5): bar.get_height() for bar in classes.patches}
    expected = {
        (round(place, 6), c): pytest.approx(-0.9 * count / highest)
        for client, place in places.items()
        for c, count in enumerate(card["clients"][client]["histogram"])
        if count
    }
    assert shown == expected


def test_domains_have_a_colour_and_a_name_and_held_out_clients_are_empty():
    _, _, classes, sizes = drawn(Clients(count=4, held_out=2, domains=TWO, unseen=("digits-rotated",)))
    colors = [to_hex(bar.get_edgecolor()) for bar in sizes.patches]
    faces = [to_hex(bar.get_facecolor()) for bar in sizes.patches]
    assert [len(set(colors[i : i + 2])) for i in (0, 2, 4)] == [1, 1, 1]
    assert len(set(colors)) == 3
    assert faces == [*colors[:4], "#ffffff", "#ffffff"]
    assert [text.get_text() for text in classes.texts] == [*TWO, "digits-rotated\n(held out)"]


@pytest.mark.parametrize(
    "world",
    [
        Clients(count=1),
        Clients(count=5, domains=("digits", "digits-fonts", "digits-rotated", "digits-inverted", "digits-noisy")),
        Clients(count=8, held_out=3, domains=TWO, unseen=("digits-rotated",), skew="quantity", noise=0.5),
        Clients(count=100, skew="dirichlet_by_client", alpha=0.1),
    ],
)
def test_nothing_is_cut_off_and_no_two_names_overlap(world):
    _, figure, classes, _ = drawn(world)
    figure.draw_without_rendering()
    page = figure.bbox
    for text in [*figure.texts, *classes.texts, classes.xaxis.label, classes.yaxis.label]:
        box = text.get_window_extent()
        assert page.x0 <= box.x0 < box.x1 <= page.x1, text
        assert page.y0 <= box.y0 < box.y1 <= page.y1, text
    names = [text.get_window_extent() for text in classes.texts if text.get_rotation() == 0]
    assert not any(one.overlaps(other) for i, one in enumerate(names) for other in names[:i])
    note = figure.texts[-1].get_window_extent()
    assert not any(note.overlaps(text.get_window_extent()) for text in classes.texts)


def test_the_title_says_how_it_was_dealt():
    figure = drawn(Clients(count=10, skew="dirichlet_by_class", alpha=1.0))[1]
    assert title(figure) == "dirichlet_by_class (alpha 1.0): 1,437 samples on 10 clients"
    figure = drawn(Clients(count=10, skew="pathological", noise=0.2))[1]
    assert "pathological (classes per client 2, noise up to 0.2)" in title(figure)


def test_a_card_that_sums_up_its_clients_is_refused():
    card = partition_card(make_federated_dataset(Data("digits"), Clients(count=5000, skew="resampled"), seed=0))
    with pytest.raises(UserError, match="a partition of 5000 clients cannot be drawn"):
        partition_figure(card)
