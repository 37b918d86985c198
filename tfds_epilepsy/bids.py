"""Find the subjects of a BIDS data set, raw or derivative, and say at once all that is wrong with it.

Raw scans: ``sub-*[/ses-*]/{anat,pet}/*_{T1w,FLAIR,T2w,pet,...}.nii[.gz]`` in native space.
Template space: ``sub-*[/ses-*]/anat/*_space-*_{T1w,FLAIR,...}.nii[.gz]`` with ``*_desc-brain_mask`` and,
where there is one, ``*_label-lesion_mask``. Who they are stands in ``participants.tsv``.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import Subject, normalise, read_nifti, same_grid

MODALITIES = ("T1w", "FLAIR", "T2w", "T1map", "T2map", "pet")  # found unasked, in this order; others by name
SPLITS = ("train", "validation", "test")
# Words for the two groups, compared in lower case; `groups` adds to them.
GROUPS = {
    **dict.fromkeys(
        ("control", "controls", "hc", "healthy", "healthy control", "con", "ctrl", "hv"), "control"
    ),
    **dict.fromkeys(("patient", "patients", "fcd", "epilepsy", "case", "tle", "lesion", "ms"), "patient"),
}
GROUP_COLUMNS = ("group", "diagnosis", "dx", "participant_group")
# Without a column `split`: cumulative shares of train, validation, test by a hash of the subject's label.
SHARES = {"control": (0.7, 0.8, 1.0), "patient": (0.0, 0.0, 1.0)}
NATIVE_SPACES = ("orig", "individual", "native", *(name.lower() for name in MODALITIES))


@dataclass(frozen=True)
class Participant:
    """A row of participants.tsv. ``group`` and ``split`` are empty where unknown, ``age`` (years) is NaN."""

    subject: str
    group: str = ""
    split: str = ""
    age: float = math.nan
    sex: str = ""
    site: str = ""
    row: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RawSubject:
    """The scans of one subject in native space, each on its own grid.

    Attributes:
        subject: label without ``sub-``.
        session: label without ``ses-``, empty without sessions.
        group: ``control``, ``patient``, or empty where unknown.
        images: file of each modality.
        lesion_mask: file, or None.
        lesion_modality: the modality on whose grid the lesion mask lies.
        age: years, NaN where unknown.
        sex: ``f``, ``m`` or empty.
        site: scanner or centre.
        split: ``train``, ``validation``, ``test`` as the table says, or empty.
        notes: what was chosen among several files.
        sessions: all that the subject has.
        others: files of each modality that were not chosen, in any session.
    """

    subject: str
    session: str
    group: str
    images: Mapping[str, Path]
    lesion_mask: Path | None = None
    lesion_modality: str | None = None
    age: float = math.nan
    sex: str = ""
    site: str = ""
    split: str = ""
    notes: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    others: Mapping[str, Sequence[Path]] = field(default_factory=dict)


@dataclass(frozen=True)
class TemplateSubject:
    """The files of one subject in template space; fields as in ``RawSubject``."""

    subject: str
    session: str
    group: str
    split: str
    images: Mapping[str, Path]
    brain_mask: Path | None
    lesion_mask: Path | None
    age: float = math.nan
    sex: str = ""
    site: str = ""
    notes: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()

    @property
    def files(self) -> list[Path]:
        """Images and masks."""
        masks = (self.brain_mask, self.lesion_mask)
        return [*self.images.values(), *(mask for mask in masks if mask is not None)]


@dataclass(frozen=True)
class Derivative:
    """A template-space derivative whose every file was read and agreed.

    Attributes:
        folder: the data set.
        modalities: channels, in order.
        subjects: by label.
        splits: label -> train, validation or test.
        space: value of the ``space-`` entity.
        voxel_size: mm.
        fingerprint: hash of all that the records are made from.
    """

    folder: Path
    modalities: tuple[str, ...]
    subjects: Mapping[str, TemplateSubject]
    splits: Mapping[str, str]
    space: str
    voxel_size: tuple[float, ...]
    fingerprint: str


@dataclass(frozen=True)
class Check:
    """What ``check`` found: a row a subject, every problem, and things to know that are no problem."""

    kind: str  # raw | derivative
    rows: list[dict[str, str]]
    problems: list[str]
    notes: list[str]


# === Raw scans ===


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
    subjects, problems, _ = _raw(
        Path(bids_dir), participant_labels, modalities, session, filters, group_column, groups, read_voxels
    )
    if problems:
        raise InputError(problems)
    return subjects


def _raw(
    folder: Path,
    labels: Sequence[str] | None,
    modalities: Sequence[str] | None,
    session: str | None,
    filters: Mapping[str, Mapping[str, str]] | None,
    group_column: str | None,
    groups: Mapping[str, str] | None,
    read_voxels: bool,
) -> tuple[list[RawSubject], list[str], list[str]]:
    people, problems = read_participants(folder, group_column=group_column, groups=groups, labels=labels)
    scans, found = _scan(folder, labels)
    problems += found
    wanted = tuple(modalities or MODALITIES)
    required = tuple(modalities or ("T1w",))
    subjects = []
    for label, files in scans.items():
        files = [file for file in files if file.native]
        every = [file for file in files if not file.derived]
        files = [file for file in files if file.matches(filters)]
        files = [file for file in files if session is None or file.session == session.removeprefix("ses-")]
        chosen = _best_session(files, wanted)
        notes = _session_note(label, files, chosen)
        files = [file for file in files if file.session == chosen]
        masks = [file for file in files if file.is_lesion]
        masks = [mask for mask in masks if not mask.derived] or masks  # beside the image first
        mask = masks[0] if masks else None
        if len(masks) > 1:
            problems.append(f"{_names(masks)}: {len(masks)} lesion masks of sub-{label}; leave one.")
        images: dict[str, Path] = {}
        for modality in wanted:
            candidates = [file for file in files if file.is_image(modality) and not file.derived]
            if not candidates:
                if modality in required:
                    where = folder / f"sub-{label}" / (f"ses-{chosen}" if chosen else "")
                    problems.append(f"{where}: no {modality} (*_{modality}.nii.gz) of sub-{label}.")
                continue
            picked = next((file for file in candidates if mask and mask.named_after(file)), candidates[0])
            if len(candidates) > 1:
                notes.append(f"sub-{label}: {picked.path.name} taken of {len(candidates)} {modality} files.")
            images[modality] = picked.path
        person = people.get(label, Participant(label))
        lesion_modality = None
        grids, trouble = _read_files([*images.values(), *([mask.path] if mask else [])], read_voxels)
        problems += trouble
        if mask and mask.path in grids:
            lesion_modality = _grid_owner(mask, images, grids)
            if lesion_modality is None and any(path in grids for path in images.values()):
                shapes = ", ".join(f"{m} {grids[p].shape}" for m, p in images.items() if p in grids)
                problems.append(
                    f"{mask.path}: shape {grids[mask.path].shape} and affine are on the grid of none of "
                    f"the images ({shapes})."
                )
        subjects.append(
            RawSubject(
                label,
                chosen,
                person.group,
                images,
                mask.path if mask else None,
                lesion_modality,
                person.age,
                person.sex,
                person.site,
                person.split,
                tuple(notes),
                _sessions(every),
                {
                    modality: [f.path for f in every if f.is_image(modality) and f.path != path]
                    for modality, path in images.items()
                },
            )
        )
    return subjects, problems, [note for subject in subjects for note in subject.notes]


# === Template space ===


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

    Args:
        folder: with ``sub-*/[ses-*/]anat/*_space-*``, ``participants.tsv``, ``dataset_description.json``.
        modalities: which channels, in order; None takes all of ``MODALITIES`` that any subject has.
        participant_labels, space, group_column, groups: as in ``template_subjects``.
        require_controls: fewer than 2 training controls are an error.

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
    problems += voxel_problems(subjects)
    if require_controls and subjects:
        problems += control_problems(folder, sum(subject.split == "train" for subject in subjects))
    if problems:
        raise InputError(problems)
    channels = tuple(subjects[0].images)
    image = next(iter(subjects[0].images.values()))
    entities = _File.parse(image).entities  # type: ignore[union-attr]
    sizes = nib.affines.voxel_sizes(read_nifti(image)[1])
    return Derivative(
        folder,
        channels,
        {subject.subject: subject for subject in subjects},
        {subject.subject: subject.split for subject in subjects},
        entities["space"],
        tuple(float(size) for size in sizes),
        fingerprint(subjects, channels, folder),
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
    scans, found = _scan(folder, participant_labels, derivatives=False)
    problems += found
    templated = {s: [f for f in fs if "space" in f.entities and not f.native] for s, fs in scans.items()}
    spaces = sorted({f.entities["space"] for fs in templated.values() for f in fs if f.modality})
    if space is None and len(spaces) > 1:
        problems.append(f"{folder}: images in {len(spaces)} spaces ({', '.join(spaces)}); choose one.")
    space = space or (spaces[0] if spaces else None)
    if not any(f.modality for fs in templated.values() for f in fs if f.entities["space"] == space):
        problems.append(
            f"{folder}: no template-space image (sub-*/anat/*_space-*_T1w.nii.gz); "
            "raw scans are brought to the template by 'epizoo preprocess'."
        )
        return [], problems
    templated = {s: [f for f in fs if f.entities["space"] == space] for s, fs in templated.items()}
    everyone = [file for files in templated.values() for file in files]
    if modalities is None:
        modalities = [m for m in MODALITIES if any(file.is_image(m) for file in everyone)]
    if not people and not problems:
        problems.append(
            f"{folder / 'participants.tsv'}: no such file; it says who is a control or a patient."
        )
    with_split = any(person.split for person in people.values())
    subjects = []
    for label, files in templated.items():
        chosen, sessions = _best_session(files, modalities), _sessions(files)
        notes = _session_note(label, files, chosen)
        files = [file for file in files if file.session == chosen]
        where = folder / f"sub-{label}"
        images = {}
        for modality in modalities:
            candidates = [file for file in files if file.is_image(modality)]
            if not candidates:
                problems.append(f"{where}: no {modality} (*_space-*_{modality}.nii.gz) of sub-{label}.")
            elif len(candidates) > 1:
                problems.append(f"{_names(candidates)}: several {modality} of sub-{label}; leave one.")
            else:
                images[modality] = candidates[0].path
        masks: dict[str, Path | None] = {}
        for kind in ("brain", "lesion"):
            candidates = [file for file in files if (file.is_brain if kind == "brain" else file.is_lesion)]
            if len(candidates) > 1:
                problems.append(f"{_names(candidates)}: several {kind} masks of sub-{label}; leave one.")
            masks[kind] = candidates[0].path if candidates else None
        person = people.get(label)
        if person is None and people:
            problems.append(f"{folder / 'participants.tsv'}: no row for sub-{label}.")
        person = person or Participant(label)
        if people and label in people and not person.group:
            problems.append(f"{folder / 'participants.tsv'}: sub-{label} has no group (control or patient).")
        if with_split and label in people and not person.split:
            problems.append(f"{folder / 'participants.tsv'}: sub-{label} has no split, others have.")
        split = split_of(person)
        if split == "train" and person.group == "patient":
            problems.append(
                f"{folder / 'participants.tsv'}: sub-{label} is a patient in split 'train'; "
                "controls alone train: write 'validation' or 'test'."
            )
        subjects.append(
            TemplateSubject(
                label,
                chosen,
                person.group,
                split,
                images,
                masks["brain"],
                masks["lesion"],
                person.age,
                person.sex,
                person.site,
                tuple(notes),
                sessions,
            )
        )
    return subjects, problems


def split_of(participant: Participant) -> str:
    """The split of participants.tsv; else by the label alone: its SHA-256, as a fraction, in ``SHARES``."""
    if participant.split:
        return participant.split
    fraction = int.from_bytes(hashlib.sha256(participant.subject.encode()).digest()[:8]) / 2**64
    shares = SHARES[participant.group or "control"]
    return next(split for split, share in zip(SPLITS, shares, strict=True) if fraction < share)


def control_problems(source: str | Path, count: int) -> list[str]:
    """Why so many training controls cannot train a normative model, if they cannot."""
    if count >= 2:
        return []
    return [
        f"{source}: {count} controls in split 'train', at least 2 are needed; "
        "a column 'split' in participants.tsv decides who trains."
    ]


def voxel_problems(subjects: Sequence[TemplateSubject]) -> list[str]:
    """Read every file: what is truncated, not 3-D, not finite, empty, or on another grid than the rest."""
    grids, problems = _read_files([file for subject in subjects for file in subject.files], True)
    if grids:
        usual, _ = Counter(grid.key for grid in grids.values()).most_common(1)[0]
        reference = next(path for path, grid in grids.items() if grid.key == usual)
        problems += [
            f"{path}: {grid.words}; the others' grid is {grids[reference].words} ({reference.name})."
            for path, grid in grids.items()
            if not same_grid(grid.shape, grid.affine, grids[reference].shape, grids[reference].affine)
        ]
    for subject in subjects:
        for mask in (subject.brain_mask, subject.lesion_mask):
            if mask in grids and not grids[mask].above_zero:
                problems.append(f"{mask}: the mask is empty.")
        t1 = next(iter(subject.images.values()), None)
        if subject.brain_mask is None and t1 in grids and not grids[t1].stripped:
            problems.append(
                f"{t1}: sub-{subject.subject} has no brain mask (*_space-*_desc-brain_mask.nii.gz), and the "
                "image is not skull-stripped, so that none can be taken from it."
            )
    return problems


def read_subject(subject: TemplateSubject, modalities: Sequence[str]) -> Subject:
    """Read the record of a subject: images in [0, 1] inside the brain mask, 0 outside.

    An image is normalised with ``volumes.normalise`` unless its sidecar says ``Normalisation``.
    Without a brain mask in the derivative, ``stripped_mask`` of the first image serves.

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
        lesion_mask = read_nifti(subject.lesion_mask)[0] > 0.5
    return Subject(
        subject.subject,
        subject.group,
        np.stack(images, axis=-1),
        brain_mask,
        lesion_mask,
        affine,
        subject.age,
        subject.sex,
        subject.site,
    )


