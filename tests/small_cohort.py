"""Cohorts small enough to run and to search: controls that share an anatomy, patients with a bright spot."""

import numpy as np
from scipy import ndimage

from epizoo.run_config import RunConfig
from tests.bids_files import write_participants
from tfds_epilepsy.volumes import write_nifti

SHAPE = (24, 26, 10)
AFFINE = np.diag([2.0, 2, 2, 1])
SPACE = "MNI152NLin2009aSym"
CONTROLS = {
    **{f"c{i}": ("control", "train") for i in range(5)},
    **{f"v{i}": ("control", "validation") for i in range(2)},
}
TEST = {"h1": ("control", "test"), "p1": ("patient", "test")}
GROUPS = {**CONTROLS, **{f"w{i}": ("patient", "validation") for i in range(2)}, **TEST}


def anywhere(rng):
    x, y = rng.integers(5, 15, 2)
    return slice(x, x + 5), slice(y, y + 5), slice(3, 7)


def write_cohort(folder, groups=GROUPS, seed=0, *, noise=0.3, contrast=0.6, spot=anywhere):
    """A template-space derivative; ``spot`` draws the place of each patient's lesion."""
    rng = np.random.default_rng(seed)
    anatomy = ndimage.gaussian_filter(rng.normal(size=SHAPE), 2)
    brain = np.zeros(SHAPE, bool)
    brain[2:-2, 2:-2, 1:-1] = True
    for label, (group, _) in groups.items():
        lesion = np.zeros(SHAPE, bool)
        if group == "patient":
            lesion[spot(rng)] = True
        stem = folder / f"sub-{label}" / "anat" / f"sub-{label}_space-{SPACE}"
        for modality, sign in (("T1w", 1), ("FLAIR", -1)):
            grain = noise * rng.normal(size=SHAPE)
            image = (5 + sign * 8 * anatomy + grain + contrast * lesion) * brain
            write_nifti(f"{stem}_{modality}.nii.gz", image, AFFINE)
        write_nifti(f"{stem}_desc-brain_mask.nii.gz", brain, AFFINE, dtype=np.uint8)
        if lesion.any():
            write_nifti(f"{stem}_label-lesion_mask.nii.gz", lesion, AFFINE, dtype=np.uint8)
    rows = [[f"sub-{label}", *who] for label, who in groups.items()]
    write_participants(folder, rows, "participant_id\tgroup\tsplit")
    return folder


def short_run(cohort, **changes):
    """The settings of a run that is over in seconds."""
    method = {"model": "siamese", "epochs": 2, "steps_per_epoch": 4, "batch_size": 32}
    return RunConfig.resolve(str(cohort), **({} if changes.get("model") == "none" else method) | changes)
