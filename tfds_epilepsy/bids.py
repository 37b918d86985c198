"""Find and validate the subjects of a BIDS data set: raw scans, and template-space derivatives.

Nothing is trusted: every file is opened before any long work, and all problems of a data set come in one
error.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import Subject, normalise, read_nifti, same_grid

MODALITIES = ("T1w", "FLAIR", "T2w", "T1map", "T2map", "pet")  # in the order of the channels
GROUPS = {
    **dict.fromkeys(("control", "controls", "hc", "healthy", "healthy_control"), "control"),
    **dict.fromkeys(("patient", "patients", "fcd", "epilepsy", "case"), "patient"),
}
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Participant:
    """A row of participants.tsv, in the project's terms; empty or NaN where it is not known."""

    subject: str
    group: str = ""
    split: str = ""
    age: float = math.nan
    sex: str = ""
    site: str = ""


@dataclass(frozen=True)
class RawSubject:
    """The scans of one subject in native space.

    Attributes:
        subject: label without ``sub-``.
        images: modality -> file; T1w is always there.
        lesion_mask: on the grid of one of the images, or None.
        group, age, sex, site: from participants.tsv.
    """

    subject: str
    images: Mapping[str, Path]
    lesion_mask: Path | None = None
    group: str = ""
    split: str = ""
    age: float = math.nan
    sex: str = ""
    site: str = ""


@dataclass(frozen=True)
class DerivativeSubject:
    """The files of one subject in template space."""

    subject: str
    participant: Participant
    images: Mapping[str, Path]
    brain_mask: Path | None
    lesion_mask: Path | None


@dataclass(frozen=True)
class Derivative:
    """A template-space derivative whose every file was read and agreed.

    Attributes:
        folder: the data set.
        modalities: channels, in order.
        subjects: by label.
        splits: label -> train, validation or test.
        space: value of the ``space-`` entity.
        fingerprint: hash of the contents of all files that are read.
    """

    folder: Path
    modalities: tuple[str, ...]
    subjects: Mapping[str, DerivativeSubject]
    splits: Mapping[str, str]
    space: str
    voxel_size: tuple[float, ...]
    fingerprint: str
    notes: list[str] = field(default_factory=list)


# === Template-space derivatives ===


def read_derivative(folder: str | Path, modalities: Sequence[str] | None = None) -> Derivative:
    """Find and check every subject of a template-space derivative.

    ``split`` of participants.tsv is taken where it is there. Else a subject's split is a function of its
    label alone: patients are for test; of the controls, the SHA-256 of the label sends 70 % to training, 10 %
    to validation and 20 % to test.

    Args:
        folder: with ``sub-*/[ses-*/]anat/*_space-*``, ``participants.tsv``, ``dataset_description.json``.
        modalities: which channels; by default every one that is found. Each subject needs all of them.

    Raises:
        InputError: all problems at once: files that are missing, unreadable, not 3-D, NaN, on other grids;
            empty masks; unknown or doubled subjects; patients in training.
    """
    folder = Path(folder)
    participants, problems = read_participants(folder)
    found: dict[str, DerivativeSubject] = {}
    for subject_folder in _subject_folders(folder):
        label = subject_folder.name.removeprefix("sub-")
        subject, subject_problems = _find_derivative_subject(
            subject_folder, participants.get(label), modalities
        )
        problems += subject_problems
        if subject is not None:
            found[label] = subject
    if not found and not problems:
        problems.append(f"{folder}: no sub-*/anat/*_space-*.nii.gz; is it a template-space derivative?")
    present = {m for subject in found.values() for m in subject.images}
    channels = tuple(modalities or [m for m in MODALITIES if m in present])
    for subject in found.values():
        missing = [m for m in channels if m not in subject.images]
        if missing:
            problems.append(
                f"{folder}/sub-{subject.subject}: no {', '.join(missing)} image; other subjects have one."
            )
    problems += _doubled(found)
    splits = {label: split_of(subject.participant) for label, subject in found.items()}
    for label, split in splits.items():
        if split == "train" and found[label].participant.group == "patient":
            problems.append(f"{folder}: sub-{label} is a patient in the train split; only controls train.")
        if split not in SPLITS:
            problems.append(
                f"{folder}: sub-{label} has split {split!r}; it must be one of {', '.join(SPLITS)}."
            )
    grid_problems, voxel_size = _check_volumes(found, channels)
    problems += grid_problems
    if problems:
        raise InputError(problems)
    spaces = {_entities(path)["space"] for subject in found.values() for path in subject.images.values()}
    if len(spaces) > 1:
        raise InputError(f"{folder}: images in several spaces ({', '.join(sorted(spaces))}); one is needed.")
    files = [folder / "participants.tsv"]
    for subject in found.values():
        files += [*subject.images.values(), *filter(None, (subject.brain_mask, subject.lesion_mask))]
    return Derivative(
        folder, channels, found, splits, spaces.pop(), voxel_size, hash_files(files, folder, channels)
    )


