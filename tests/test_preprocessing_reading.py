"""What preprocessing reads, with damaged bytes and headers: an image, or an InputError naming the file."""

import os
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tfds_epilepsy import bids
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.registration import Scan, lifted, looks_stripped, stripped_brain_mask
from tfds_epilepsy.volumes import read_lesion_mask, read_nifti

EXAMPLES = int(os.environ.get("EPIZOO_FUZZ", "30"))
HEADER = 352  # bytes


def scan_bytes(marked: bool) -> bytes:
    """A small stripped brain, or a mask in it, not compressed, so that damage reaches header and voxels."""
    volume = np.zeros((9, 10, 8), np.float32)
    volume[2:-2, 2:-2, 2:-2] = np.random.default_rng(0).normal(1, 1, (5, 6, 4))
    if marked:
        volume = (np.abs(volume) > 1).astype(np.float32)
    image = nib.Nifti1Image(volume, np.diag([2.0, 2, 3, 1]))
    image.set_qform(image.affine, code=1)
    return image.to_bytes()


SCAN, MASK = scan_bytes(False), scan_bytes(True)
places = st.one_of(st.integers(0, HEADER - 1), st.integers(0, len(SCAN) - 1))
damages = st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)


@settings(max_examples=EXAMPLES, deadline=None)
@given(damages, st.one_of(st.none(), st.integers(0, len(SCAN))), damages, st.booleans())
def test_damaged_files_are_read_or_named(scan_damage, cut, mask_damage, named_gz):
    with tempfile.TemporaryDirectory() as folder:
        anat = Path(folder) / "sub-01" / "anat"
        anat.mkdir(parents=True)
        ending = "nii.gz" if named_gz else "nii"
        damaged = (("T1w", SCAN, scan_damage, cut), ("T1w_roi", MASK, mask_damage, None))
        for name, sound, damage, end in damaged:
            content = bytearray(sound)
            for place, byte in damage:
                content[place] = byte
            (anat / f"sub-01_{name}.{ending if name == 'T1w' else 'nii'}").write_bytes(content[:end])
        before, said = sorted(anat.iterdir()), "sub-01"
        try:
            (subject,) = bids.raw_subjects(folder)
            scan, _ = lifted(Scan(*read_nifti(subject.images["T1w"])))
            looks_stripped(scan)
            assert np.isfinite(stripped_brain_mask(scan)).all()
            read_lesion_mask(subject.lesion_mask)
        except InputError as error:
            said = str(error)
        assert "sub-01" in said or "every voxel" in said
        assert sorted(anat.iterdir()) == before
