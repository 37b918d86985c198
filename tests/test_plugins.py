"""A package that epizoo does not name, installed beside it, works in every command."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.small_cohort import write_cohort

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of a fresh environment in which the package is installed."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    there = [str(Path(__file__).parents[1]), sysconfig.get_path("purelib")]
    (site / "there.pth").write_text("\n".join(there))
    shutil.copytree(PLUGIN, folder / "plugin")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", site]
    subprocess.run([sys.executable, "-m", "pip", *install, folder / "plugin"], check=True)
    return folder / "env" / "bin" / "python"


def run(python, *words, seconds=600):
    """What a script prints in the environment."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, *map(str, words)], env=environment, capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_every_command_knows_a_package_of_ones_own(python, tmp_path):
    cohort = write_cohort(tmp_path / "cohort")
    assert "every command knew it" in run(python, PLUGIN / "commands.py", cohort, tmp_path)


@pytest.mark.slow
def test_the_contracts_are_installed_and_the_package_keeps_them(python):
    run(
        python,
        "-c",
        "from epizoo.testing import check_detector, check_model, check_view\n"
        "check_model('contrast', (9, 9)); check_detector('farthest'); check_view('sharpness')\n"
        "check_detector('profiles', profiles=['lost_sharpness'])",
    )


def test_a_package_that_cannot_be_imported_is_named(python, tmp_path):
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    broken = site / "broken_zoo-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-zoo\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[epizoo.models]\nbroken = broken_zoo.model:Broken\n")
    try:
        said = run(
            python,
            "-c",
            "from epizoo.registry import MODELS\nfrom tfds_epilepsy.errors import InputError\n"
            "MODELS.get('siamese')\n"
            "try:\n    MODELS.get('broken')\nexcept InputError as error:\n    print(error)",
        )
    finally:
        shutil.rmtree(broken)
    assert "model 'broken': broken_zoo.model:Broken of an installed package cannot be imported" in said
