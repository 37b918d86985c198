"""What stands in one place and is said in others; the check of commits' subjects."""

import re
import subprocess
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUBJECTS = ROOT / ".ci" / "subjects"


@pytest.fixture(scope="module")
def setup():
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_the_version_is_the_same_everywhere(setup):
    version = setup["metadata"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_every_package_is_in_the_wheel_and_none_under_a_name_that_others_take(setup):
    listed = setup["options"]["packages"].split()
    assert setup["options"]["package_dir"].split() == ["epizoo_tuning", "=", "tuning"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts).replace("tuning", "epizoo_tuning", 1)
        for folder in ("epizoo", "tfds_epilepsy", "tuning")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(listed) == found
    assert {name.split(".")[0] for name in listed} == {"epizoo", "tfds_epilepsy", "epizoo_tuning"}


def test_the_search_imports_itself_by_no_name(setup):
    """It has two."""
    for path in (ROOT / "tuning").glob("*.py"):
        assert not re.search(r"^\s*(from|import) tuning\b", path.read_text(), re.MULTILINE), path


def test_the_workflow_tests_every_python_that_is_allowed(setup):
    workflow = (ROOT / ".github" / "workflows" / "checks.yml").read_text()
    (versions,) = re.findall(r"python: \[(.*)\]", workflow)
    lowest = setup["options"]["python_requires"].removeprefix(">=")
    assert versions.split(", ")[0] == f'"{lowest}"'
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["mypy"]["python_version"] == lowest


@pytest.mark.parametrize(
    ("subject", "status"), [("x" * 72, 0), ("x" * 73, 1), ("ü" * 72, 0), ("# no subject\nshort", 0)]
)
def test_a_subject_has_at_most_72_characters(tmp_path, subject, status):
    (tmp_path / "message").write_text(f"{subject}\n\n{'y' * 100}\n")
    done = subprocess.run([SUBJECTS, "--message", tmp_path / "message"], capture_output=True, text=True)
    assert done.returncode == status
    assert ("more than 72" in done.stderr) == bool(status)
