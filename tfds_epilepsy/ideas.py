"""OpenNeuro ds005602: the Imaging Database for Epilepsy And Surgery (CC0), 442 patients and 100 controls.

Taylor et al. 2025, Epilepsia 66:471. The bucket holds raw T1w and FLAIR alone. Who the people are, and where
they were operated, stands in files beside the publication that a browser has to fetch
(https://www.cnnp-lab.com/ideas-data): ``Metadata_Release_Anon.csv``, ``Metadata_Controls_Release.csv`` and
``masks/<n>/<n>_MaskInRawData.nii.gz``, all of them put into ``TABLES`` beside the raw data. Without them
controls are known by their numbers, and no patient has a mask.
"""

from __future__ import annotations

import csv
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tfds_epilepsy import bids
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import replacing
from tfds_epilepsy.openneuro import RemoteFile
from tfds_epilepsy.public_cohort import PublicCohort

TABLES = "ds005602_tables"
PATIENTS, CONTROLS = "Metadata_Release_Anon.csv", "Metadata_Controls_Release.csv"
FIRST_CONTROL = 4001  # patients are 1 to 442, controls 4001 and up


@dataclass(frozen=True)
class IdeasConfig(PublicCohort):
    """Those subjects who have a T1w and a FLAIR; patients' masks mark what was resected."""

    dataset = "ds005602"
    reference = "resection"

    def complete(self, listing: Sequence[RemoteFile]) -> set[str]:
        return set(self.choose(listing))

    def choose(self, listing: Sequence[RemoteFile]) -> dict[str, list[RemoteFile]]:
        found: dict[str, dict[str, RemoteFile]] = {}
        for file in sorted(listing, key=lambda file: file.path):
            match = re.fullmatch(r"sub-([0-9]+)/anat/sub-\1_(?:[^/]*_)?(T1w|FLAIR)\.nii\.gz", file.path)
            if match:
                found.setdefault(match[1], {}).setdefault(match[2], file)
        return {
            label: list(files.values())
            for label, files in found.items()
            if set(files) == set(self.modalities)
        }

    def people(self, folder: Path, labels: Sequence[str]) -> dict[str, bids.Participant]:
        rows = read_tables(folder / TABLES)
        people, problems = {}, []
        for label in labels:
            row, group = rows.get(label, {}), "control" if int(label) >= FIRST_CONTROL else "patient"
            if row and row["group"] != group:
                problems.append(
                    f"{folder / TABLES}: sub-{label} is in the table of {row['group']}s, and patients "
                    f"have numbers below {FIRST_CONTROL}."
                )
            sex = {"F": "f", "M": "m"}.get(row.get("Sex", "").strip().upper(), "")
            person = bids.Participant(
                subject=label, group=group, age=age(row.get("Binned_Age_at_Scan", "")), sex=sex, row=row
            )
            people[label] = replace(person, split=bids.split_of(person))
        if problems:
            raise InputError(problems)
        _place_masks(folder / TABLES / "masks", self.raw_of(folder), labels)
        return people

    def strata(self, folder: Path) -> dict[str, dict[str, str]]:
        rows = read_tables(folder / TABLES)
        return {
            label: {"type": row["Pathology"]}
            for label, row in rows.items()
            if row.get("Pathology", "").strip() not in ("", "NA", "n/a")
        }


def read_tables(folder: str | Path) -> dict[str, dict[str, str]]:
    """The rows of both tables by label, with ``group``; none where there are no tables.

    Raises:
        InputError: a table of other columns; two different rows of one subject.
    """
    rows: dict[str, dict[str, str]] = {}
    problems = []
    for name, group in ((PATIENTS, "patient"), (CONTROLS, "control")):
        path = Path(folder) / name
        if not path.is_file():
            continue
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                table = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            problems.append(f"{path}: cannot be read as a table ({error}).")
            continue
        needed = {"ID", "Sex", "Binned_Age_at_Scan"}
        if not table or not needed <= set(table[0]):
            problems.append(f"{path}: needs the columns {', '.join(sorted(needed))}.")
            continue
        for line in table:
            label = re.sub(r"^(sub-)?0*(?=[0-9])", "", line["ID"].strip())
            row = {key: value or "" for key, value in line.items() if key} | {"group": group}
            if rows.setdefault(label, row) != row:  # one patient stands there twice, with the same words
                problems.append(f"{path}: two different rows of sub-{label}; leave one.")
    if problems:
        raise InputError(problems)
    return rows


def age(age_bin: str) -> float:
    """Years in the middle of a bin (``20 to 24`` is 22); NaN for one that is open (``Over 55``) or none."""
    match = re.fullmatch(r"(\d+) *(?:to|-) *(\d+)", age_bin.strip())
    return (int(match[1]) + int(match[2])) / 2 if match else math.nan


def _place_masks(masks: Path, raw: Path, labels: Sequence[str]) -> None:
    """Put resection masks where raw scans have theirs: on the T1w's grid, which is checked there."""
    for label in labels:
        source = masks / label / f"{label}_MaskInRawData.nii.gz"
        place = raw / "derivatives" / "resections" / f"sub-{label}" / "anat" / f"sub-{label}_T1w_roi.nii.gz"
        if source.is_file() and not place.is_file():
            with replacing(place) as partial:
                shutil.copyfile(source, partial)
