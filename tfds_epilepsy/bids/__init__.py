"""Find the subjects of a BIDS data set, raw or derivative, and say at once all that is wrong with it.

Raw scans: ``sub-*[/ses-*]/{anat,pet}/*_{T1w,FLAIR,T2w,pet,...}.nii[.gz]`` in native space.
Template space: ``sub-*[/ses-*]/anat/*_space-*_{T1w,FLAIR,...}.nii[.gz]`` with ``*_desc-brain_mask`` and,
where there is one, ``*_label-lesion_mask``. Who they are stands in ``participants.tsv``.

``participants`` reads that table, ``finding`` the names of files, ``voxels`` what is in them. ``raw`` and
``derivative`` make subjects of the three, ``checking`` tells a person about both, ``tables`` adds to
participants.tsv and ``description`` writes ``dataset_description.json``.
"""

from __future__ import annotations

from tfds_epilepsy.bids.checking import Check, check
from tfds_epilepsy.bids.derivative import (
    Derivative,
    TemplateSubject,
    fingerprint,
    read_derivative,
    read_subject,
    template_subjects,
    voxel_problems,
)
from tfds_epilepsy.bids.description import (
    BIDS_VERSION,
    reference_of,
    write_bidsignore,
    write_description,
)
from tfds_epilepsy.bids.finding import MODALITIES
from tfds_epilepsy.bids.participants import (
    SPLITS,
    Participant,
    control_problems,
    read_participants,
    split_of,
)
from tfds_epilepsy.bids.raw import RawSubject, find_raw_subjects, raw_subjects
from tfds_epilepsy.bids.tables import add_rows, correct_cells
from tfds_epilepsy.bids.voxels import read_grid, stripped_mask

__all__ = [
    "BIDS_VERSION",
    "MODALITIES",
    "SPLITS",
    "Check",
    "Derivative",
    "Participant",
    "RawSubject",
    "TemplateSubject",
    "add_rows",
    "check",
    "control_problems",
    "correct_cells",
    "find_raw_subjects",
    "fingerprint",
    "raw_subjects",
    "read_derivative",
    "read_grid",
    "read_participants",
    "read_subject",
    "reference_of",
    "split_of",
    "stripped_mask",
    "template_subjects",
    "voxel_problems",
    "write_bidsignore",
    "write_description",
]
