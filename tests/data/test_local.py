"""Files of the user's: parquet and image folders, right and wrong ones."""

import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from syncnorm.data import load
from syncnorm.errors import UserError


def picture(value, mode="L", side=8):
    """One image whose grey value says which it is."""
    grey = Image.fromarray(np.full((side, side), value, np.uint8))
    return grey if mode == "L" else grey.convert(mode)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_table(file, images, labels, image_column="image", label_column="label", **more):
    cells = [{"bytes": image if isinstance(image, bytes) else encoded(image), "path": None} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({**more, image_column: pa.array(cells, kind), label_column: pa.array(labels, pa.int64())})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)
    return file


def raw(data):
    """Undo the normalisation of grey images 0 .. n: their values' order is enough to tell them apart."""
    return data.train_x[:, 0, 0, 0].argsort().tolist()


def test_a_folder_with_train_and_test_keeps_that_split(tmp_path):
    write_table(tmp_path / "train.parquet", [picture(10 * i) for i in range(6)], [0, 1, 2, 0, 1, 2])
    write_table(tmp_path / "test.parquet", [picture(5), picture(25)], [1, 0])
    data = load("mine", path=str(tmp_path))
    assert data.name == "mine"
    assert data.shape == (1, 8, 8)
    assert data.train_y.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.test_y.tolist() == [1, 0]
    assert raw(data) == [0, 1, 2, 3, 4, 5]
    values = torch.arange(0, 60, 10, dtype=torch.float64)
    expected = (5 - values.mean()) / values.std(correction=0)
    assert data.test_x[0].flatten().double().numpy() == pytest.approx(expected.item(), abs=1e-6)


def test_numbered_pieces_of_a_split_are_put_together_in_order(tmp_path):
    for piece in range(2):
        rows = [picture(100 * piece + i) for i in range(3)]
        write_table(tmp_path / f"data/train-0000{piece}-of-00002.parquet", rows, [0, 1, piece])
    write_table(tmp_path / "data/validation-00000-of-00001.parquet", [picture(1)], [0])
    data = load(str(tmp_path))
    assert data.train_y.tolist() == [0, 1, 0, 0, 1, 1]
    assert raw(data) == list(range(6))
    assert len(data.test_y) == 1


@pytest.mark.parametrize("as_folder", [True, False])
def test_without_a_split_a_stratified_fifth_is_held_out(tmp_path, as_folder):
    file = write_table(tmp_path / "all.parquet", [picture(i) for i in range(50)], [i % 5 for i in range(50)])
    data = load("mine", path=str(tmp_path if as_folder else file))
    assert torch.bincount(data.train_y).tolist() == [8] * 5
    assert torch.bincount(data.test_y).tolist() == [2] * 5
    assert "a stratified fifth, drawn by the seed, is the test" in data.changes


def test_columns_are_found_by_type_and_labels_may_be_any_integers(tmp_path):
    file = write_table(
        tmp_path / "x.parquet", [picture(i) for i in range(10)], [7, 3] * 5, "pixel_data", "kind", remark=["a"] * 10
    )
    data = load("mine", path=str(file))
    assert data.class_names == ("3", "7")
    assert set(data.train_y.tolist()) == {0, 1}


def test_a_number_of_the_row_is_not_its_label(tmp_path):
    images, ids = [picture(i) for i in range(10)], list(range(10))
    named = write_table(tmp_path / "named.parquet", images, [7, 3] * 5, label_column="class", id=ids)
    assert load("mine", path=str(named)).class_names == ("3", "7")
    unnamed = write_table(tmp_path / "unnamed.parquet", images, [7, 3] * 5, label_column="kind", id=ids)
    with pytest.raises(UserError, match=r"labels in any of id, kind: name the right column in data\.label"):
        load("mine", path=str(unnamed))


@pytest.mark.parametrize(("labels", "names"), [(["dog", "cat"] * 5, ("cat", "dog")), ([True, False] * 5, ("0", "1"))])
def test_words_and_booleans_are_labels_and_plain_bytes_are_images(tmp_path, labels, names):
    images = [encoded(picture(i)) for i in range(10)]
    for split, rows in (("train", slice(0, 8)), ("test", slice(8, 9))):
        pq.write_table(pa.table({"jpeg": images[rows], "label": labels[rows]}), tmp_path / f"{split}.parquet")
    data = load("mine", path=str(tmp_path))
    assert data.class_names == names
    assert data.train_y.tolist() == [1, 0] * 4
    assert data.test_y.tolist() == [1]


def test_class_names_of_a_hugging_face_table_are_kept(tmp_path):
    import datasets

    features = datasets.Features({"img": datasets.Image(), "n": datasets.Value("int64"), "kind": datasets.ClassLabel(
        names=["cat", "dog", "never seen"])})  # fmt: skip
    rows = {"img": [picture(i) for i in range(10)], "n": list(range(10)), "kind": [0, 1] * 5}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    data = load("mine", path=str(tmp_path))
    assert data.class_names == ("cat", "dog", "never seen")
    assert data.classes == 3
    assert "columns img, kind" in data.note


