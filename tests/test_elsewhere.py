"""Windows and macOS, as far as Linux can play them: without fcntl, resource, affinity and /proc."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_small_cohort_runs_without_posix(cohort, tmp_path):
    words = ["run", cohort, tmp_path / "out", "--model", "none", "--detector", "zscore"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.elsewhere", *map(str, words), "--data-dir", str(tmp_path / "tfds")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "report.html").is_file()


def test_no_module_imports_what_other_systems_lack_where_nothing_catches_it():
    found = [
        f"{path.relative_to(ROOT)}: {line}"
        for package in ("epizoo", "tfds_epilepsy", "tuning")
        for path in (ROOT / package).rglob("*.py")
        for line in path.read_text().splitlines()
        if re.match(r"(import|from) (fcntl|resource|pwd|grp|termios)\b", line) or "sched_getaffinity" in line
    ]
    assert found == []
