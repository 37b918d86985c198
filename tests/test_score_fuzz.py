"""Whatever DATA holds, ``score`` maps all its subjects, or refuses and leaves no file."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from epizoo.outputs import score_cohort
from epizoo.run import Run
from epizoo.run_folder import RunFolder
from tests.damage import DAMAGES, HEADERS, NAMES, NUMBER, ROWS, change_header, damage, few, write_table
from tests.small_cohort import AFFINE, SHAPE, SPACE, TEST, short_run, write_cohort
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import LOCK
from tfds_epilepsy.volumes import read_nifti, write_nifti

STEM = f"sub-p1/anat/sub-p1_space-{SPACE}"
FILE = st.sampled_from(("T1w", "FLAIR", "desc-brain_mask", "label-lesion_mask"))


@pytest.fixture(scope="module")
def run_dir(cohort, data_dir, tmp_path_factory):
    """A run that was fitted in no time."""
    config = short_run(cohort, model="none", detector="zscore")
    run = Run(config, tmp_path_factory.mktemp("runs") / "run", data_dir=data_dir)
    run.fit()
    return run.folder.path


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A control and a patient, to be damaged."""
    return write_cohort(tmp_path_factory.mktemp("sound"), TEST, seed=1)


@pytest.fixture(scope="module")
def told(run_dir, sound):
    """A function that damages a copy, scores it, and holds what is left against what was said."""

    def told(change):
        with tempfile.TemporaryDirectory() as name:
            data, out = Path(name) / "data", Path(name) / "out"
            shutil.copytree(sound, data)
            change(data)
            before = files(data), files(run_dir)
            problems = []
            try:
                score_cohort(run_dir, data, out, data_dir=Path(name) / "tfds", console=Console(quiet=True))
            except InputError as error:
                problems = error.problems
            assert [one for one in problems if str(data) not in one and "sub-" not in one] == []
            if problems:
                assert files(out) == {}
            else:
                for subject in TEST:
                    score_map, affine = read_nifti(RunFolder(out).score_map(subject, SPACE))
                    assert score_map.shape == SHAPE
                    np.testing.assert_allclose(affine, AFFINE, atol=1e-3)
                    assert RunFolder(out).clusters(subject, SPACE).is_file()
            assert (files(data), files(run_dir)) == before

    return told


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != LOCK}


@few
@given(HEADERS, FILE)
def test_any_header_is_scored_or_refused(told, changes, file):
    told(lambda data: change_header(data / f"{STEM}_{file}.nii.gz", changes))


@few
@given(ROWS, st.sampled_from(("\t", ",", "\t\t")), st.binary(max_size=5))
def test_any_table_is_scored_or_refused(told, rows, between, end):
    told(lambda data: write_table(data, rows, between, end))


@few
@given(DAMAGES, FILE)
def test_any_damaged_file_is_scored_or_refused(told, damaged, file):
    told(lambda data: damage(data / f"{STEM}_{file}.nii.gz", *damaged))


@few
@given(NAMES, st.booleans())
def test_any_further_files_are_scored_or_refused(told, names, template):
    def add(data):
        for entities, suffix, session in names:
            anat = data / "sub-p1" / ("ses-1/anat" if session else "anat")
            space = [f"space-{SPACE}"] if template else []
            path = anat / ("_".join(["sub-p1", *space, *entities, suffix]) + ".nii.gz")
            if not path.exists():
                path.parent.mkdir(exist_ok=True, parents=True)
                shutil.copy(data / f"{STEM}_T1w.nii.gz", path)

    told(add)


@few
@given(
    st.sampled_from(
        (SHAPE, (12, 13, 5), (1, 1, 1), (24, 26, 1), (24, 26, 10, 1), (24, 26, 10, 2), (26, 24, 10))
    ),
    st.sampled_from((np.uint8, np.int16, np.float32, np.float64, np.complex64)),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), NUMBER), max_size=3),
    st.lists(st.tuples(st.integers(0, 5000), NUMBER), max_size=5),
    FILE,
)
def test_any_volume_is_scored_or_refused(told, shape, dtype, turns, voxels, file):
    def replace(data):
        volume = np.random.default_rng(0).uniform(0, 200, shape)
        affine = AFFINE.copy()
        with np.errstate(all="ignore"):
            for place, number in voxels:
                volume.flat[place % volume.size] = number
            if file.endswith("mask"):
                volume = volume > 100
            for row, column, number in turns:
                affine[row, column] = number
            try:
                write_nifti(data / f"{STEM}_{file}.nii.gz", volume, affine, dtype=dtype)
            except Exception:  # no file that nibabel writes
                return

    told(replace)