def test_grey_and_colour_together_become_colour(tmp_path):
    images = [picture(200), picture(200, "RGB"), picture(200, "RGBA"), picture(200, "P"), picture(10), picture(10)]
    write_table(tmp_path / "train.parquet", images, [0] * 4 + [1] * 2)
    write_table(tmp_path / "test.parquet", [picture(200)], [0])
    data = load("mine", path=str(tmp_path))
    assert data.shape == (3, 8, 8)
    assert (data.train_x[:4] == data.train_x[0]).all()


@pytest.mark.parametrize("size", [None, 6])
def test_sixteen_bits_are_kept_and_white_stays_white_beside_eight(tmp_path, size):
    levels = np.arange(0, 65536, 1024, dtype=np.uint16)
    deep = [encoded(Image.fromarray(np.full((8, 8), level, np.uint16))) for level in levels]
    write_table(tmp_path / "train.parquet", [*deep, picture(255), picture(200)], [0, 1] * 33)
    write_table(tmp_path / "test.parquet", [Image.fromarray(np.full((8, 8), 200 * 257, np.uint16))], [0])
    data = load("mine", path=str(tmp_path), size=size, scale="fixed")
    expected = np.append(levels / 65535.0, [1.0, 200 / 255]) * 2 - 1
    assert data.train_x[:, 0, 0, 0].numpy() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(data.test_x[0, 0, 0, 0], data.train_x[-1, 0, 0, 0])
    own = load("mine", path=str(tmp_path), size=size)
    assert own.train_x.double().mean().item() == pytest.approx(0, abs=1e-6)
    assert own.train_x.double().std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert "16-bit grey kept" in data.summary()


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0, float("nan")])
def test_pixels_that_are_no_whole_numbers_are_refused(tmp_path, value):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.fromarray(np.full((4, 4), value, np.float32)).save(tmp_path / name / f"{index}.tif")
    with pytest.raises(UserError, match=r"mode F must hold whole numbers from 0 to 255"):
        load("mine", path=str(tmp_path))


def test_different_sizes_need_a_size(tmp_path):
    file = write_table(tmp_path / "x.parquet", [picture(9, side=side) for side in (8, 8, 8, 12, 10)], [0, 1, 0, 1, 0])
    with pytest.raises(UserError, match=r"different sizes \(8 to 12 pixels high.*`size`"):
        load("mine", path=str(file))
    assert load("mine", path=str(file), size=10).shape == (1, 10, 10)


def write_images(root, classes=("ant", "bee"), count=5):
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(100 * number + i, "RGB").save(root / name / f"{i}.png")
    (root / "notes.txt").write_text("not an image")


@pytest.mark.parametrize("split", [True, False])
def test_an_image_folder_has_a_subfolder_a_class(tmp_path, split):
    if split:
        write_images(tmp_path / "train", ("ant", "test_tube"))
        write_images(tmp_path / "val", ("ant", "test_tube"), count=2)
    else:
        write_images(tmp_path, ("ant", "test_tube"))
    data = load("insects", path=str(tmp_path))
    assert data.class_names == ("ant", "test_tube")
    assert torch.bincount(data.train_y).tolist() == ([5, 5] if split else [4, 4])
    assert torch.bincount(data.test_y).tolist() == ([2, 2] if split else [1, 1])
    dark = data.train_x[data.train_y == 0].mean()
    assert dark < data.train_x[data.train_y == 1].mean()


def test_hidden_files_and_folders_are_no_images_and_no_classes(tmp_path):
    write_images(tmp_path)
    write_images(tmp_path / ".git")
    (tmp_path / "bee/._0.png").write_bytes(b"what a Mac leaves beside a file")
    (tmp_path / ".thumbnails").mkdir()
    picture(1).save(tmp_path / ".thumbnails/0.png")
    assert load("mine", path=str(tmp_path)).class_names == ("ant", "bee")


def test_changed_files_are_read_again(tmp_path):
    write_images(tmp_path)
    before = load("insects", path=str(tmp_path))
    picture(255, "RGB").save(tmp_path / "ant" / "new.png")
    os.utime(tmp_path / "ant" / "0.png", (1, 1))
    after = load("insects", path=str(tmp_path))
    assert len(before.train_y) + len(before.test_y) == 10
    assert len(after.train_y) + len(after.test_y) == 11


def test_an_unchanged_file_is_decoded_once(tmp_path, monkeypatch):
    file = write_table(tmp_path / "x.parquet", [picture(i) for i in range(10)], [0, 1] * 5)
    first = load("mine", path=str(file))
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(first.train_x, load("mine", path=str(file)).train_x)


