"""The subjects of a raw BIDS data set: which scans of each are taken, and where its lesion mask lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tfds_epilepsy.bids.finding import (
    MODALITIES,
    ScanFile,
    best_session,
    find_files,
    listed,
    session_note,
    sessions_of,
)
from tfds_epilepsy.bids.participants import Participant, read_participants
from tfds_epilepsy.bids.voxels import Grid, read_grids
from tfds_epilepsy.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RawSubject:
    """The scans of one subject in native space, each on its own grid.

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
    read_voxels: bool = True,
) -> list[RawSubject]:
    """The subjects of a raw BIDS data set, sorted by label.

    Of several sessions, the first that holds most of the modalities is taken. Of several files of a modality
    in it, the one that the lesion mask is named after; else the first by name. ``notes`` say what was chosen.

    Args:
        bids_dir: folder that holds ``sub-*``.
        participant_labels: with or without ``sub-``; None takes all.
        modalities: names as in file suffixes; each subject must have all of them. None takes those of
            ``MODALITIES`` that are there and demands T1w.
        session: label of the one session to take.
        filters: entities that a modality's file must carry, ``{"FLAIR": {"acq": "T2sel"}}``.
        group_column: of participants.tsv; None tries ``GROUP_COLUMNS``.
        groups: words of that column in the data set, each mapped to ``control`` or ``patient``.
        read_voxels: read every file, to find truncated ones, NaN and constant images.

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
        read_voxels=read_voxels,
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
    read_voxels: bool = True,
) -> tuple[list[RawSubject], list[str]]:
    """The subjects, as ``raw_subjects`` gives them, and every problem instead of an error."""
    people, problems = read_participants(folder, group_column=group_column, groups=groups, labels=labels)
    scans, found = find_files(folder, labels)
    problems += found
    choice = _Choice(
        modalities=tuple(modalities or MODALITIES),
        required=tuple(modalities or ("T1w",)),
        session=None if session is None else session.removeprefix("ses-"),
        filters=filters or {},
    )
    subjects = []
    for label, files in scans.items():
        person = people.get(label, Participant(subject=label))
        subject, mask, missing = _choose(person, folder, files, choice)
        subject, unread = _place_mask(subject, mask, read_voxels)
        subjects.append(subject)
        problems += [*missing, *unread]
    return subjects, problems


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """What the caller asked for, of every subject."""

    modalities: tuple[str, ...]
    required: tuple[str, ...]
    session: str | None
    filters: Mapping[str, Mapping[str, str]]


def _choose(
    person: Participant, folder: Path, files: Sequence[ScanFile], choice: _Choice
) -> tuple[RawSubject, ScanFile | None, list[str]]:
    """The subject's session and files, the lesion mask's name, and what the subject lacks."""
    native = [file for file in files if file.native]
    own = [file for file in native if file.matches(choice.filters)]
    own = [file for file in own if choice.session in (None, file.session)]
    chosen = best_session(own, choice.modalities)
    notes = session_note(person.subject, own, chosen)
    own = [file for file in own if file.session == chosen]
    mask, problems = _lesion_mask(person.subject, own)
    images: dict[str, Path] = {}
    for modality in choice.modalities:
        candidates = [file for file in own if file.is_image(modality) and not file.derived]
        if candidates:
            picked = _pick(candidates, mask)
            images[modality] = picked.path
            if len(candidates) > 1:
                notes.append(
                    f"sub-{person.subject}: {picked.path.name} taken of {len(candidates)} {modality} files."
                )
        elif modality in choice.required:
            where = folder / f"sub-{person.subject}" / (f"ses-{chosen}" if chosen else "")
            problems.append(f"{where}: no {modality} (*_{modality}.nii.gz) of sub-{person.subject}.")
    every = [file for file in native if not file.derived]
    subject = RawSubject(
        participant=person,
        session=chosen,
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


def _lesion_mask(label: str, files: Sequence[ScanFile]) -> tuple[ScanFile | None, list[str]]:
    """The lesion mask among the files of a session: those beside an image come before derivatives."""
    masks = [file for file in files if file.is_lesion]
    masks = [mask for mask in masks if not mask.derived] or masks
    if len(masks) > 1:
        return masks[0], [f"{listed(masks)}: {len(masks)} lesion masks of sub-{label}; leave one."]
    return (masks[0] if masks else None), []


def _pick(candidates: Sequence[ScanFile], mask: ScanFile | None) -> ScanFile:
    """The image that the lesion mask is named after; else the first by name."""
    return next((file for file in candidates if mask and mask.named_after(file)), candidates[0])


def _place_mask(
    subject: RawSubject, mask: ScanFile | None, read_voxels: bool
) -> tuple[RawSubject, list[str]]:
    """Read the subject's files: the image on whose grid the lesion mask lies, and what is wrong with them."""
    paths = [*subject.images.values(), *([mask.path] if mask else [])]
    grids, problems = read_grids(paths, voxels=read_voxels)
    if mask is None or mask.path not in grids:
        return subject, problems
    owner = _grid_owner(mask, subject.images, grids)
    if owner is None and any(path in grids for path in subject.images.values()):
        shapes = ", ".join(f"{m} {grids[p].shape}" for m, p in subject.images.items() if p in grids)
        problems.append(
            f"{mask.path}: shape {grids[mask.path].shape} and affine are on the grid of none of "
            f"the images ({shapes})."
        )
    return replace(subject, lesion_modality=owner), problems


def _grid_owner(mask: ScanFile, images: Mapping[str, Path], grids: Mapping[Path, Grid]) -> str | None:
    """The image on whose grid a lesion mask lies: the one it is named after, else the first that fits."""
    fitting = [m for m, path in images.items() if path in grids and grids[mask.path].equals(grids[path])]
    said = (mask.of.lower(), mask.entities.get("space", "").lower())
    return next((modality for modality in fitting if modality.lower() in said), next(iter(fitting), None))