def read_subject(subject: DerivativeSubject, modalities: Sequence[str]) -> Subject:
    """Read the volumes of one subject; intensities are normalised inside the brain mask.

    Where there is no brain mask, it is what the skull-stripped first image shows: its largest connected
    component above 0, holes filled. A sidecar that says ``"Normalisation"`` is believed: the image is taken
    as it is.
    """
    first, affine = read_nifti(subject.images[modalities[0]])
    if subject.brain_mask is not None:
        brain = read_nifti(subject.brain_mask)[0] > 0.5
    else:
        brain = mask_of_stripped(first)
    channels = []
    for modality in modalities:
        path = subject.images[modality]
        volume = first if modality == modalities[0] else read_nifti(path)[0]
        if _is_normalised(path):
            channels.append(np.where(brain, volume, 0).astype(np.float32))
        else:
            channels.append(normalise(volume, brain)[0])
    if subject.lesion_mask is not None:
        lesion = read_nifti(subject.lesion_mask)[0] > 0.5
    else:
        lesion = np.zeros(brain.shape, bool)
    who = subject.participant
    return Subject(
        subject.subject,
        who.group,
        np.stack(channels, -1),
        brain,
        lesion & brain,
        affine,
        who.age,
        who.sex,
        who.site,
    )


def mask_of_stripped(volume: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Brain mask of a skull-stripped image: the largest component above 0, holes filled."""
    labels, n = ndimage.label(volume > 0)
    if n == 0:
        return np.zeros(volume.shape, bool)
    sizes = np.bincount(labels.ravel())[1:]
    return ndimage.binary_fill_holes(labels == 1 + int(sizes.argmax()))


def split_of(participant: Participant) -> str:
    """The split that participants.tsv gives, or the rule of ``read_derivative``."""
    if participant.split:
        return participant.split
    if participant.group == "patient":
        return "test"
    share = int(hashlib.sha256(participant.subject.encode()).hexdigest()[:8], 16) / 16**8
    return "train" if share < 0.7 else "validation" if share < 0.8 else "test"


# === Raw data sets ===


def raw_subjects(bids_dir: str | Path, participant_labels: Sequence[str] | None = None) -> list[RawSubject]:
    """The subjects of a raw BIDS data set, each with its T1w and what other contrasts there are.

    Of several sessions the first is taken; of several runs or acquisitions of a contrast, the first by name.
    Lesion masks (``*_roi``, ``*label-lesion*_mask``, ``*desc-lesion*_mask``, beside the image or in
    ``derivatives/``) are never taken for images.

    Args:
        bids_dir: the data set.
        participant_labels: only these, with or without ``sub-``.

    Raises:
        InputError: all problems at once.
    """
    bids_dir = Path(bids_dir)
    if not bids_dir.is_dir():
        raise InputError(f"{bids_dir}: no such folder.")
    problems: list[str] = []
    participants: Mapping[str, Participant] = {}
    if (bids_dir / "participants.tsv").is_file():
        participants, problems = read_participants(bids_dir)
    folders = {path.name.removeprefix("sub-"): path for path in _subject_folders(bids_dir)}
    wanted = [label.removeprefix("sub-") for label in participant_labels or sorted(folders)]
    problems += [f"{bids_dir}: no folder sub-{label}." for label in wanted if label not in folders]
    if not wanted:
        problems.append(f"{bids_dir}: no sub-* folder; is it a BIDS data set?")
    subjects = []
    for label in wanted:
        if label not in folders:
            continue
        session = _sessions(folders[label])[0]
        images, lesion = _raw_files(session)
        if lesion is None:
            lesion = _lesion_in_derivatives(bids_dir, label)
        if "T1w" not in images:
            problems.append(f"{session}: no T1w image.")
            continue
        for path in [*images.values(), *([lesion] if lesion else [])]:
            problems += _volume_problems(path)
        who = participants.get(label, Participant(label))
        subjects.append(RawSubject(label, images, lesion, who.group, who.split, who.age, who.sex, who.site))
    if problems:
        raise InputError(problems)
    return subjects


# === Tables ===


def read_participants(
    folder: Path, group_column: str | None = None
) -> tuple[dict[str, Participant], list[str]]:
    """participants.tsv by label, and its problems; a byte-order mark, ``n/a`` and age classes are known."""
    path = folder / "participants.tsv"
    if not path.is_file():
        return {}, [f"{path}: no such file; it says who is a control and who a patient (column 'group')."]
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    if not rows or "participant_id" not in rows[0]:
        return {}, [f"{path}: no column participant_id, or no row."]
    problems = []
    names = {name.lower(): name for name in rows[0] if name}

    def value(row: Mapping[str, str], *columns: str) -> str:
        for column in columns:
            text = (row.get(names.get(column, "")) or "").strip()
            if text.lower() not in ("", "n/a", "na", "nan"):
                return text
        return ""

    participants: dict[str, Participant] = {}
    for row in rows:
        label = (row["participant_id"] or "").strip().removeprefix("sub-")
        if label in participants:
            problems.append(f"{path}: sub-{label} stands twice.")
        group = value(row, (group_column or "group").lower())
        known = GROUPS.get(group.lower(), "")
        if not known:
            problems.append(
                f"{path}: sub-{label} has group {group or 'n/a'!r}; known are {', '.join(GROUPS)}."
            )
        participants[label] = Participant(
            label,
            known,
            value(row, "split").lower(),
            _age(value(row, "age", "age_scan", "age_at_scan")),
            value(row, "sex", "gender").lower()[:1],
            value(row, "site"),
        )
    return participants, problems


def hash_files(files: Sequence[Path], folder: Path, extra: object = None) -> str:
    """A hash of the names (relative to a folder) and contents of files."""
    digest = hashlib.sha256(json.dumps(extra).encode())
    for path in sorted(files):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


# === Files ===


def _subject_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder.")
    return sorted(path for path in folder.glob("sub-*") if path.is_dir())


def _sessions(subject_folder: Path) -> list[Path]:
    sessions = sorted(path for path in subject_folder.glob("ses-*") if path.is_dir())
    return sessions or [subject_folder]


def _images(folder: Path) -> Iterator[tuple[Path, dict[str, str], str]]:
    """NIfTI files below a folder: path, entities, suffix."""
    for path in sorted(folder.glob("**/sub-*.nii*")):
        if path.name.endswith((".nii", ".nii.gz")):
            yield path, _entities(path), path.name.split(".")[0].rsplit("_", 1)[-1]


def _entities(path: Path) -> dict[str, str]:
    return dict(re.findall(r"([a-zA-Z0-9]+)-([a-zA-Z0-9+]+)", path.name.split(".")[0]))


def _is_lesion(entities: Mapping[str, str], suffix: str) -> bool:
    named = "lesion" in entities.get("label", "").lower() or "lesion" in entities.get("desc", "").lower()
    return suffix == "roi" or (suffix == "mask" and named)


def _find_derivative_subject(
    folder: Path, participant: Participant | None, modalities: Sequence[str] | None
) -> tuple[DerivativeSubject | None, list[str]]:
    label = folder.name.removeprefix("sub-")
    images: dict[str, list[Path]] = {}
    brain, lesion = [], []
    for path, entities, suffix in _images(folder):
        if "space" not in entities:
            continue
        if _is_lesion(entities, suffix):
            lesion.append(path)
        elif suffix == "mask" and entities.get("desc", "brain") == "brain":
            brain.append(path)
        elif suffix in MODALITIES and (modalities is None or suffix in modalities):
            images.setdefault(suffix, []).append(path)
    problems = []
    for what, paths in {**images, "brain mask": brain, "lesion mask": lesion}.items():
        if len(paths) > 1:
            problems.append(f"{folder}: several files for one {what}: {', '.join(p.name for p in paths)}.")
    if not images:
        problems.append(f"{folder}: no image (*_space-*_T1w.nii.gz, ...).")
    if participant is None:
        problems.append(f"{folder}: sub-{label} has no row in participants.tsv.")
    if problems or participant is None:
        return None, problems
    return (
        DerivativeSubject(
            label,
            participant,
            {name: paths[0] for name, paths in images.items()},
            brain[0] if brain else None,
            lesion[0] if lesion else None,
        ),
        [],
    )


def _check_volumes(
    subjects: Mapping[str, DerivativeSubject], channels: Sequence[str]
) -> tuple[list[str], tuple[float, ...]]:
    """Open every volume: readable, one grid, masks that hold something."""
    problems: list[str] = []
    reference: tuple[Path, tuple[int, ...], NDArray] | None = None
    for subject in subjects.values():
        brain = None
        for name, path in _files_of(subject, channels):
            try:
                volume, affine = read_nifti(path)
            except InputError as error:
                problems += error.problems
                continue
            if reference is None:
                reference = (path, volume.shape, affine)
            elif not same_grid(volume.shape, affine, *reference[1:]):
                problems.append(
                    f"{path}: {_grid(volume.shape, affine)}; {reference[0].name} of the first subject: "
                    f"{_grid(*reference[1:])}; put all on one grid."
                )
                continue
            if name == "brain mask" or (brain is None and subject.brain_mask is None):
                brain = volume > 0.5 if name == "brain mask" else mask_of_stripped(volume)
                if not brain.any():
                    problems.append(f"{path}: the brain mask is empty.")
                elif name != "brain mask" and brain.mean() > 0.6:
                    problems.append(f"{path}: no brain mask beside it, and it does not look skull-stripped.")
            elif name == "lesion mask" and not (volume > 0.5).any():
                problems.append(f"{path}: the lesion mask is empty; remove it, or mend it.")
    zooms = () if reference is None else tuple(float(z) for z in nib.affines.voxel_sizes(reference[2]))
    return problems, zooms


def _grid(shape: tuple[int, ...], affine: NDArray) -> str:
    sizes = nib.affines.voxel_sizes(affine).round(2).tolist()
    return f"grid {shape}, {sizes} mm, origin {affine[:3, 3].round(1).tolist()}"


def _files_of(subject: DerivativeSubject, channels: Sequence[str]) -> Iterator[tuple[str, Path]]:
    if subject.brain_mask is not None:
        yield "brain mask", subject.brain_mask
    for modality in channels:
        if modality in subject.images:
            yield modality, subject.images[modality]
    if subject.lesion_mask is not None:
        yield "lesion mask", subject.lesion_mask


def _raw_files(session: Path) -> tuple[dict[str, Path], Path | None]:
    images: dict[str, Path] = {}
    lesion = None
    for path, entities, suffix in _images(session):
        if path.parent.name not in ("anat", "pet") or "space" in entities:
            continue
        if _is_lesion(entities, suffix):
            lesion = lesion or path
        elif suffix in MODALITIES:
            images.setdefault(suffix, path)
    return images, lesion


def _lesion_in_derivatives(bids_dir: Path, label: str) -> Path | None:
    for folder in sorted(bids_dir.glob(f"derivatives/**/sub-{label}")):
        for path, entities, suffix in _images(folder):
            if _is_lesion(entities, suffix) and "space" not in entities:
                return path
    return None


def _volume_problems(path: Path) -> list[str]:
    try:
        read_nifti(path)
    except InputError as error:
        return error.problems
    return []


def _doubled(subjects: Mapping[str, DerivativeSubject]) -> list[str]:
    counts = Counter(label.lower() for label in subjects)
    return [
        f"two subjects of one name: {', '.join(f'sub-{s}' for s in subjects if s.lower() == label)}."
        for label, count in counts.items()
        if count > 1
    ]


def _is_normalised(path: Path) -> bool:
    sidecar = path.with_name(path.name.split(".nii")[0] + ".json")
    if not sidecar.is_file():
        return False
    return "Normalisation" in json.loads(sidecar.read_text())


def _age(text: str) -> float:
    """Years; the middle of a class such as ``20-24``; NaN where it is not known."""
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]
    return sum(numbers) / len(numbers) if numbers else math.nan