def wrong_files(root):
    """Paths that do not work, and what the message must say."""
    (root / "empty").mkdir()
    (root / "text.csv").write_text("a,b")
    (root / "text.txt").write_text("a,b")
    (root / "torn.parquet").write_bytes(b"PAR1 and no more")
    write_table(root / "none.parquet", [], [])
    write_table(root / "two/spring.parquet", [picture(1)], [0])
    write_table(root / "two/summer.parquet", [picture(1)], [0])
    write_table(root / "unlabelled.parquet", [picture(1)] * 2, [0, -1])
    write_table(root / "null.parquet", [picture(1)] * 2, [0, None])
    write_table(root / "garbled.parquet", [encoded(picture(1)), b"no image"], [0, 0])
    cut = encoded(Image.effect_noise((64, 64), 50))
    write_table(root / "cut.parquet", [cut[: len(cut) // 2]], [0])
    pq.write_table(pa.table({"label": [1]}), root / "imageless.parquet")
    write_images(root / "broken")
    (root / "broken/bee/0.png").write_bytes(b"no image")
    write_images(root / "gone")
    (root / "gone/bee/link.png").symlink_to(root / "nowhere.png")
    for split in ("train", "test"):
        (root / "flat" / split).mkdir(parents=True)
        picture(1).save(root / "flat" / split / "0.png")
    return {
        "nowhere": "no data at .*nowhere",
        "empty": "neither parquet or CSV files nor subfolders of images",
        "text.txt": r"text\.txt is neither a parquet nor a CSV file",
        "text.csv": r"text\.csv cannot be read as CSV: .*Empty CSV",
        "torn.parquet": "cannot be read as parquet",
        "none.parquet": "is empty",
        "two": "parts spring, summer and none called train",
        "unlabelled.parquet": "label -1 stands for no class",
        "null.parquet": "row 1 has no label",
        "garbled.parquet": r"image 1 cannot be read as an image \(of no known format\)",
        "cut.parquet": "image 0 cannot be read as an image",
        "imageless.parquet": "neither a column of images nor a numeric one beside the label.*columns are label",
        "broken": r"bee/0\.png cannot be read as an image",
        "gone": r"link\.png cannot be read: No such file",
        "flat": "images directly in test, train: put the images of each class in a subfolder",
        "~nobody-of-this-name/x": "no data at",
    }


def test_what_cannot_be_read_says_so_in_one_sentence(tmp_path, capfd):
    for name, words in wrong_files(tmp_path).items():
        with pytest.raises(UserError, match=words):
            load("mine", path=str(tmp_path / name))
    assert capfd.readouterr() == ("", "")


def test_an_embedded_name_with_a_path_is_a_contradiction(tmp_path):
    with pytest.raises(UserError, match=r"embedded 'digits'.*name of its own"):
        load("digits", path=str(tmp_path))


def test_an_empty_class_folder_is_said(tmp_path):
    write_images(tmp_path)
    (tmp_path / "wasp").mkdir()
    data = load("insects", path=str(tmp_path))
    assert data.class_names == ("ant", "bee")
    assert "left out, as empty: class folder wasp" in data.summary()


def test_a_class_that_only_the_test_has_is_said(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", ("ant", "bee", "wasp"))
    data = load("insects", path=str(tmp_path))
    assert data.classes == 3
    assert "only in the test, so never learned: class wasp" in data.summary()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0] * 60, "every training sample has the label '0', and a classifier needs two classes"),
        (list(range(60)), "60 different labels on 60 samples look like numbers of rows or measured values"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, labels, words):
    file = write_table(tmp_path / "x.parquet", [picture(i) for i in range(60)], labels)
    with pytest.raises(UserError, match=words):
        load("mine", path=str(file))


def test_labels_that_are_whole_numbers_written_as_fractions_are_taken(tmp_path):
    images = [encoded(picture(i)) for i in range(10)]
    pq.write_table(pa.table({"jpeg": images, "label": [1.0, 0.0] * 5}), tmp_path / "whole.parquet")
    data = load("mine", path=str(tmp_path / "whole.parquet"))
    assert data.class_names == ("0", "1")
    assert "whole numbers written as fractions" in data.summary()
    pq.write_table(pa.table({"jpeg": images, "label": [1.5, 0.0] * 5}), tmp_path / "measured.parquet")
    with pytest.raises(UserError, match=r"label 1\.5 is no whole number: labels must be classes"):
        load("mine", path=str(tmp_path / "measured.parquet"))


def test_a_column_of_labels_can_be_named(tmp_path):
    images = [picture(i) for i in range(10)]
    file = write_table(tmp_path / "x.parquet", images, [7, 3] * 5, label_column="kind", label=list(range(10)))
    assert load("mine", path=str(file), label="kind").class_names == ("3", "7")
    with pytest.raises(UserError, match=r"unknown column of .* 'knd': did you mean 'kind'"):
        load("mine", path=str(file), label="knd")
