import json

import numpy as np
import pytest

from tfds_epilepsy import files
from tfds_epilepsy.errors import InputError


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with files.replacing(path) as partial:
        partial.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_failure_leaves_what_stood_there(tmp_path):
    path = files.write_text(tmp_path / "a.txt", "old")

    def write_in_a_storm():
        with files.replacing(path) as partial:
            partial.write_text("new")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_in_a_storm()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_holds_plain_types_only(tmp_path):
    content = {
        "a": np.float32(0.5),
        "b": np.array([1.0, np.nan]),
        "c": (np.int64(2), float("inf")),
        "d": tmp_path,
    }
    path = files.write_json(tmp_path / "a.json", content)
    assert json.loads(path.read_text()) == {"a": 0.5, "b": [1.0, None], "c": [2, None], "d": str(tmp_path)}


def test_json_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "none.json", files.write_text(tmp_path / "bad.json", "{")):
        with pytest.raises(InputError, match=path.name):
            files.read_json(path)


def test_a_table_writes_what_is_unknown_as_bids_does(tmp_path):
    path = files.write_table(
        tmp_path / "t.tsv", [{"participant_id": "sub-a", "age": float("nan"), "sex": ""}]
    )
    assert path.read_text() == "participant_id\tage\tsex\nsub-a\tn/a\tn/a\n"
