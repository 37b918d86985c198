"""OpenNeuro ds004199: 85 patients with focal cortical dysplasia and 85 controls, Bonn (CC0).

Schuch et al. 2023, An open presurgery MRI dataset of people with epilepsy and focal cortical dysplasia type
II, Scientific Data 10:475. From the public bucket to template space: the files that are needed are fetched,
brought to the template, and read as any derivative is.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tfds_epilepsy import bids, openneuro
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.openneuro import RemoteFile
from tfds_epilepsy.progress import stderr

DATASET = "ds004199"
# The protocol of all controls. Of patients, about half have both.
PROTOCOL = {"T1w": "iso08", "FLAIR": "T2sel"}


@dataclass(frozen=True)
class BonnConfig:
    """Which subjects, on which grid.

    Attributes:
        matched: only subjects scanned with the controls' protocol (T1w ``acq-iso08``, FLAIR ``acq-T2sel``).
        voxel_size: of the template grid, 1 or 2 mm.
        server: address of the bucket.
    """

    matched: bool = False
    voxel_size: int = 2
    server: str = openneuro.SERVER


class Scans(NamedTuple):
    """The files of one subject that are taken."""

    t1w: RemoteFile
    flair: RemoteFile
    roi: RemoteFile | None

    @property
    def matched(self) -> bool:
        return (_acq(self.t1w), _acq(self.flair)) == (PROTOCOL["T1w"], PROTOCOL["FLAIR"])


def prepare(folder: str | Path, config: BonnConfig) -> tuple[Path, list[str]]:
    """Fetch the scans, and bring them to the template. What is done is not done again.

    Args:
        folder: downloads and derivative go into it.
        config: which subjects.

    Returns:
        The derivative and the labels of the config's subjects in it.

    Raises:
        InputError: ANTs is not installed; no connection; damaged files; subjects that failed.
    """
    from tfds_epilepsy import preprocessing, registration

    registration.import_ants()  # missing: said before gigabytes are fetched
    raw = Path(folder) / DATASET
    chosen: dict[str, Scans] = {}

    def choose(listing: Sequence[RemoteFile]) -> list[RemoteFile]:
        complete = scans_of(listing)
        for subject in sorted({file.path.split("/")[0] for file in listing if file.path.startswith("sub-")}):
            if subject.removeprefix("sub-") not in complete:
                stderr.print(f"{subject}: no T1w or no FLAIR in {DATASET}; it is left out.")
        chosen.update((s, scans) for s, scans in complete.items() if scans.matched or not config.matched)
        names = {file.path for scans in chosen.values() for file in scans if file}
        names |= {re.sub(r"\.nii\.gz$", ".json", name) for name in names}
        names |= {"participants.tsv", "participants.json", "dataset_description.json", "README", "CHANGES"}
        return [file for file in listing if file.path in names]

    openneuro.fetch(DATASET, raw, choose, server=config.server)
    labels = sorted(chosen)
    people, problems = bids.read_participants(raw, labels=labels)
    if problems:
        raise InputError(problems)
    subjects = []
    for subject in bids.raw_subjects(raw, labels, modalities=tuple(PROTOCOL)):
        person = people.get(subject.subject, bids.Participant(subject=subject.subject))
        person = replace(person, age=age(person.row.get("age_scan", "")), split=split(person))
        subjects.append(replace(subject, participant=person))
    derivative = derivative_of(folder, config)
    options = preprocessing.Options(voxel_size=config.voxel_size)
    preprocessing.preprocess_subjects(subjects, raw, derivative, options, jobs=os.cpu_count() or 1)
    return derivative, labels


def derivative_of(folder: str | Path, config: BonnConfig) -> Path:
    """Where ``prepare`` puts the derivative: one for both sets of subjects."""
    return Path(folder) / f"{DATASET}_{config.voxel_size}mm"


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
