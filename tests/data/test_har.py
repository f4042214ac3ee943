"""The UCI HAR Dataset by its folder, tried on a made-up one of the same form."""

import numpy as np
import pytest
import torch
from made_up_har import ACTIVITIES, CHANNELS, make_har, value

from syncnorm.config import Data
from syncnorm.data import load
from syncnorm.data.domain_pool import load_pool
from syncnorm.errors import UserError

HELD_BY = {"train": (1, 3), "test": (2, 4)}


@pytest.fixture
def folder(tmp_path):
    return make_har(tmp_path / "UCI HAR Dataset", HELD_BY)


def rows(x, part):
    """Return which rows of the files samples come from, by the value of their first channel."""
    return (x[:, 0, 0] * 0.5 * {"train": 1, "test": -1}[part]).round().int() - 1


@pytest.mark.parametrize(("subject", "part", "first"), [(1, "train", 0), (3, "train", 60), (2, "test", 0)])
def test_a_subject_has_its_windows_of_either_part_split_by_time(folder, subject, part, first):
    data = load(f"subject-{subject}", path=str(folder), scale="fixed")
    assert data.shape == (9, 128)
    assert data.class_names == ACTIVITIES
    assert "Anguita" in data.note
    assert torch.bincount(data.train_y).tolist() == [7] * 6  # of ten: eight less the one that overlaps
    assert torch.bincount(data.test_y).tolist() == [2] * 6
    train, test = rows(data.train_x, part), rows(data.test_x, part)
    for label in range(6):
        mine = [first + 30 * turn + 5 * label + window for turn in range(2) for window in range(5)]
        assert train[data.train_y == label].tolist() == mine[:7]
        assert test[data.test_y == label].tolist() == mine[8:]


def test_the_fixed_scale_is_half_a_unit_and_the_own_one_standardises(folder):
    fixed = load("subject-4", path=str(folder), scale="fixed")
    row = int(rows(fixed.test_x, "test")[0])
    expected = torch.tensor([value("test", row, channel) / 0.5 for channel in range(9)])
    assert (fixed.test_x[0] - expected[:, None]).abs().max() < 1e-4
    own = load("subject-4", path=str(folder))
    std, mean = torch.std_mean(own.train_x.double(), dim=(0, 2), correction=0)
    assert mean.abs().max() < 1e-4
    assert (std - 1).abs().max() < 1e-4


def test_subjects_are_domains(folder):
    names = ("subject-1", "subject-2", "subject-3")
    pool = load_pool(Data("har", path=str(folder)), names, True, torch.device("cpu"), torch.float32)
    assert pool.scale == "fixed"
    assert pool.starts == (0, 42, 84, 126)
    assert pool.test_starts == (0, 12, 24, 36)
    alone = load("subject-2", path=str(folder), scale="fixed")
    assert torch.equal(pool.x[42:84], alone.train_x)


def test_a_file_that_is_written_is_read_again(folder):
    before = load("subject-1", path=str(folder), scale="fixed").train_x
    file = folder / "train" / "Inertial Signals" / "body_gyro_y_train.txt"
    file.write_text(file.read_text().replace("e+00", "e+01"))
    after = load("subject-1", path=str(folder), scale="fixed").train_x
    changed = (before != after).any(2).any(0)
    assert changed.tolist() == [name == "body_gyro_y" for name in CHANNELS]


@pytest.mark.parametrize("name", ["subject-5", "subject-01", "subject-x", "har"])
def test_a_subject_that_is_not_there_gets_those_that_are(folder, name):
    with pytest.raises(
        UserError, match=rf"subject of the UCI HAR Dataset in .*'{name}'.*Known: subject-1 to subject-4\."
    ):
        load(name, path=str(folder))
    with pytest.raises(UserError, match=rf"'{name}'.*Known: subject-1 to subject-4\."):
        load_pool(Data("har", path=str(folder)), ("subject-1", name), True, torch.device("cpu"), torch.float32)


def test_subjects_with_gaps_are_all_listed(folder):
    file = folder / "test" / "subject_test.txt"
    file.write_text(file.read_text().replace("2", "20"))
    with pytest.raises(UserError, match=r"Known: subject-1, subject-3, subject-4, subject-20\."):
        load("subject-2", path=str(folder))


def test_the_folder_alone_names_no_subject(folder):
    with pytest.raises(UserError, match="subject-1 to subject-4"):
        load(str(folder))


@pytest.mark.parametrize(
    "name",
    [
        "activity_labels.txt",
        "test/y_test.txt",
        "train/subject_train.txt",
        "test/Inertial Signals/total_acc_z_test.txt",
    ],
)
def test_a_missing_or_empty_file_is_named(folder, name):
    (folder / name).write_text("")
    with pytest.raises(UserError, match=rf"{name} is empty"):
        load("subject-1", path=str(folder))
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"is not a complete UCI HAR Dataset: {name} is missing"):
        load("subject-1", path=str(folder))


def _cut_line(text):
    return "\n".join(text.splitlines()[:-1])


def _halve_lines(text):
    return "\n".join(line[: len(line) // 2] for line in text.splitlines())


def _cut_one_value(text):
    return text[:-17] + "\n"


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (
            "train/Inertial Signals/body_acc_x_train.txt",
            _cut_line,
            "body_acc_x_train.txt has 119 lines and subj.* 120",
        ),
        ("train/Inertial Signals/body_acc_x_train.txt", _halve_lines, "has 64 values in a line: .* has 128"),
        (
            "train/Inertial Signals/body_acc_x_train.txt",
            _cut_one_value,
            "cannot be read as a table of numbers: .*col",
        ),
        ("test/y_test.txt", _cut_line, "y_test.txt has 119 lines and subject_test.txt 120"),
        ("test/y_test.txt", lambda text: text.replace("3", "7"), "y_test.txt has activity 7, which activity_labels"),
        ("test/subject_test.txt", lambda text: text.replace("2", "two"), "subject_test.txt cannot be read .*'two'"),
        (
            "train/Inertial Signals/total_acc_y_train.txt",
            lambda text: text.replace("1.0", "nan", 1),
            "not finite|read",
        ),
        (
            "activity_labels.txt",
            lambda text: text.replace(" ", "_"),
            "activity_labels.txt does not have a number and",
        ),
    ],
)
def test_files_of_another_form_are_named(folder, file, change, words):
    (folder / file).write_text(change((folder / file).read_text()))
    with pytest.raises(UserError, match=words):
        load("subject-1", path=str(folder))


def test_an_activity_too_short_to_be_split_is_named(folder):
    file = folder / "train" / "y_train.txt"
    labels = np.loadtxt(file, dtype=int)
    sitting = np.flatnonzero(labels[:60] == 4)
    labels[sitting[2:]] = 5
    file.write_text("".join(f"{label}\n" for label in labels))
    with pytest.raises(UserError, match=r"subject-1 has 2 windows of SITTING: .* need 3"):
        load("subject-1", path=str(folder))
    labels[sitting] = 5  # an activity that a subject never did is no mistake
    file.write_text("".join(f"{label}\n" for label in labels))
    data = load("subject-1", path=str(folder))
    assert torch.bincount(data.train_y, minlength=6).tolist() == [7, 7, 7, 0, 15, 7]


def test_size_is_for_images(folder):
    with pytest.raises(UserError, match=r"data\.size is 64: size is for images.*'subject-1'.*\(9, 128\)"):
        load("subject-1", path=str(folder), size=64)
