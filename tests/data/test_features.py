"""Tables of features: CSV and parquet, their columns, and those that say where a sample comes from."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from syncnorm.config import Clients, Data
from syncnorm.data import load, make_federated_dataset, partition_card
from syncnorm.data.domain_pool import load_pool
from syncnorm.errors import UserError

RNG = np.random.default_rng(0)
ROWS = 60
TABLE = {
    "id": np.arange(ROWS),
    "age": RNG.integers(20, 80, ROWS),
    "marker": RNG.normal(1e6, 1, ROWS),
    "note": ["x"] * ROWS,
    "site": np.tile(["north", "south", "west"], ROWS // 3),
    "target": np.repeat([0, 1], ROWS // 2),
}


def write(file, table=TABLE, **changes):
    table = pa.table({**table, **changes})
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pq.write_table(table, file)
    else:
        sign = {".csv": ",", ".tsv": "\t"}[file.suffix]
        rows = [table.column_names, *zip(*(column.to_pylist() for column in table.columns), strict=True)]
        file.write_text("\n".join(sign.join("" if cell is None else str(cell) for cell in row) for row in rows))
    return str(file)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_numeric_columns_are_features_normalised_one_by_one(tmp_path, suffix):
    data = load("study", path=write(tmp_path / f"x{suffix}"))
    assert (data.shape, data.class_names, len(data.train_y), len(data.test_y)) == ((2,), ("0", "1"), 48, 12)
    # float32 has no more than a sixteenth between numbers around a million: the marker must be centred before.
    markers = np.sort(np.concatenate([data.train_x[:, 1].numpy(), data.test_x[:, 1].numpy()]))
    true = np.sort(np.asarray(TABLE["marker"]))
    assert np.diff(markers) == pytest.approx(np.diff(true) / np.diff(true).sum() * np.diff(markers).sum(), abs=1e-5)
    assert data.train_x.double().std(0, correction=0).numpy() == pytest.approx(np.ones(2), abs=1e-6)
    assert "left out, as no features: 'id', 'note', 'site'" in data.summary()
    assert "feature vectors (2,)" in data.summary()


def test_a_semicolon_and_train_and_test_files(tmp_path):
    (tmp_path / "train.csv").write_text("a;b;y\n1;2;no\n3;4;yes\n5;6;no\n7;8;yes\n")
    (tmp_path / "test.csv").write_text("b;a;y\n2;1;no\n")
    data = load("mine", path=str(tmp_path))
    assert data.class_names == ("no", "yes")
    assert torch.equal(data.test_x[0], data.train_x[0])  # columns go by name


def test_labels_and_the_natural_column_can_be_named(tmp_path):
    path = write(tmp_path / "x.csv")
    data = load("study", path=path, label="site", natural="note")
    assert data.class_names == ("north", "south", "west")
    assert data.natural.names == ("x",)
    assert data.shape == (3,)  # age, marker, target


WRONG = {
    "no label": ({"target": None}, {}, "neither images nor a column called label"),
    "not whole": ({"target": RNG.normal(0, 1, ROWS)}, {}, "is no whole number: labels must be classes"),
    "measured": ({"target": np.arange(ROWS)}, {}, "60 different labels on 60 samples"),
    "missing label": ({"target": [None, *[0, 1] * 29, 1]}, {}, "row 0 has no label"),
    "missing value": ({"age": [*range(59), None]}, {}, "row 59 has no finite value in the column 'age'"),
    "missing site": ({"site": [*["a"] * 59, None]}, {"natural": "site"}, "row 59 has no value of natural"),
    "no such column": ({}, {"natural": "sit"}, "unknown column of .* 'sit': did you mean 'site'"),
    "no feature": ({"age": None, "marker": None}, {}, "nor a numeric one beside the label 'target'"),
    "size": ({}, {"size": 8}, "data.size is 8: size is for images"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_in_a_table_get_a_sentence(tmp_path, case):
    changes, options, words = WRONG[case]
    table = {name: changes.get(name, column) for name, column in TABLE.items()}
    path = write(tmp_path / "x.parquet", {name: column for name, column in table.items() if column is not None})
    with pytest.raises(UserError, match=words):
        load("study", path=path, **options)


def test_splits_must_have_the_same_columns(tmp_path):
    write(tmp_path / "train.csv")
    write(tmp_path / "test.csv", {name: column for name, column in TABLE.items() if name != "age"})
    with pytest.raises(UserError, match="split test has no numeric column 'age', which the other split has"):
        load("study", path=str(tmp_path))


def test_a_column_given_twice_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a,a,y\n1,2,0\n3,4,1\n1,2,0\n3,4,1\n")
    with pytest.raises(UserError, match="has the column a twice"):
        load("mine", path=str(tmp_path / "x.csv"))


def test_each_value_of_the_natural_column_is_a_client_with_a_test_of_its_own(tmp_path):
    data = Data("study", path=write(tmp_path / "x.csv"), natural="site")
    made = make_federated_dataset(data, Clients(count=2, held_out=1, skew="natural"), seed=0)
    assert [made.natural(client) for client in range(3)] == ["north", "south", "west"]
    natural = made.pool.natural[0]
    for client in range(3):
        assert (natural.train[made.train(client)] == client).all()
        x, y, weights = made.test(client)
        assert torch.equal(x, made.pool.test_x[torch.from_numpy(np.flatnonzero(natural.test == client))])
        assert (len(y), weights.sum().item()) == (4, pytest.approx(1))
        assert weights.unique().numel() == 1
    assert sum(len(made.train(client)) for client in range(3)) == 48
    assert [one["natural"] for one in partition_card(made)["clients"]] == ["north", "south", "west"]


def test_fewer_clients_than_values_are_drawn_by_the_seed_and_more_are_refused(tmp_path):
    data = Data("study", path=write(tmp_path / "x.csv"), natural="site")
    names = set()
    for seed in range(8):
        made = make_federated_dataset(data, Clients(count=2, skew="natural"), seed=seed)
        names.add((made.natural(0), made.natural(1)))
    assert names == {("north", "south"), ("north", "west"), ("south", "west")}
    with pytest.raises(UserError, match=r"natural column has 3 values.*each of 4 clients.*at most 3 clients"):
        make_federated_dataset(data, Clients(count=4, skew="natural"), seed=0)
    with pytest.raises(UserError, match=r"needs to know the natural of each sample.*set data\.natural"):
        make_federated_dataset(Data("digits"), Clients(count=4, skew="natural"), seed=0)


def test_a_client_without_a_test_sample_is_named(tmp_path):
    write(tmp_path / "train.csv")
    write(tmp_path / "test.csv", site=["north", "south"] * 30)
    data = Data("study", path=str(tmp_path), natural="site")
    with pytest.raises(UserError, match="client 2, 'west' of the natural column, has no test sample"):
        make_federated_dataset(data, Clients(count=3, skew="natural"), seed=0)


def test_domains_are_values_of_a_tables_column_or_tables_of_their_own(tmp_path):
    one = Data("study", path=write(tmp_path / "x.csv"), natural="site")
    pool = load_pool(one, ("north", "west"), True, torch.device("cpu"), torch.float32)
    assert pool.starts == (0, 16, 32)
    rows = np.asarray(TABLE["site"])
    for name in ("north", "south"):
        kept = {key: np.asarray(column)[rows == name] for key, column in TABLE.items()}
        write(tmp_path / "apart" / f"{name}.csv", kept)
    apart = Data("study", path=str(tmp_path / "apart"))
    pool = load_pool(apart, ("north", "south"), True, torch.device("cpu"), torch.float32)
    assert pool.starts == (0, 16, 32)
    assert pool.x.double().mean(0).numpy() == pytest.approx(np.zeros(2), abs=1e-5)
    assert pool.x.double().std(0, correction=0).numpy() == pytest.approx(np.ones(2), abs=1e-5)
    with pytest.raises(UserError, match=r"is no folder.*or set data\.natural to the column"):
        load_pool(Data("s", path=one.path), ("north", "west"), True, torch.device("cpu"), torch.float32)


def test_an_image_folder_has_no_columns(tmp_path):
    from PIL import Image

    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for index in range(4):
            Image.new("L", (8, 8), index).save(tmp_path / name / f"{index}.png")
    with pytest.raises(UserError, match=r"data\.natural is site: it names a column of a table, and .* is none"):
        load("mine", path=str(tmp_path), natural="site")


def test_a_table_of_images_may_have_a_natural_column(tmp_path):
    """Writers are numbers here: client 2 comes before client 10."""
    import io

    from PIL import Image

    cells = []
    for row in range(40):
        buffer = io.BytesIO()
        Image.new("L", (4, 4), row).save(buffer, "PNG")
        cells.append(buffer.getvalue())
    writers = [10, 2] * 20
    pq.write_table(pa.table({"image": cells, "label": [0, 0, 1, 1] * 10, "writer": writers}), tmp_path / "x.parquet")
    data = Data("hands", path=str(tmp_path / "x.parquet"), natural="writer", label="label")
    for _ in range(2):  # decoded, then from the cache
        made = load("hands", path=data.path, natural="writer", label="label")
        assert made.natural.names == ("2", "10")
        fixed = load("hands", path=data.path, natural="writer", label="label", scale="fixed").train_x[:, 0, 0, 0]
        rows = ((fixed + 1) / 2 * 255).round().long().tolist()
        assert [made.natural.names[value] for value in made.natural.train] == [str(writers[row]) for row in rows]
    assert make_federated_dataset(data, Clients(count=2, skew="natural"), seed=0).natural(1) == "10"
    assert "2 natural clients" in made.summary()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"1,2,0\n3,4,1\n", "begins with numbers: its first line must be the names of the columns"),
        ("é,y\n1,0\n2,1\n".encode("latin1"), "is not written in UTF-8"),
        ("a,b,y\n1,é,0\n2,é,1\n".encode("latin1"), "is not written in UTF-8"),
        (b"a,y\n1,0\n2\n", "cannot be read as CSV: .*Expected 2 columns, got 1"),
        (b"a,y\n", "is empty: it has the columns y but no row"),
    ],
)
def test_a_csv_file_that_is_none_gets_a_sentence(tmp_path, content, words):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(UserError, match=words):
        load("mine", path=str(tmp_path / "x.csv"))
