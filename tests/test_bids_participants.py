import math

import pytest

from tests.bids_files import raw_scan
from tfds_epilepsy import bids


def table(folder, text):
    (folder / "participants.tsv").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("word", "years"),
    [
        ("32", 32), ("32.5", 32.5), ("30,5", 30.5), ("P032Y", 32), ("032Y", 32), ("32 years", 32),
        ("P6M", 0.5),
        ("20-24", 22), ("89+", 89),
    ],
)  # fmt: skip
def test_an_age_is_understood_however_it_is_written(tmp_path, word, years):
    people, problems = bids.read_participants(table(tmp_path, f"participant_id\tage\nsub-a\t{word}\n"))
    assert (people["a"].age, problems, people["a"].notes) == (years, [], ())


@pytest.mark.parametrize("word", ["old", "999", "-3", "1e9", "twenty-four"])
def test_an_age_that_is_none_is_named(tmp_path, word):
    people, _ = bids.read_participants(table(tmp_path, f"participant_id\tage\nsub-a\t{word}\n"))
    assert math.isnan(people["a"].age)
    (note,) = people["a"].notes
    assert repr(word) in note
    assert "line 2" in note


@pytest.mark.parametrize(
    ("word", "sex"),
    [("F", "f"), ("w", "f"), ("weiblich", "f"), ("Mujer", "f"), ("m", "m"), ("Männlich", "m"), ("other", "")],
)
def test_a_sex_is_understood_in_other_words(tmp_path, word, sex):
    people, _ = bids.read_participants(table(tmp_path, f"participant_id\tsex\nsub-a\t{word}\n"))
    assert (people["a"].sex, people["a"].notes) == (sex, ())


def test_a_sex_that_is_a_code_is_named(tmp_path):
    people, _ = bids.read_participants(table(tmp_path, "participant_id\tsex\nsub-a\t1\n"))
    assert people["a"].sex == ""
    assert "sex '1' of sub-a" in people["a"].notes[0]


def test_a_stray_quotation_mark_swallows_no_row(tmp_path):
    text = 'participant_id\tgroup\tsite\nsub-a\tcontrol\t"A\nsub-b\tpatient\tB\nsub-c\tcontrol\t5" coil\n'
    people, problems = bids.read_participants(table(tmp_path, text))
    assert [(label, one.group) for label, one in people.items()] == [("b", "patient"), ("c", "control")]
    (problem,) = problems
    assert "line 2: a quotation mark opens" in problem


def test_quoted_cells_and_old_line_ends_are_read(tmp_path):
    text = '"participant_id"\t"group"\t"site"\r"sub-a"\t"control"\t"A\tB"\r"sub-b"\t"patient"\t"B"\r'
    people, problems = bids.read_participants(table(tmp_path, text))
    assert [(label, one.group, one.site) for label, one in people.items()] == [
        ("a", "control", "A\tB"),
        ("b", "patient", "B"),
    ]
    assert problems == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("participant_id,group\nsub-a,control\n", "separated by ','"),
        ("participant_id;group\nsub-a;control\n", "separated by ';'"),
        ("participant_id\tgroup\tGroup\nsub-a\tcontrol\tpatient\n", "two columns 'group'"),
        ("participant_id\tgroup\tage\nsub-a\tcontrol\n", "line 2: 2 cells under 3 columns"),
        ("participant_id\tgroup\nsub-a\t\tcontrol\n", "line 2: 3 cells under 2 columns"),
        ("participant_id\tgroup\nn/a\tcontrol\n", "line 2: no participant_id"),
        ("", "no column 'participant_id'"),
    ],
)
def test_a_table_whose_cells_cannot_be_told_apart_is_named(tmp_path, text, says):
    _, (problem,) = bids.read_participants(table(tmp_path, text))
    assert says in problem


@pytest.mark.parametrize(
    ("row", "folder"), [("1", "001"), ("SUB-A", "a"), ("sub-P-01", "P01"), ("sub01", "01")]
)
def test_a_row_under_another_name_than_its_folder_is_suggested(tmp_path, row, folder):
    raw_scan(tmp_path, f"sub-{folder}_T1w.nii.gz")
    table(tmp_path, f"participant_id\tgroup\n{row}\tcontrol\n")
    (problem,) = bids.check(tmp_path).problems
    assert f"no row for sub-{folder}" in problem
    assert f"the one of {row!r}" in problem
    assert f"write 'sub-{folder}'" in problem


def test_rows_without_a_folder_are_a_problem_of_check_alone(tmp_path):
    raw_scan(tmp_path, "sub-a_T1w.nii.gz")
    table(tmp_path, "participant_id\tgroup\nsub-a\tcontrol\nsub-b\tcontrol\nsub-c\tpatient\n")
    (problem,) = bids.check(tmp_path).problems
    assert "2 rows without a folder (sub-b, sub-c)" in problem
    assert len(bids.raw_subjects(tmp_path)) == 1  # part of a data set may be preprocessed


def test_a_label_that_is_not_there_is_suggested(tmp_path):
    raw_scan(tmp_path, "sub-001_T1w.nii.gz")
    with pytest.raises(ValueError, match=r"sub-1: no such subject \(1 are there\); sub-001 is\."):
        bids.raw_subjects(tmp_path, ["sub-1"])


@pytest.mark.parametrize("row", ["sub-01_ses-1", "01_ses-baseline", "1_ses1"])
def test_a_row_that_names_a_session_too_is_suggested(tmp_path, row):
    raw_scan(tmp_path, "sub-01_ses-1_T1w.nii.gz")
    table(tmp_path, f"participant_id\tgroup\n{row}\tcontrol\n")
    (problem,) = bids.check(tmp_path).problems
    assert f"no row for sub-01; if the one of {row!r}" in problem


def test_a_row_for_each_session_is_one_too_many(tmp_path):
    _, (problem,) = bids.read_participants(table(tmp_path, "participant_id\tgroup\n01\thc\nsub-01\thc\n"))
    assert "line 3: a second row for sub-01; leave one" in problem
    assert "sub-01_sessions.tsv" in problem
