"""The subjects of a raw BIDS data set: which scans of each are taken, and where its lesion mask lies."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tfds_epilepsy.bids.finding import (
    MODALITIES,
    ScanFile,
    best_session,
    find_files,
    lacking,
    listed,
    session_note,
    sessions_of,
)
from tfds_epilepsy.bids.participants import Participant, mask_note, read_participants, unmatched
from tfds_epilepsy.bids.voxels import (
    VolumeFile,
    background_of,
    read_grid,
    read_volumes,
    same_scans,
    volume_notes,
)
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import read_lesion_mask, read_nifti


@dataclass(frozen=True, kw_only=True)
class RawSubject:
    """The scans of one subject in native space, each on its own grid.

    Example:
        >>> one = raw_subjects(bids_folder)[0]
        >>> one.participant.subject, one.images["T1w"].name
        ('01', 'sub-01_T1w.nii.gz')

    Attributes:
        participant: who it is.
        session: label without ``ses-``, empty without sessions.
        images: file of each modality.
        lesion_mask: file, or None.
        lesion_modality: the modality on whose grid the lesion mask lies.
        notes: what was chosen among several files.
        sessions: all that the subject has.
        others: files of each modality that were not chosen, in any session.
    """

    participant: Participant
    session: str
    images: Mapping[str, Path]
    lesion_mask: Path | None = None
    lesion_modality: str | None = None
    notes: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    others: Mapping[str, Sequence[Path]] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """Label without ``sub-``."""
        return self.participant.subject


def raw_subjects(
    bids_dir: str | Path,
    participant_labels: Sequence[str] | None = None,
    *,
    modalities: Sequence[str] | None = None,
    session: str | None = None,
    filters: Mapping[str, Mapping[str, str]] | None = None,
    group_column: str | None = None,
    groups: Mapping[str, str] | None = None,
) -> list[RawSubject]:
    """The subjects of a raw BIDS data set, sorted by label, once every voxel of theirs was read.

    Of several sessions, the first that holds all modalities that are needed is taken, one with a lesion mask
    before others, then one with most modalities. Of several files of a modality in it, the one that the
    lesion mask is named after; else a plain one before contrast-enhanced images and localizers; else the
    first by name. ``notes`` say what was chosen, and what was not.

    Example:
        >>> [one.participant.subject for one in raw_subjects(bids_folder)]
        ['01']

    Args:
        bids_dir: folder that holds ``sub-*``.
        participant_labels: with or without ``sub-``; None takes all.
        modalities: names as in file suffixes; each subject must have all of them. None takes those of
            ``MODALITIES`` that are there and demands T1w.
        session: label of the one session to take.
        filters: entities that a modality's file must carry, ``{"FLAIR": {"acq": "T2sel"}}``.
        group_column: of participants.tsv; None tries ``GROUP_COLUMNS``.
        groups: words of that column in the data set, each mapped to ``control`` or ``patient``.

    Raises:
        InputError: all the problems of the data set, each with its file.
    """
    subjects, problems = find_raw_subjects(
        Path(bids_dir),
        participant_labels,
        modalities=modalities,
        session=session,
        filters=filters,
        group_column=group_column,
        groups=groups,
    )
    if problems:
        raise InputError(problems)
    return subjects


def find_raw_subjects(
    folder: Path,
    labels: Sequence[str] | None = None,
    *,
    modalities: Sequence[str] | None = None,
    session: str | None = None,
    filters: Mapping[str, Mapping[str, str]] | None = None,
    group_column: str | None = None,
    groups: Mapping[str, str] | None = None,
) -> tuple[list[RawSubject], list[str]]:
    """The subjects, as ``raw_subjects`` gives them, and every problem instead of an error.

    Example:
        >>> found, problems = find_raw_subjects(bids_folder)
        >>> len(found), problems
        (1, [])
    """
    people, problems = read_participants(folder, group_column=group_column, groups=groups, labels=labels)
    scans, found = find_files(folder, labels)
    problems += found
    if people:
        problems += unmatched(folder, people, scans, needed=False)[0]
    choice = _Choice(
        modalities=tuple(modalities or MODALITIES),
        required=tuple(modalities or ("T1w",)),
        session=None if session is None else session.removeprefix("ses-"),
        filters=filters or {},
    )
    problems += _filter_problems(folder, [file for files in scans.values() for file in files], choice.filters)
    subjects: list[RawSubject] = []
    volumes: dict[Path, VolumeFile] = {}
    for label, files in scans.items():
        person = people.get(label, Participant(subject=label))
        subject, mask, trouble = _choose(person, folder, files, choice)
        problems += trouble
        read, trouble = read_volumes(
            list(subject.images.values()), lesion_masks=[mask.path] if mask is not None else []
        )
        problems += trouble
        if mask is not None and mask.path in read:
            subject, trouble = _place_mask(subject, mask, read)
            problems += trouble
        notes = volume_notes(label, read, list(read))
        subjects.append(replace(subject, notes=(*person.notes, *subject.notes, *notes)))
        volumes |= read
    same, doubles = same_scans([(one.participant, one.images) for one in subjects], volumes)
    subjects = [replace(one, notes=(*one.notes, *doubles.get(one.subject, ()))) for one in subjects]
    return subjects, problems + same


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """What the caller asked for, of every subject."""

    modalities: tuple[str, ...]
    required: tuple[str, ...]
    session: str | None
    filters: Mapping[str, Mapping[str, str]]


def _filter_problems(
    folder: Path, files: Sequence[ScanFile], filters: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Filters that no file passes."""
    problems = []
    for modality, wanted in filters.items():
        images = [file for file in files if file.native and not file.derived and file.is_image(modality)]
        if any(file.matches({modality: wanted}) for file in images):
            continue
        asked = ", ".join(f"{key}-{value}" for key, value in wanted.items())
        there = sorted({f"{key}-{f.entities[key]}" for f in images for key in wanted if key in f.entities})
        problems.append(
            f"{folder}: filter {modality}:{asked} matches none of {len(images)} {modality} files "
            f"(there are: {', '.join(there) or 'none with ' + ', '.join(wanted)})."
        )
    return problems


