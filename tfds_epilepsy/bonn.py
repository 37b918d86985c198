"""OpenNeuro ds004199: 85 patients with focal cortical dysplasia and 85 controls, Bonn (CC0).

Schuch et al. 2023, An open presurgery MRI dataset of people with epilepsy and focal cortical dysplasia type
II, Scientific Data 10:475. From the public bucket to template space: the files that are needed are fetched,
brought to the template, and read as any derivative is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tfds_epilepsy import bids
from tfds_epilepsy.openneuro import RemoteFile
from tfds_epilepsy.public_cohort import PublicCohort, read_people

# The protocol of all controls. Of patients, about half have both.
PROTOCOL = {"T1w": "iso08", "FLAIR": "T2sel"}


@dataclass(frozen=True)
class BonnConfig(PublicCohort):
    """Which subjects, on which grid.

    Attributes:
        voxel_size, server: see ``PublicCohort``.
        matched: only subjects scanned with the controls' protocol (T1w ``acq-iso08``, FLAIR ``acq-T2sel``).
            They share a derivative with the others.
    """

    dataset = "ds004199"

    matched: bool = False

    def complete(self, listing: Sequence[RemoteFile]) -> set[str]:
        return set(scans_of(listing))

    def choose(self, listing: Sequence[RemoteFile]) -> dict[str, list[RemoteFile]]:
        return {
            label: [file for file in scans if file]
            for label, scans in scans_of(listing).items()
            if scans.matched or not self.matched
        }

    def people(self, folder: Path, labels: Sequence[str]) -> dict[str, bids.Participant]:
        known = read_people(self.raw_of(folder), labels)
        people = {label: known.get(label, bids.Participant(subject=label)) for label in labels}
        return {
            label: replace(person, age=age(person.row.get("age_scan", "")), split=split(person))
            for label, person in people.items()
        }


class Scans(NamedTuple):
    """The files of one subject that are taken."""

    t1w: RemoteFile
    flair: RemoteFile
    roi: RemoteFile | None

    @property
    def matched(self) -> bool:
        return (_acq(self.t1w), _acq(self.flair)) == (PROTOCOL["T1w"], PROTOCOL["FLAIR"])


def scans_of(listing: Sequence[RemoteFile]) -> dict[str, Scans]:
    """The scans that are taken of each subject that has a T1w and a FLAIR, by label.

    Of several FLAIR files, one that a lesion is drawn on; of several such, and of several T1w, the one of the
    controls' protocol; else the first by name.
    """
    files = {file.path: file for file in listing}
    found: dict[str, dict[str, list[RemoteFile]]] = {}
    for file in sorted(listing, key=lambda file: file.path):
        match = re.fullmatch(r"sub-([0-9A-Za-z]+)/anat/sub-\1_(?:[^/]*_)?(T1w|FLAIR)\.nii\.gz", file.path)
        if match:
            found.setdefault(match[1], {}).setdefault(match[2], []).append(file)

    def roi(flair: RemoteFile) -> RemoteFile | None:
        return files.get(flair.path.replace(".nii.gz", "_roi.nii.gz"))

    def first(candidates: Sequence[RemoteFile], modality: str) -> RemoteFile:
        return min(candidates, key=lambda file: (roi(file) is None, _acq(file) != PROTOCOL[modality]))

    scans = {}
    for label, held in found.items():
        if set(held) == set(PROTOCOL):
            t1w, flair = (first(held[modality], modality) for modality in ("T1w", "FLAIR"))
            scans[label] = Scans(t1w, flair, roi(flair))
    return scans


def age(age_class: str) -> float:
    """Years in the middle of an ``age_scan`` class (class k: ages 5k - 4 to 5k); NaN for no number."""
    return 5 * int(age_class) - 2 if age_class.isdecimal() else math.nan


def split(person: bids.Participant) -> str:
    """The split of the data set's own column, but its training patients are for validation: they never train.

    Without the column, the rule of every other data set (``bids.split_of``).
    """
    if person.split == "train" and person.group == "patient":
        return "validation"
    return bids.split_of(person)


def _acq(file: RemoteFile) -> str:
    match = re.search(r"_acq-([0-9A-Za-z]+)_", file.path)
    return match[1] if match else ""
