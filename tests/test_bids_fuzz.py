"""Whatever lies in a folder, ``check`` says what it is: no traceback, no hang, no file written."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.bids_files import AFFINE, SHAPE, raw_scan, write_participants, write_subject
from tests.damage import DAMAGES, HEADERS, NAMES, ROWS, change_header, damage, few, write_table
from tfds_epilepsy import bids
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import write_nifti


def told(folder: Path) -> None:
    """``check``, and what reads after it, end well or in an InputError that names the folder."""
    before = sorted(folder.rglob("*"))
    for look in (bids.check, bids.raw_subjects, bids.read_derivative):
        problems = []
        try:
            look(folder)
        except InputError as error:
            problems = error.problems
        assert [problem for problem in problems if str(folder) not in problem] == []
    assert sorted(folder.rglob("*")) == before


def data_set(folder: Path) -> Path:
    """A raw subject and one in template space; the path of the latter's T1w."""
    raw_scan(folder, "sub-a_T1w.nii.gz")
    raw_scan(folder, "sub-a_T1w_roi.nii.gz")
    write_subject(folder, "b", modalities=("T1w",), lesion=True)
    write_participants(folder, [["sub-a", "control"], ["sub-b", "patient"]], "participant_id\tgroup")
    return next((folder / "sub-b" / "anat").glob("*T1w.nii.gz"))


@few
@given(HEADERS, st.booleans())
def test_any_header_is_read_or_named(changes, template):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        there = data_set(folder)
        change_header(there if template else folder / "sub-a" / "anat" / "sub-a_T1w.nii.gz", changes)
        told(folder)


@few
@given(ROWS, st.sampled_from(("\t", ",", "\t\t")), st.binary(max_size=5))
def test_any_table_is_read_or_named(rows, between, end):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data_set(folder)
        write_table(folder, rows, between, end)
        told(folder)


@few
@given(NAMES)
def test_any_file_names_are_read_or_named(names):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data_set(folder)
        for number, (entities, suffix, session) in enumerate(names):
            anat = folder / "sub-a" / ("ses-1/anat" if session else "anat")
            anat.mkdir(parents=True, exist_ok=True)
            path = anat / ("_".join(["sub-a", *entities, suffix]) + ".nii.gz")
            if path.exists():
                continue
            volume = np.random.default_rng(number).uniform(0, 1, SHAPE)
            write_nifti(path, volume if "T1w" in suffix else volume > 0.5, AFFINE)
        told(folder)


@few
@given(DAMAGES)
def test_any_damage_of_a_file_is_named_or_harmless(damaged):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        damage(data_set(folder), *damaged)
        told(folder)
