"""Headers, tables, names and bytes as no tool should write them, and some do: for tests with Hypothesis."""

import gzip
import os

import nibabel as nib
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

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

HEADERS = st.lists(st.tuples(FIELDS, st.integers(0, 7), NUMBER), min_size=1, max_size=4)
ROWS = st.lists(st.lists(CELL, max_size=5), max_size=5)
NAMES = st.lists(st.tuples(st.lists(ENTITY, max_size=3), SUFFIX, st.booleans()), min_size=1, max_size=6)
DAMAGES = st.tuples(st.integers(0, 2000), st.binary(max_size=8), st.sampled_from(("cut", "change", "plain")))


def change_header(path, changes):
    """Write numbers into fields of a NIfTI's header, as far as these hold them."""
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


def damage(path, place, change, kind):
    """Cut a file, change some of its bytes, or leave it uncompressed; these bytes are its sidecar too."""
    content = path.read_bytes()
    if kind == "plain":
        content = gzip.decompress(content)
    place %= len(content)
    rest = b"" if kind == "cut" else change + content[place + len(change) :]
    path.write_bytes(content[:place] + rest)
    path.with_name(path.name.replace(".nii.gz", ".json")).write_bytes(change)


def write_table(folder, rows, between, end):
    """participants.tsv of any cells, separated by anything, with any bytes at its end."""
    header = ["participant_id", "group", "split", "age"]
    text = "\n".join(between.join(row) for row in [header, *rows])
    (folder / "participants.tsv").write_bytes(text.encode("utf-8", "replace") + end)
