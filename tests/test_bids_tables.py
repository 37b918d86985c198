import json

import numpy as np
import pytest

from tfds_epilepsy import bids
from tfds_epilepsy.errors import InputError


def person(label, group="control", split=None, age=None, sex=None, site=None):
    names = ("group", "split", "age", "sex", "site")
    return {"participant_id": f"sub-{label}", **dict(zip(names, (group, split, age, sex, site), strict=True))}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "participants.tsv"


def test_rows_that_are_there_stay_as_they_were_edited(path):
    text = "participant_id\tGroup\tsplit\tnote\nsub-a\tcontrol\ttest\theld out by hand\n"
    path.write_text(text)
    bids.add_rows(path, [person("a", "patient", "train")])
    assert path.read_text() == text
    bids.add_rows(path, [person("a", "patient", "train"), person("b", age=31.0)])
    assert path.read_text() == (
        "participant_id\tGroup\tsplit\tage\tnote\nsub-a\tcontrol\ttest\tn/a\theld out by hand\n"
        "sub-b\tcontrol\tn/a\t31\tn/a\n"
    )


def test_a_table_is_the_same_in_whatever_order_its_rows_came(tmp_path):
    rows = [person("c", site="A"), person("a", age=20.5), person("b", split="train", sex="f")]
    for name, order in (("one", (0, 1, 2)), ("two", (2, 1, 0)), ("three", (1, 0, 2))):
        for number in order:
            bids.add_rows(tmp_path / name, [rows[number]])
    bids.add_rows(tmp_path / "four", rows)
    texts = {(tmp_path / name).read_text() for name in ("one", "two", "three", "four")}
    assert texts == {
        "participant_id\tgroup\tsplit\tage\tsex\tsite\nsub-a\tcontrol\tn/a\t20.5\tn/a\tn/a\n"
        "sub-b\tcontrol\ttrain\tn/a\tf\tn/a\nsub-c\tcontrol\tn/a\tn/a\tn/a\tA\n"
    }


def test_what_is_corrected_in_the_source_is_corrected_but_not_what_was_edited(path):
    bids.add_rows(path, [person("a", age=30.0), person("b", age=40.0)])
    path.write_text(path.read_text().replace("40", "41"))
    before = {"a": person("a", age=30.0), "b": person("b", age=40.0)}
    now = {"a": person("a", "patient", age=31.0, site="X"), "b": person("b", age=42.0)}
    told = bids.correct_cells(path, before, now)
    people, _ = bids.read_participants(path.parent)
    assert [(one.group, one.age, one.site) for one in people.values()] == [
        ("patient", 31, "X"),
        ("control", 41, ""),
    ]
    assert len(told) == 4
    assert any("sub-b: age stays 41; the raw table says 42 now" in line for line in told)
    assert bids.correct_cells(path, before, before) == []


def test_a_description_keeps_the_fields_that_users_wrote(tmp_path):
    path = bids.write_description(tmp_path, "a set", source=tmp_path)
    first = path.read_bytes()
    assert bids.write_description(tmp_path, "another name").read_bytes() == first
    edited = {"Name": "ours", "Funding": ["x"]}
    path.write_text(json.dumps(edited))
    bids.write_description(tmp_path, "a set")
    found = json.loads(path.read_text())
    assert {name: found[name] for name in edited} == edited
    assert (found["BIDSVersion"], found["DatasetType"]) == (bids.BIDS_VERSION, "derivative")
    path.write_text("{")
    with pytest.raises(InputError, match=r"dataset_description\.json: cannot be read as JSON"):
        bids.write_description(tmp_path, "a set")


def test_patterns_that_users_wrote_in_bidsignore_stay(tmp_path):
    path = tmp_path / ".bidsignore"
    path.write_text("mine\n*.h5")
    bids.write_bidsignore(tmp_path, ["*.h5", ".lock"])
    assert path.read_text() == "mine\n*.h5\n.lock\n"


def test_ages_that_are_unknown_are_not_written_as_numbers(path):
    bids.add_rows(path, [person("a", age=np.nan), person("b", age=None)])
    assert path.read_text() == "participant_id\tgroup\nsub-a\tcontrol\nsub-b\tcontrol\n"
