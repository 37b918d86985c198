import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

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


HOLDING = """
import sys, time
from tfds_epilepsy.files import hold

with hold(sys.argv[1], shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def another(tmp_path):
    """Another process that holds the folder until the test ends."""
    started = []

    def start(how):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDING, str(tmp_path), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.communicate("")


def test_a_held_folder_keeps_other_processes_out_until_it_is_let_go(tmp_path, another):
    process = another("alone")
    for shared in (False, True):
        with pytest.raises(InputError, match="another process is at work there"):
            files.hold(tmp_path, shared=shared, wait=0.2)
    process.kill()
    process.wait()
    with files.hold(tmp_path, wait=5):
        pass


def test_those_who_share_a_folder_leave_each_others_halves_alone(tmp_path, another):
    half = tmp_path / "sub-01" / ".partial-x"
    process = another("shared")
    half.mkdir(parents=True)
    with files.hold(tmp_path, shared=True):
        assert half.is_dir()
    with pytest.raises(InputError, match="another process"):
        files.hold(tmp_path)
    process.communicate("")
    (half / "file").write_text("")
    (tmp_path / ".partial-y").write_text("")
    (tmp_path / "mine.partial-z").write_text("")
    with files.hold(tmp_path, shared=True):  # the first to come
        assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", "mine.partial-z", "sub-01"]


def test_a_folder_that_cannot_be_held_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/out: cannot be written to \(Not a directory\)"):
        files.hold(tmp_path / "file" / "out")


def test_a_full_disk_names_the_file_and_leaves_what_stood_there(tmp_path, monkeypatch):
    path = files.write_text(tmp_path / "a.txt", "old")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as write(2) does: without a name

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match=r"a\.txt: cannot be written \(No space left on device\)"):
        files.write_text(path, "new")
    with pytest.raises(InputError, match=r"a\.txt/b: cannot be written"):
        files.write_text(path / "b", "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_an_input_that_is_missing_is_no_fault_of_the_output(tmp_path):
    with pytest.raises(FileNotFoundError, match="source"), files.replacing(tmp_path / "copy") as partial:
        shutil.copyfile(tmp_path / "source", partial)


def test_a_folder_that_cannot_be_written_to_is_named_before_any_work(tmp_path):
    files.check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/out: .*file cannot be written to \(Not a directory\)"):
        files.check_writable(tmp_path / "file" / "out")
