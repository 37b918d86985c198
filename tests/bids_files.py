"""BIDS data sets of small files: subjects in template space, raw scans, participants.tsv."""

import numpy as np

from tfds_epilepsy.volumes import write_nifti

AFFINE = np.diag([2.0, 2, 3, 1])
SHAPE = (9, 10, 8)


def write_subject(folder, label, modalities=("T1w", "FLAIR"), lesion=False, mask=True, seed=0):
    rng = np.random.default_rng([seed, *label.encode()])
    brain = np.zeros(SHAPE, bool)
    brain[2:-2, 2:-2, 2:-2] = True
    stem = folder / f"sub-{label}" / "anat" / f"sub-{label}_space-MNI152NLin2009aSym"
    for modality in modalities:
        write_nifti(f"{stem}_desc-preproc_{modality}.nii.gz", rng.uniform(50, 100, SHAPE) * brain, AFFINE)
    if mask:
        write_nifti(f"{stem}_desc-brain_mask.nii.gz", brain, AFFINE, dtype=np.uint8)
    if lesion:
        write_nifti(
            f"{stem}_label-lesion_mask.nii.gz", brain & (np.indices(SHAPE)[0] == 4), AFFINE, dtype=np.uint8
        )


def write_participants(folder, rows, header="participant_id\tgroup\tsplit\tage\tsex\tsite"):
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join([header, *("\t".join(row) for row in rows)]) + "\n"
    (folder / "participants.tsv").write_text(text, encoding="utf-8-sig")


def raw_scan(folder, name, shape=SHAPE, affine=AFFINE, value=None):
    """A scan of the subject, session and folder that its name says: noise of its own, a box in masks."""
    place = "pet" if name.endswith("_pet.nii.gz") else "anat"
    session = [part for part in name.split("_") if part.startswith("ses-")]
    volume = np.random.default_rng(list(name.encode())).uniform(1, 100, shape)
    if name.split(".")[0].split("_")[-1] in ("roi", "mask", "dseg", "lesion"):
        volume = (np.arange(np.prod(shape)) % 5 == 0).reshape(shape)
    if value is not None:
        volume = np.full(shape, value)
    path = folder.joinpath(name.split("_")[0], *session, place, name)
    return write_nifti(path, volume, affine)