def _choose(
    person: Participant, folder: Path, files: Sequence[ScanFile], choice: _Choice
) -> tuple[RawSubject, ScanFile | None, list[str]]:
    """The subject's session and files, the lesion mask's name, and what the subject lacks."""
    label, problems = person.subject, []
    every = [file for file in files if file.native and not file.derived and not file.is_lesion]
    own = [file for file in every if file.matches(choice.filters)]
    own = [file for file in own if choice.session in (None, file.session)]
    masks = {file: _homes(file, own) for file in files if file.is_lesion}
    with_mask = frozenset[str]().union(*masks.values())
    session = best_session(own, choice.modalities, choice.required, with_mask)
    notes = session_note(label, own, session)
    own = [file for file in own if file.session == session]
    fitting = [mask for mask, homes in masks.items() if session in homes]
    mask, trouble = _lesion_mask(label, fitting)
    problems += trouble
    notes += [*_left_masks(label, mask, masks, session), *mask_note(person, mask.path if mask else None)]
    images: dict[str, Path] = {}
    for modality in choice.modalities:
        candidates = [file for file in own if file.is_image(modality)]
        if candidates:
            picked = _pick(candidates, mask)
            images[modality] = picked.path
            notes += _pick_notes(label, modality, picked, len(candidates))
        elif modality in choice.required:
            where = folder / f"sub-{label}" / (f"ses-{session}" if session else "")
            problems.append(lacking(where, label, modality, f"*_{modality}.nii.gz"))
    subject = RawSubject(
        participant=person,
        session=session,
        images=images,
        lesion_mask=mask.path if mask else None,
        notes=tuple(notes),
        sessions=sessions_of(every),
        others={
            modality: [file.path for file in every if file.is_image(modality) and file.path != path]
            for modality, path in images.items()
        },
    )
    return subject, mask, problems


def _homes(mask: ScanFile, images: Sequence[ScanFile]) -> frozenset[str]:
    """The sessions that a lesion mask may belong to: its own, or those with an image on its grid."""
    sessions = set(sessions_of(images))
    if not mask.native:
        return frozenset()
    if mask.session or mask.session in sessions:
        return frozenset({mask.session} & sessions)
    try:
        grid = read_grid(mask.path)
        return frozenset({one.session for one in images if grid.equals(read_grid(one.path))}) or frozenset(
            sessions
        )
    except InputError:  # said when the voxels are read
        return frozenset(sessions)


