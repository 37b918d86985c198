"""A command that was killed, started again, ends with the files of one that ran through."""

import os
import subprocess
import sys

import pytest

from tests.kills import WORKS, differences

MOMENTS = os.environ.get("EPIZOO_KILLS", "2")  # of each command; 20 where there is time


@pytest.mark.slow
@pytest.mark.parametrize("command", WORKS)
def test_a_killed_command_ends_with_the_same_files_and_no_others(command, tmp_path):
    if command.startswith("preprocess"):
        pytest.importorskip("ants", reason="antspyx (the preprocessing extra) is not installed")
    arguments = ["-m", "tests.kills", command, "--moments", MOMENTS, "--folder", str(tmp_path / "kills")]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the same") == int(MOMENTS)


def test_what_is_missing_left_over_or_different_is_said():
    expected, found = {"a": b"1", "b": b"2"}, {"b": b"3", ".partial-c": b""}
    assert differences(expected, found) == [".partial-c is left over", "a is missing", "b differs"]
