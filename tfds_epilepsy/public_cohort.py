"""A public cohort: fetched from OpenNeuro, brought to the template, read as any derivative is."""

from __future__ import annotations

import abc
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from tfds_epilepsy import bids, openneuro
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.openneuro import RemoteFile
from tfds_epilepsy.progress import stderr


@dataclass(frozen=True)
class PublicCohort(abc.ABC):
    """Which files of a data set are taken, who the people are, on which grid; a cohort is a subclass.

    Attributes:
        dataset: accession number.
        modalities: that every subject must have.
        reference: what its masks mark: ``lesion``, or ``resection``.
        voxel_size: of the template grid, 1 or 2 mm.
        server: address of the bucket.
    """

    dataset: ClassVar[str]
    modalities: ClassVar[tuple[str, ...]] = ("T1w", "FLAIR")
    reference: ClassVar[str] = "lesion"

    voxel_size: int = 2
    server: str = openneuro.SERVER

    @abc.abstractmethod
    def choose(self, listing: Sequence[RemoteFile]) -> Mapping[str, Sequence[RemoteFile]]:
        """The files that are taken of each subject who has all modalities and is wanted, by label."""

    @abc.abstractmethod
    def complete(self, listing: Sequence[RemoteFile]) -> set[str]:
        """Labels of the subjects who have all modalities, wanted or not."""

    @abc.abstractmethod
    def people(self, folder: Path, labels: Sequence[str]) -> dict[str, bids.Participant]:
        """Who the subjects are, with their splits; what else is needed of files beside is put in place.

        Args:
            folder: that downloads go into; the raw data set is ``raw_of(folder)``.
            labels: the subjects.

        Raises:
            InputError: all that is wrong with tables.
        """

    def strata(self, folder: Path) -> dict[str, dict[str, str]]:
        """What patients are grouped by in an evaluation, by label: ``{"type": ...}``."""
        return {}

    def raw_of(self, folder: str | Path) -> Path:
        """Where the raw files are kept."""
        return Path(folder) / self.dataset

    def derivative_of(self, folder: str | Path) -> Path:
        """Where the derivative goes."""
        return Path(folder) / f"{self.dataset}_{self.voxel_size}mm"

    def prepare(self, folder: str | Path) -> tuple[Path, list[str]]:
        """Fetch the scans, and bring them to the template. What is done is not done again.

        Args:
            folder: downloads and derivative go into it.

        Returns:
            The derivative and the labels of the cohort's subjects in it.

        Raises:
            InputError: ANTs is not installed; no connection; damaged files; subjects that failed.
        """
        from tfds_epilepsy import preprocessing, registration

        folder = Path(folder)
        registration.import_ants()  # missing: said before gigabytes are fetched
        raw, derivative = self.raw_of(folder), self.derivative_of(folder)
        chosen: dict[str, Sequence[RemoteFile]] = {}

        def choose(listing: Sequence[RemoteFile]) -> list[RemoteFile]:
            complete = self.complete(listing)
            there = {file.path.split("/")[0] for file in listing if file.path.startswith("sub-")}
            for subject in sorted(there - {f"sub-{label}" for label in complete}):
                missing = " or ".join(f"no {name}" for name in self.modalities)
                stderr.print(f"{subject}: {missing} in {self.dataset}; it is left out.")
            chosen.update(self.choose(listing))
            names = {file.path for files in chosen.values() for file in files}
            names |= {re.sub(r"\.nii\.gz$", ".json", name) for name in names}
            names |= {
                "participants.tsv",
                "participants.json",
                "dataset_description.json",
                "README",
                "CHANGES",
            }
            return [file for file in listing if file.path in names]

        openneuro.fetch(self.dataset, raw, choose, server=self.server)
        labels = sorted(chosen)
        people = self.people(folder, labels)
        subjects = [
            replace(subject, participant=people.get(subject.subject, subject.participant))
            for subject in bids.raw_subjects(raw, labels, modalities=self.modalities)
        ]
        if self.reference != "lesion":
            name = f"{self.dataset}, in template space"
            bids.write_description(derivative, name, source=raw, LesionMasks=self.reference)
        options = preprocessing.Options(voxel_size=self.voxel_size)
        preprocessing.preprocess_subjects(subjects, raw, derivative, options, jobs=os.cpu_count() or 1)
        return derivative, labels


def read_people(folder: Path, labels: Sequence[str]) -> dict[str, bids.Participant]:
    """The people of a data set's participants.tsv.

    Raises:
        InputError: all that is wrong with it.
    """
    people, problems = bids.read_participants(folder, labels=labels)
    if problems:
        raise InputError(problems)
    return people