def _lesion_mask(label: str, masks: Sequence[ScanFile]) -> tuple[ScanFile | None, list[str]]:
    """The lesion mask among those of a session: beside an image before under derivatives."""
    first = [mask for mask in masks if not mask.derived] or list(masks)
    if len(first) > 1:
        return first[0], [f"{listed(first)}: {len(first)} lesion masks of sub-{label}; leave one."]
    return (first[0] if first else None), []


def _left_masks(
    label: str, taken: ScanFile | None, masks: Mapping[ScanFile, Collection[str]], session: str
) -> list[str]:
    """What to tell of lesion masks that are not taken; of copies in template space only where no other is."""
    notes = []
    for mask, homes in masks.items():
        if mask is taken or (taken is not None and not mask.native):
            continue
        if not mask.native:
            why = f"it lies in space {mask.entities['space']}"
        elif session not in homes:
            why = f"it is of session {mask.session or 'without a name'}"
        elif mask.derived and taken is not None and not taken.derived:
            why = "the one beside the image is"
        else:
            continue  # a problem: there are several
        notes.append(f"sub-{label}: lesion mask {mask.path.name} is not taken; {why}.")
    return notes


def _pick(candidates: Sequence[ScanFile], mask: ScanFile | None) -> ScanFile:
    """The image that the lesion mask is named after; else the first plain one; else the first by name."""
    named = next((file for file in candidates if mask and mask.named_after(file)), None)
    return named or min(candidates, key=lambda file: bool(file.oddity))


def _pick_notes(label: str, modality: str, picked: ScanFile, count: int) -> list[str]:
    notes = []
    if count > 1:
        notes.append(f"sub-{label}: {picked.path.name} taken of {count} {modality} files.")
    if picked.oddity:
        notes.append(f"sub-{label}: {picked.path.name} is {picked.oddity}; there is no plain {modality}.")
    return notes


def _place_mask(
    subject: RawSubject, mask: ScanFile, volumes: Mapping[Path, VolumeFile]
) -> tuple[RawSubject, list[str]]:
    """The image on whose grid the lesion mask lies: the one that it is named after, else one that fits."""
    grid = volumes[mask.path].grid
    read = {name: volumes[path].grid for name, path in subject.images.items() if path in volumes}
    fitting = [name for name, other in read.items() if grid.equals(other)]
    named = next((name for name in subject.images if mask.says(name)), None)
    shapes = ", ".join(f"{name} {other.shape}" for name, other in read.items())
    if named in read and named not in fitting:
        return subject, [
            f"{mask.path}: is named after the {named}, and shape {grid.shape} and affine are not on its grid "
            f"({shapes})."
        ]
    if read and not fitting:
        return subject, [
            f"{mask.path}: shape {grid.shape} and affine are on the grid of none of the images ({shapes})."
        ]
    owner = named if named in fitting else next(iter(fitting), None)
    notes = list(subject.notes)
    if owner and owner != named and len(fitting) > 1:
        notes.append(
            f"sub-{subject.subject}: lesion mask {mask.path.name} lies on the grids of {', '.join(fitting)}, "
            f"and is taken to be drawn on the {owner}."
        )
    placed = replace(subject, lesion_modality=owner, notes=tuple(notes))
    return placed, _mask_problems(placed, volumes)


def _mask_problems(subject: RawSubject, volumes: Mapping[Path, VolumeFile]) -> list[str]:
    """A lesion mask that can mark no lesion."""
    path, owner = subject.lesion_mask, subject.lesion_modality
    assert path is not None
    if volumes[path].marked == 1:
        return [f"{path}: one voxel is marked; a mask holds the whole lesion."]
    if owner is None or not volumes[subject.images[owner]].stripped:
        return []
    image = subject.images[owner]
    volume, _ = read_nifti(image)
    if (volume[read_lesion_mask(path)[0]] == background_of(volume)).all():
        return [f"{path}: none of the lesion lies in the brain ({image.name})."]
    return []