def stripped_mask(volume: NDArray[np.floating]) -> NDArray[np.bool_]:
    """The brain mask of a skull-stripped volume: where it is not background, without specks and holes.

    Background is the value that most voxels on the volume's faces share. The mask is the largest 26-connected
    component of all others, with holes filled.

    Args:
        volume: ``(x, y, z)``.
    """
    from scipy import ndimage

    head = volume != _background(volume)
    labels, count = ndimage.label(head, np.ones((3, 3, 3)))
    if count > 1:
        head = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    return ndimage.binary_fill_holes(head)


def fingerprint(subjects: Sequence[TemplateSubject], modalities: Sequence[str], folder: str | Path) -> str:
    """A hash of all that the records are made from: file names and bytes, and what the tables say.

    Returns:
        16 hexadecimal digits.
    """
    folder = Path(folder)
    lines = [f"modalities {' '.join(modalities)}"]
    files = sorted({path for subject in subjects for path in subject.files})
    sidecars = [path for path in map(_sidecar_path, files) if path is not None]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(_digest, [*files, *sidecars])
        lines += [
            f"{path.relative_to(folder)} {digest}"
            for path, digest in zip([*files, *sidecars], digests, strict=True)
        ]
    lines += [
        f"{s.subject} {s.session} {s.group} {s.split} {s.age} {s.sex} {s.site}"
        for s in sorted(subjects, key=lambda subject: subject.subject)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


# === Check ===


def check(
    bids_dir: str | Path,
    *,
    modalities: Sequence[str] | None = None,
    session: str | None = None,
    filters: Mapping[str, Mapping[str, str]] | None = None,
    group_column: str | None = None,
    groups: Mapping[str, str] | None = None,
    require_controls: bool = False,
) -> Check:
    """All about a data set, raw or derivative, before anything is done with it.

    Args:
        bids_dir: the folder. It is a derivative when dataset_description.json says so or when it holds no
            native-space image.
        modalities: that each subject must have; None as in ``raw_subjects`` and ``template_subjects``.
        session, filters: of raw scans, as in ``raw_subjects``.
        group_column: of participants.tsv.
        groups: further words for ``control`` and ``patient``.
        require_controls: fewer than 2 training controls are a problem too (of a derivative).

    Returns:
        A row a subject (subject, session, group, split, one column a modality, masks, problems), the problems
        and the notes. In parentheses: sessions and files that were not taken.
    """
    folder = Path(bids_dir)
    kind = "derivative" if folder.is_dir() and _is_derivative(folder) else "raw"
    subjects: Sequence[RawSubject | TemplateSubject]
    if kind == "derivative":
        found, problems = template_subjects(
            folder, modalities=modalities, group_column=group_column, groups=groups
        )
        problems += voxel_problems(found)
        if require_controls and found:
            problems += control_problems(folder, sum(subject.split == "train" for subject in found))
        subjects, notes = found, [note for subject in found for note in subject.notes]
        notes += [
            f"sub-{s.subject}: no brain mask; the skull-stripped {next(iter(s.images))} gives it."
            for s in found
            if s.brain_mask is None and s.images
        ]
    else:
        subjects, problems, notes = _raw(
            folder, None, modalities, session, filters, group_column, groups, read_voxels=True
        )
        notes += [f"sub-{s.subject}: group unknown." for s in subjects if not s.group]
    columns = [m for m in modalities or MODALITIES if any(m in s.images for s in subjects)]
    rows = []
    for subject in subjects:
        own = re.compile(rf"sub-{re.escape(subject.subject)}(?![0-9A-Za-z])")
        row = {"subject": subject.subject}
        if any(other.session for other in subjects):
            row["session"] = _with_rest(subject.session or "n/a", set(subject.sessions) - {subject.session})
        row |= {"group": subject.group or "n/a", "split": subject.split or "n/a"}
        others = subject.others if isinstance(subject, RawSubject) else {}
        for modality in columns:
            rest = [_short(path, subject.session) for path in others.get(modality, ())]
            row[modality] = _with_rest(_short(subject.images.get(modality), subject.session), rest)
        if isinstance(subject, TemplateSubject):
            row["brain mask"] = _short(subject.brain_mask, subject.session)
        row["lesion mask"] = _short(subject.lesion_mask, subject.session)
        row["problems"] = str(sum(bool(own.search(problem)) for problem in problems))
        rows.append(row)
    return Check(kind, rows, problems, notes)


# === participants.tsv ===


def read_participants(
    folder: str | Path,
    *,
    group_column: str | None = None,
    groups: Mapping[str, str] | None = None,
    labels: Sequence[str] | None = None,
) -> tuple[dict[str, Participant], list[str]]:
    """The people of a data set by label, and the problems of the table. No table, no people.

    A byte-order mark, ``n/a``, ``sub-`` or not, and upper or lower case of columns and words are as well.

    Args:
        folder: of the data set.
        group_column: None tries ``GROUP_COLUMNS``.
        groups: further words for ``control`` and ``patient``.
        labels: whose rows count; None counts all.
    """
    path = Path(folder) / "participants.tsv"
    if not path.is_file():
        return {}, []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t")
            columns = [(name or "").strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [
                {k: (v or "").strip() for k, v in row.items() if isinstance(k, str) and k} for row in reader
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        return {}, [f"{path}: cannot be read as a tab-separated table in UTF-8 ({error})."]
    if "participant_id" not in columns:
        return {}, [f"{path}: no column 'participant_id' (columns: {', '.join(columns) or 'none'})."]
    known = [group_column.lower()] if group_column else GROUP_COLUMNS
    column = next((name for name in known if name in columns), None)
    problems = []
    if group_column and column is None:
        problems.append(f"{path}: no column {group_column!r} (columns: {', '.join(columns)}).")
    words = {**GROUPS, **{word.lower(): group for word, group in (groups or {}).items()}}
    if wrong := sorted(set(words.values()) - {"control", "patient"}):
        raise InputError(f"groups {wrong}: a group is 'control' or 'patient'.")
    only = None if labels is None else {label.removeprefix("sub-") for label in labels}
    people: dict[str, Participant] = {}
    for number, row in enumerate(rows, start=2):
        row = {name: "" if value.lower() in ("n/a", "nan") else value for name, value in row.items()}
        label = row["participant_id"].removeprefix("sub-")
        if not label or (only is not None and label not in only):
            continue
        if label in people:
            problems.append(f"{path}: line {number}: a second row for sub-{label}.")
            continue
        word = row.get(column, "").lower() if column else ""
        if word and word not in words:
            problems.append(
                f"{path}: line {number}: group {row[column]!r} of sub-{label} is unknown; "  # type: ignore[index]
                f"say what it means: --group {word}=control (or patient)."
            )
        split = {"val": "validation", "valid": "validation"}.get(
            row.get("split", "").lower(), row.get("split", "").lower()
        )
        if split and split not in SPLITS:
            problems.append(
                f"{path}: line {number}: split {row['split']!r} of sub-{label}; use {', '.join(SPLITS)}."
            )
            split = ""
        sex = (row.get("sex", "") or row.get("gender", "")).lower()[:1]
        people[label] = Participant(
            label,
            words.get(word, ""),
            split,
            _years(row.get("age", "") or row.get("age_at_scan", "")),
            sex if sex in ("f", "m") else "",
            row.get("site", ""),
            row,
        )
    return people, problems


def _years(text: str) -> float:
    """``32``, ``32.5``, ``89+``; the middle of a class such as ``20-24``; NaN for anything else."""
    if not re.fullmatch(r"\d+(\.\d+)?\+?( *[-–] *\d+(\.\d+)?)?", text):
        return math.nan
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]
    return sum(numbers) / len(numbers)


# === Files and their names ===


@dataclass(frozen=True)
class _File:
    """A NIfTI file and what its name says: ``sub-01_acq-a_FLAIR_roi`` is a ``roi`` drawn on ``of`` FLAIR."""

    path: Path
    entities: Mapping[str, str]
    suffix: str
    of: str = ""
    derived: bool = False  # found under derivatives/

    @classmethod
    def parse(cls, path: Path, derived: bool = False) -> _File | None:
        match = re.fullmatch(r"(.+)\.nii(\.gz)?", path.name, re.IGNORECASE)
        if match is None:
            return None
        parts = match[1].split("_")
        words = [part for part in parts if "-" not in part]
        if not words:
            return None
        entities = dict(part.split("-", 1) for part in parts if "-" in part)
        return cls(path, entities, words[-1], words[-2] if len(words) > 1 else "", derived)

    @property
    def session(self) -> str:
        return self.entities.get("ses", "")

    @property
    def native(self) -> bool:
        return self.entities.get("space", "orig").lower() in NATIVE_SPACES

    @property
    def _about(self) -> set[str]:
        return {self.entities.get("label", "").lower(), self.entities.get("desc", "").lower()}

    @property
    def is_lesion(self) -> bool:
        about = any(word.startswith("lesion") for word in self._about)
        return self.suffix.lower() == "roi" or (self.suffix.lower() in ("mask", "dseg") and about)

    @property
    def is_brain(self) -> bool:
        return self.suffix.lower() == "mask" and "brain" in self._about

    @property
    def modality(self) -> str:
        return next((name for name in MODALITIES if self.is_image(name)), "")

    def is_image(self, modality: str) -> bool:
        return self.suffix.lower() == modality.lower() and not any(
            w.startswith("lesion") for w in self._about
        )

    def matches(self, filters: Mapping[str, Mapping[str, str]] | None) -> bool:
        for modality, wanted in (filters or {}).items():
            if self.is_image(modality):
                return all(self.entities.get(key) == value for key, value in wanted.items())
        return True

    def named_after(self, image: _File) -> bool:
        """Whether this mask's name is that of the image and a suffix."""
        ignored = ("label", "desc")
        own = {key: value for key, value in self.entities.items() if key not in ignored}
        return self.of.lower() == image.suffix.lower() and own == dict(image.entities)


def _scan(
    folder: Path, labels: Sequence[str] | None, *, derivatives: bool = True
) -> tuple[dict[str, list[_File]], list[str]]:
    """The NIfTI files of each subject, sorted by name, and what is wrong with folders and names."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder.")
    found = sorted(path for path in folder.glob("sub-*") if path.is_dir())
    if not found:
        raise InputError(f"{folder}: no subject folder (sub-*); is it the root of a BIDS data set?")
    problems = []
    names = [path.name.removeprefix("sub-") for path in found]
    for folded, count in Counter(name.lower() for name in names).items():
        if count > 1:
            same = [str(path) for path in found if path.name.removeprefix("sub-").lower() == folded]
            problems.append(f"{', '.join(same)}: two subjects of one name, but for upper and lower case.")
    if labels is not None:
        asked = [label.removeprefix("sub-") for label in labels]
        problems += [
            f"{folder / f'sub-{name}'}: no such subject ({len(names)} are there)."
            for name in asked
            if name not in names
        ]
        names = [name for name in names if name in asked]
    subjects = {}
    for name in names:
        patterns = [f"sub-{name}/{place}" for place in ("anat", "pet", "ses-*/anat", "ses-*/pet")]
        paths = [(path, False) for pattern in patterns for path in sorted(folder.glob(f"{pattern}/*"))]
        if derivatives:
            paths += [
                (p, True) for pattern in patterns for p in sorted(folder.glob(f"derivatives/*/{pattern}/*"))
            ]
        files = [file for path, derived in paths if (file := _File.parse(path, derived)) is not None]
        for file in files:
            if file.entities.get("sub") != name:
                problems.append(f"{file.path}: its name does not say sub-{name}, the subject of its folder.")
        subjects[name] = [file for file in files if file.entities.get("sub") == name]
    return subjects, problems


def _best_session(files: Sequence[_File], modalities: Sequence[str]) -> str:
    sessions = _sessions(files)
    held = {
        s: sum(any(f.session == s and f.is_image(m) for f in files) for m in modalities) for s in sessions
    }
    return max(sessions, key=lambda session: held[session]) if sessions else ""


def _sessions(files: Sequence[_File]) -> tuple[str, ...]:
    return tuple(sorted({file.session for file in files}))


def _session_note(label: str, files: Sequence[_File], chosen: str) -> list[str]:
    count = len({file.session for file in files})
    return [f"sub-{label}: session {chosen or 'without a name'} taken of {count}."] if count > 1 else []


def _is_derivative(folder: Path) -> bool:
    scans, _ = _scan(folder, None, derivatives=False)
    images = [file for files in scans.values() for file in files if file.modality]
    return bool(images) and not any(file.native for file in images)


def _grid_owner(mask: _File, images: Mapping[str, Path], grids: Mapping[Path, _Grid]) -> str | None:
    """The image on whose grid a lesion mask lies: the one it is named after, else the first that fits."""
    own = grids[mask.path]
    fitting = [
        modality
        for modality, path in images.items()
        if path in grids and same_grid(own.shape, own.affine, grids[path].shape, grids[path].affine)
    ]
    said = (mask.of.lower(), mask.entities.get("space", "").lower())
    return next((m for m in fitting if m.lower() in said), fitting[0] if fitting else None)


def _short(path: Path | None, session: str = "") -> str:
    """What a file's name says beyond subject, space and this session."""
    if path is None:
        return "n/a"
    return re.sub(rf"(sub|space)-[^_]+_|ses-{re.escape(session)}_|\.nii(\.gz)?$", "", path.name)


def _with_rest(taken: str, rest: Iterable[str]) -> str:
    left = ", ".join(sorted(rest))
    return f"{taken} ({left})" if left else taken


def _names(files: Sequence[_File]) -> str:
    return ", ".join([str(files[0].path), *(file.path.name for file in files[1:])])


def _sidecar_path(path: Path) -> Path | None:
    stem = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    return next((p for e in (".json", ".JSON") if (p := path.with_name(stem + e)).is_file()), None)


def _is_normalised(path: Path) -> bool:
    sidecar = _sidecar_path(path)
    if sidecar is None:
        return False
    try:
        return "Normalisation" in json.loads(sidecar.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise InputError(f"{sidecar}: cannot be read as JSON ({error}).") from error


def _normalise(path: Path, volume: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    try:
        return normalise(volume, mask)[0]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# === Voxels ===


@dataclass(frozen=True)
class _Grid:
    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    above_zero: bool = True  # any voxel
    stripped: bool = True  # background is one value on nearly all of the volume's faces

    @property
    def words(self) -> str:
        size = nib.affines.voxel_sizes(self.affine).round(2).tolist()
        return f"grid {self.shape}, {size} mm, origin {self.affine[:3, 3].round(1).tolist()}"

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.shape, tuple(np.round(self.affine, 3).ravel()))


def _read_files(paths: Sequence[Path], voxels: bool) -> tuple[dict[Path, _Grid], list[str]]:
    """Grid of each file that can be used, and why the others cannot."""
    read: Callable[[Path], _Grid | str] = _read_voxels if voxels else _read_header
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # inflating releases the interpreter's lock
        results = list(zip(paths, pool.map(read, paths), strict=True))
    grids = {path: result for path, result in results if isinstance(result, _Grid)}
    return grids, [result for _, result in results if isinstance(result, str)]


def _read_voxels(path: Path) -> _Grid | str:
    try:
        volume, affine = read_nifti(path)
    except InputError as error:
        return str(error)
    return _Grid(volume.shape, affine, bool((volume > 0).any()), _is_stripped(volume))


def _read_header(path: Path) -> _Grid | str:
    """The grid in RAS+ order, from the header alone."""
    try:
        image: Any = nib.load(path)
    except Exception as error:  # nibabel, gzip and zlib each raise their own
        return f"{path}: cannot be read as NIfTI ({error}); the file may be truncated."
    shape = image.shape[:3] if image.ndim == 4 and image.shape[3] == 1 else image.shape
    if len(shape) != 3:
        return f"{path}: {len(shape)}-D of shape {shape}; a 3-D volume is needed."
    turn = nib.io_orientation(image.affine)
    turned = tuple(shape[axis] for axis in np.argsort(turn[:, 0]))
    return _Grid(turned, image.affine @ nib.orientations.inv_ornt_aff(turn, shape))


def _faces(volume: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.concatenate([np.take(volume, side, axis).ravel() for axis in range(3) for side in (0, -1)])


def _background(volume: NDArray[np.floating]) -> float:
    values, counts = np.unique(_faces(volume), return_counts=True)
    return float(values[counts.argmax()])


def _is_stripped(volume: NDArray[np.floating]) -> bool:
    """Air around a whole head is noise; around a stripped brain it is one value, and most of the volume."""
    background = _background(volume)
    return bool(np.mean(_faces(volume) == background) > 0.9 and 0.3 < np.mean(volume == background) < 1)
