"""The subjects of a template-space derivative, and the records that are read from it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tfds_epilepsy.bids.finding import (
    MODALITIES,
    ScanFile,
    best_session,
    find_files,
    lacking,
    listed,
    read_object,
    session_note,
    sessions_of,
    sidecar_of,
)
from tfds_epilepsy.bids.participants import (
    Participant,
    mask_note,
    read_participants,
    split_of,
    training_problems,
    unmatched,
)
from tfds_epilepsy.bids.voxels import VolumeFile, read_volumes, same_scans, stripped_mask, volume_notes
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import Subject, absent, normalise, read_lesion_mask, read_nifti


@dataclass(frozen=True, kw_only=True)
class TemplateSubject:
    """The files of one subject in template space.

    Example:
        >>> one = read_derivative(derivative_folder).subjects["p1"]
        >>> one.participant.group, one.images["T1w"].name
        ('patient', 'sub-p1_space-MNI152NLin2009aSym_T1w.nii.gz')

    Attributes:
        participant: who it is; its ``split`` is never empty (``split_of``).
        session: label without ``ses-``, empty without sessions.
        images: file of each modality.
        brain_mask: file, or None.
        lesion_mask: file, or None.
        notes: what was chosen among several sessions.
        sessions: all that the subject has.
    """

    participant: Participant
    session: str
    images: Mapping[str, Path]
    brain_mask: Path | None
    lesion_mask: Path | None
    notes: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """Label without ``sub-``."""
        return self.participant.subject

    @property
    def files(self) -> list[Path]:
        """Images and masks."""
        masks = (self.brain_mask, self.lesion_mask)
        return [*self.images.values(), *(mask for mask in masks if mask is not None)]


@dataclass(frozen=True, kw_only=True)
class Derivative:
    """A template-space derivative whose every file was read and agreed.

    Example:
        >>> derivative = read_derivative(derivative_folder)
        >>> derivative.modalities, derivative.voxel_size, list(derivative.subjects)[:2]
        (('T1w', 'FLAIR'), (2.0, 2.0, 2.0), ['c0', 'c1'])

    Attributes:
        folder: the data set.
        modalities: channels, in order.
        subjects: by label.
        space: value of the ``space-`` entity.
        voxel_size: mm.
        fingerprint: hash of all that the records are made from.
        notes: things to know that are no problem.
    """

    folder: Path
    modalities: tuple[str, ...]
    subjects: Mapping[str, TemplateSubject]
    space: str
    voxel_size: tuple[float, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, str]:
        """Label -> ``train``, ``validation`` or ``test``."""
        return {label: one.participant.split for label, one in self.subjects.items()}


def read_derivative(
    folder: str | Path,
    modalities: Sequence[str] | None = None,
    *,
    participant_labels: Sequence[str] | None = None,
    space: str | None = None,
    group_column: str | None = None,
    groups: Mapping[str, str] | None = None,
    require_controls: bool = False,
) -> Derivative:
    """A template-space derivative, once every file in it was read and found sound.

    Example:
        >>> read_derivative(derivative_folder, ["T1w"], require_controls=True).modalities
        ('T1w',)

    Args:
        folder: with ``sub-*/[ses-*/]anat/*_space-*``, ``participants.tsv``, ``dataset_description.json``.
        modalities: which channels, in order; None takes all of ``MODALITIES`` that any subject has.
        participant_labels, space, group_column, groups: as in ``template_subjects``.
        require_controls: fewer than 3 training controls are an error.

    Raises:
        InputError: all problems at once: files that are missing, unreadable, not 3-D, NaN, on other grids;
            empty masks; unknown or doubled subjects; patients in training.
    """
    folder = Path(folder)
    subjects, problems = template_subjects(
        folder,
        participant_labels,
        modalities=modalities,
        space=space,
        group_column=group_column,
        groups=groups,
    )
    unread, notes = check_voxels(subjects)
    problems += unread
    if require_controls and subjects:
        problems += training_problems(folder, [one.participant for one in subjects])
    if problems:
        raise InputError(problems)
    channels = tuple(subjects[0].images)
    image = next(iter(subjects[0].images.values()))
    file = ScanFile.parse(image)
    assert file is not None  # it was found by its name
    sizes = nib.affines.voxel_sizes(read_nifti(image)[1])
    return Derivative(
        folder=folder,
        modalities=channels,
        subjects={subject.subject: subject for subject in subjects},
        space=file.entities["space"],
        voxel_size=tuple(float(size) for size in sizes),
        fingerprint=fingerprint(subjects, channels, folder),
        notes=(*(note for one in subjects for note in one.notes), *notes),
    )


def template_subjects(
    folder: str | Path,
    participant_labels: Sequence[str] | None = None,
    *,
    modalities: Sequence[str] | None = None,
    space: str | None = None,
    group_column: str | None = None,
    groups: Mapping[str, str] | None = None,
) -> tuple[list[TemplateSubject], list[str]]:
    """The subjects of a template-space derivative, sorted by label, and every problem of names and tables.

    Without a column ``split`` in participants.tsv, a hash of the subject's label decides (``split_of``):
    70 % of controls train, 10 % are for validation, 20 % for test; patients are for test. The same label
    always falls in the same split, whatever else the cohort holds.

    Example:
        >>> found, problems = template_subjects(derivative_folder)
        >>> len(found), problems
        (9, [])

    Args:
        folder: of the derivative.
        participant_labels: with or without ``sub-``; None takes all.
        modalities: each subject must have all of them; None takes those of ``MODALITIES`` that any has.
        space: of the ``space-`` entity; needed where the folder holds several.
        group_column: of participants.tsv; None tries ``GROUP_COLUMNS``.
        groups: further words for ``control`` and ``patient``.
    """
    folder = Path(folder)
    people, problems = read_participants(
        folder, group_column=group_column, groups=groups, labels=participant_labels
    )
    scans, found = find_files(folder, participant_labels, derivatives=False)
    problems += found
    templated, trouble = _in_one_space(folder, scans, space)
    problems += trouble
    if not templated:
        return [], problems
    advice = ""
    if modalities is None:
        modalities, common = _modalities_of(templated)
        advice = f" Or do without: --modality {' --modality '.join(common)}." if common else ""
    if not people and not problems:
        problems.append(
            f"{folder / 'participants.tsv'}: no such file; it says who is a control or a patient."
        )
    with_split = any(person.split for person in people.values())
    subjects = []
    for label, files in templated.items():
        person = people.get(label, Participant(subject=label))
        subject, missing = _subject(person, folder, files, modalities, advice)
        subjects.append(subject)
        problems += missing
        if label in people:
            problems += _row_problems(folder, people[label], subject, with_split)
    if people:
        problems += unmatched(folder, people, templated, needed=True)[0]
    return subjects, problems


def voxel_problems(subjects: Sequence[TemplateSubject]) -> list[str]:
    """The problems of ``check_voxels``.

    Example:
        >>> found, _ = template_subjects(derivative_folder)
        >>> voxel_problems(found)
        []
    """
    return check_voxels(subjects)[0]


def check_voxels(subjects: Sequence[TemplateSubject]) -> tuple[list[str], list[str]]:
    """Read every file, images, masks and sidecars.

    Returns:
        The problems: what is truncated, not 3-D, not finite, constant, empty, sheared, on another grid than
        the rest, or a scan of two splits. And things to know that are no problem.
    """
    volumes, problems = read_volumes(
        [path for one in subjects for path in one.images.values()],
        [one.brain_mask for one in subjects if one.brain_mask is not None],
        [one.lesion_mask for one in subjects if one.lesion_mask is not None],
    )
    if volumes:
        usual, _ = Counter(volume.grid.key for volume in volumes.values()).most_common(1)[0]
        reference, one = next((path, one) for path, one in volumes.items() if one.grid.key == usual)
        problems += [
            f"{path}: its grid is {volume.grid}; the others' grid is {one.grid} ({reference.name})."
            for path, volume in volumes.items()
            if not volume.grid.equals(one.grid)
        ]
    notes = []
    for subject in subjects:
        problems += [*_mask_problems(subject, volumes), *sidecar_problems(list(subject.images.values()))]
        notes += volume_notes(subject.subject, volumes, subject.files)
        for modality, path in list(subject.images.items())[:1]:
            if subject.brain_mask is None and path in volumes and volumes[path].stripped:
                notes.append(f"sub-{subject.subject}: no brain mask; the skull-stripped {modality} gives it.")
        if subject.lesion_mask in volumes and volumes[subject.lesion_mask].marked == 1:
            notes.append(f"sub-{subject.subject}: one voxel is marked in {subject.lesion_mask.name}.")
    same, doubles = same_scans([(one.participant, one.images) for one in subjects], volumes)
    return problems + same, notes + [note for of_one in doubles.values() for note in of_one]


def sidecar_problems(paths: Sequence[Path]) -> list[str]:
    """JSON files beside images that cannot be read."""
    problems = []
    for path in paths:
        try:
            _is_normalised(path)
        except InputError as error:
            problems.append(str(error))
    return problems


def read_subject(subject: TemplateSubject, modalities: Sequence[str]) -> Subject:
    """Read the record of a subject: images in [0, 1] inside the brain mask, 0 outside.

    An image is normalised with ``volumes.normalise`` unless its sidecar says ``Normalisation``.
    Without a brain mask in the derivative, ``stripped_mask`` of the first image serves.

    Example:
        >>> one = read_derivative(derivative_folder).subjects["p1"]
        >>> read_subject(one, ["T1w"]).image.shape
        (24, 26, 10, 1)

    Raises:
        InputError: as ``voxel_problems``.
    """
    volumes = []
    for modality in modalities:
        volume, affine = read_nifti(subject.images[modality])
        volumes.append(volume)
    if subject.brain_mask is not None:
        brain_mask = read_nifti(subject.brain_mask)[0] > 0.5
    else:
        brain_mask = stripped_mask(volumes[0])
    images = [
        np.where(brain_mask, volume, 0).astype(np.float32)
        if _is_normalised(subject.images[modality])
        else _normalise(subject.images[modality], volume, brain_mask)
        for modality, volume in zip(modalities, volumes, strict=True)
    ]
    lesion_mask = np.zeros_like(brain_mask)
    if subject.lesion_mask is not None:
        lesion_mask, _ = read_lesion_mask(subject.lesion_mask)
    person = subject.participant
    return Subject(
        subject=person.subject,
        group=person.group,
        image=np.stack(images, axis=-1),
        brain_mask=brain_mask,
        lesion_mask=lesion_mask,
        affine=affine,
        age=person.age,
        sex=person.sex,
        site=person.site,
    )


def fingerprint(subjects: Sequence[TemplateSubject], modalities: Sequence[str], folder: str | Path) -> str:
    """A hash of all that the records are made from: file names and bytes, and what the tables say.

    Example:
        >>> found, _ = template_subjects(derivative_folder)
        >>> fingerprint(found, ["T1w"], derivative_folder) == fingerprint(found, ["T1w"], derivative_folder)
        True

    Returns:
        16 hexadecimal digits.

    Raises:
        InputError: links to files that are not there.
    """
    folder = Path(folder)
    lines = [f"modalities {' '.join(modalities)}"]
    files = sorted({path for subject in subjects for path in subject.files})
    sidecars = [path for path in map(sidecar_of, files) if path is not None]
    if gone := [path for path in [*files, *sidecars] if not path.is_file()]:
        raise InputError([f"{path}: {absent(path)}" for path in gone])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(_digest, [*files, *sidecars])
        lines += [
            f"{path.relative_to(folder)} {digest}"
            for path, digest in zip([*files, *sidecars], digests, strict=True)
        ]
    for subject in sorted(subjects, key=lambda subject: subject.subject):
        who = subject.participant
        lines.append(
            f"{who.subject} {subject.session} {who.group} {who.split} {who.age} {who.sex} {who.site}"
        )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _in_one_space(
    folder: Path, scans: Mapping[str, Sequence[ScanFile]], space: str | None
) -> tuple[dict[str, list[ScanFile]], list[str]]:
    """Each subject's files in the space; none at all where it holds no image.

    A lesion mask whose name says no space is one of them where no other lesion mask is: its grid will tell.
    """
    images = [file for files in scans.values() for file in files if file.modality and not file.native]
    spaces = sorted({file.entities["space"] for file in images})
    problems = []
    if space is None and len(spaces) > 1:
        problems.append(
            f"{folder}: images in {len(spaces)} spaces ({', '.join(spaces)}); choose one, "
            f"as in --space {spaces[0]}."
        )
    chosen = space or next(iter(spaces), "")
    if chosen not in spaces:
        there = f" in space {chosen} (there are: {', '.join(spaces)})" if spaces else ""
        problems.append(
            f"{folder}: no template-space image{there} (sub-*/anat/*_space-*_T1w.nii.gz); "
            "raw scans are brought to the template by 'epizoo preprocess'."
        )
        return {}, problems
    templated = {}
    for label, files in scans.items():
        own = [file for file in files if not file.native and file.entities["space"] == chosen]
        if not any(file.is_lesion for file in own):
            own += [file for file in files if file.is_lesion and "space" not in file.entities]
        templated[label] = own
    return templated, problems


def _modalities_of(templated: Mapping[str, Sequence[ScanFile]]) -> tuple[list[str], list[str]]:
    """The modalities that any subject has an image of, and those that all have."""
    held = [{file.modality for file in files} for files in templated.values()]
    found = [name for name in MODALITIES if any(name in one for one in held)]
    return found, [name for name in found if all(name in one for one in held)]


def _subject(
    person: Participant, folder: Path, files: Sequence[ScanFile], modalities: Sequence[str], advice: str
) -> tuple[TemplateSubject, list[str]]:
    """The subject's session and files, and what it lacks, with ``advice``, or has too much of."""
    label, problems = person.subject, []
    masks = [file for file in files if file.is_lesion]
    session = best_session(
        [file for file in files if not file.is_lesion], modalities, modalities, {one.session for one in masks}
    )
    notes = [*person.notes, *session_note(label, files, session)]
    notes += [
        f"sub-{label}: lesion mask {mask.path.name} is not taken; it is of another session."
        for mask in masks
        if mask.session not in (session, "")
    ]
    own = [file for file in files if file.session == session or (file in masks and not file.session)]
    images: dict[str, Path] = {}
    for modality in modalities:
        candidates = [file for file in own if file.is_image(modality)]
        if len(candidates) == 1:
            images[modality] = candidates[0].path
        elif candidates:
            problems.append(f"{listed(candidates)}: several {modality} of sub-{label}; leave one.")
        else:
            name = f"*_space-*_{modality}.nii.gz"
            problems.append(lacking(folder / f"sub-{label}", label, modality, name) + advice)
    kinds = {
        "brain": [file for file in own if file.is_brain],
        "lesion": [file for file in own if file.is_lesion],
    }
    problems += [
        f"{listed(found)}: several {kind} masks of sub-{label}; leave one."
        for kind, found in kinds.items()
        if len(found) > 1
    ]
    first = {kind: found[0].path if found else None for kind, found in kinds.items()}
    subject = TemplateSubject(
        participant=replace(person, split=split_of(person)),
        session=session,
        images=images,
        brain_mask=first["brain"],
        lesion_mask=first["lesion"],
        notes=(*notes, *mask_note(person, first["lesion"])),
        sessions=sessions_of(files),
    )
    return subject, problems


def _row_problems(folder: Path, said: Participant, subject: TemplateSubject, with_split: bool) -> list[str]:
    """What a subject's row in participants.tsv, ``said``, lacks or cannot mean."""
    table, label, problems = folder / "participants.tsv", subject.subject, []
    if not said.group:
        problems.append(f"{table}: sub-{label} has no group (control or patient).")
    if with_split and not said.split:
        problems.append(f"{table}: sub-{label} has no split, others have.")
    if said.group == "patient" and subject.participant.split == "train":
        problems.append(
            f"{table}: sub-{label} is a patient in split 'train'; "
            "controls alone train: write 'validation' or 'test'."
        )
    return problems


def _mask_problems(subject: TemplateSubject, volumes: Mapping[Path, VolumeFile]) -> list[str]:
    """A brain that cannot be told from the rest, a lesion outside it."""
    brain, lesion = subject.brain_mask, subject.lesion_mask
    if brain is None:
        return [
            f"{image}: sub-{subject.subject} has no brain mask (*_space-*_desc-brain_mask.nii.gz), and the "
            "image is not skull-stripped, so that none can be taken from it."
            for image in list(subject.images.values())[:1]
            if image in volumes and not volumes[image].stripped
        ]
    if lesion is None or not {brain, lesion} <= set(volumes):
        return []
    if not volumes[brain].grid.equals(volumes[lesion].grid):
        return []  # said already
    if (read_lesion_mask(lesion)[0] & (read_nifti(brain)[0] > 0.5)).any():
        return []
    return [f"{lesion}: none of the lesion lies in the brain ({brain.name})."]


def _is_normalised(path: Path) -> bool:
    sidecar = sidecar_of(path)
    if sidecar is None:
        return False
    return "Normalisation" in read_object(sidecar)


def _normalise(path: Path, volume: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    try:
        return normalise(volume, mask)[0]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
