"""Whatever lies in a folder, ``check`` says what it is: no traceback, no hang, no file written."""

import gzip
import os
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bids_files import AFFINE, SHAPE, raw_scan, write_participants, write_subject
from tfds_epilepsy import bids
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import write_nifti

# EPIZOO_FUZZ=1000 tries as many of each kind.
few = settings(
    max_examples=int(os.environ.get("EPIZOO_FUZZ", "8")),
    deadline=20_000,
    derandomize="EPIZOO_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
WORDS = (
    "sub-a",
    "sub-1",
    "a",
    "control",
    "patient",
    "train",
    "n/a",
    '"',
    "31",
    "30,5",
    "participant_id",
    "group",
)
CELL = st.sampled_from(WORDS) | st.text(max_size=8)
ENTITY = st.sampled_from(
    (
        "ses-1",
        "ses-",
        "acq-x",
        "ce-gad",
        "space-MNI",
        "space-T1w",
        "part-phase",
        "label-lesion",
        "desc-brain",
        "-",
        "",
    )
)
SUFFIX = st.sampled_from(("T1w", "FLAIR", "mask", "roi", "lesion", "T1w_roi", "pet", "x", ""))
NUMBER = st.sampled_from((0, 1, -1, 2, 32767, -32768, 1e38, -1e38, float("nan"), float("inf"), 0.5))
FIELDS = st.sampled_from(
    (
        *("dim", "pixdim", "datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "qform_code"),
        *(
            "sform_code",
            "quatern_b",
            "quatern_c",
            "qoffset_x",
            "srow_x",
            "srow_y",
            "srow_z",
            "magic",
            "sizeof_hdr",
        ),
    )
)


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
@given(st.lists(st.tuples(FIELDS, st.integers(0, 7), NUMBER), min_size=1, max_size=4), st.booleans())
def test_any_header_is_read_or_named(changes, template):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        there = data_set(folder)
        path = there if template else folder / "sub-a" / "anat" / "sub-a_T1w.nii.gz"
        content = bytearray(gzip.decompress(path.read_bytes()))
        header = np.frombuffer(content, nib.nifti1.header_dtype, count=1)
        for field, place, number in changes:
            kind = header[field].dtype.kind
            with np.errstate(all="ignore"):
                value = b"x" if kind == "S" else np.nan_to_num(np.float64(number)) if kind in "iu" else number
                if kind in "iu":
                    info = np.iinfo(header[field].dtype)
                    value = int(np.clip(value, info.min, info.max))
                flat = header[field].reshape(-1)
                flat[place % flat.size] = value
        path.write_bytes(gzip.compress(bytes(content), mtime=0))
        told(folder)


@few
@given(
    st.lists(st.lists(CELL, max_size=5), max_size=5),
    st.sampled_from(("\t", ",", "\t\t")),
    st.binary(max_size=5),
)
def test_any_table_is_read_or_named(rows, between, end):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data_set(folder)
        text = "\n".join(between.join(row) for row in [["participant_id", "group", "split", "age"], *rows])
        (folder / "participants.tsv").write_bytes(text.encode("utf-8", "replace") + end)
        told(folder)


@few
@given(st.lists(st.tuples(st.lists(ENTITY, max_size=3), SUFFIX, st.booleans()), min_size=1, max_size=6))
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
@given(st.integers(0, 2000), st.binary(max_size=8), st.sampled_from(("cut", "change", "plain")))
def test_any_damage_of_a_file_is_named_or_harmless(place, change, kind):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = data_set(folder)
        content = path.read_bytes()
        if kind == "plain":
            content = gzip.decompress(content)
        place %= len(content)
        content = (
            content[:place] if kind == "cut" else content[:place] + change + content[place + len(change) :]
        )
        path.write_bytes(content)
        sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
        sidecar.write_bytes(change)
        told(folder)
