"""A cohort small enough to search on: controls that share an anatomy, patients with a bright spot."""

import numpy as np
from scipy import ndimage

from tests.test_bids import write_participants
from tfds_epilepsy.volumes import write_nifti

SHAPE = (24, 26, 10)
AFFINE = np.diag([2.0, 2, 2, 1])
SPACE = "MNI152NLin2009aSym"
GROUPS = {
    **{f"c{i}": ("control", "train") for i in range(5)},
    **{f"v{i}": ("control", "validation") for i in range(2)},
    **{f"w{i}": ("patient", "validation") for i in range(2)},
    "h1": ("control", "test"),
    "p1": ("patient", "test"),
}


def write_cohort(folder, seed=0):
    """A template-space derivative; the patients' spots are at different places."""
    rng = np.random.default_rng(seed)
    anatomy = ndimage.gaussian_filter(rng.normal(size=SHAPE), 2)
    brain = np.zeros(SHAPE, bool)
    brain[2:-2, 2:-2, 1:-1] = True
    for label, (group, _) in GROUPS.items():
        lesion = np.zeros(SHAPE, bool)
        if group == "patient":
            x, y = rng.integers(5, 15, 2)
            lesion[x : x + 5, y : y + 5, 3:7] = True
        stem = folder / f"sub-{label}" / "anat" / f"sub-{label}_space-{SPACE}"
        for modality, sign in (("T1w", 1), ("FLAIR", -1)):
            noise = 0.3 * rng.normal(size=SHAPE)
            image = (5 + sign * 8 * anatomy + noise + 0.6 * lesion) * brain
            write_nifti(f"{stem}_{modality}.nii.gz", image, AFFINE)
        write_nifti(f"{stem}_desc-brain_mask.nii.gz", brain, AFFINE, dtype=np.uint8)
        if lesion.any():
            write_nifti(f"{stem}_label-lesion_mask.nii.gz", lesion, AFFINE, dtype=np.uint8)
    rows = [[f"sub-{label}", *who] for label, who in GROUPS.items()]
    write_participants(folder, rows, "participant_id\tgroup\tsplit")
    return folder
