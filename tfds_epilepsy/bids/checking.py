"""All that can be said of a data set before anything is done with it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfds_epilepsy.bids.derivative import (
    TemplateSubject,
    check_voxels,
    sidecar_problems,
    template_subjects,
)
from tfds_epilepsy.bids.finding import MODALITIES, is_derivative, read_object, sidecar_of
from tfds_epilepsy.bids.participants import read_participants, training_problems, unmatched
from tfds_epilepsy.bids.raw import RawSubject, find_raw_subjects
from tfds_epilepsy.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Check:
    """What ``check`` found.

    Example:
        >>> found = check(derivative_folder)
        >>> found.kind, found.summary, found.problems
        ('derivative', '9 subjects (8 control, 1 patient), no problem.', [])

    Attributes:
        kind: ``raw`` or ``derivative``.
        rows: one per subject.
        problems: what stands in the way, each with its file.
        notes: things to know that are no problem.
    """

    kind: str
    rows: list[dict[str, str]]
    problems: list[str]
    notes: list[str]

    @property
    def summary(self) -> str:
        """``21 subjects (20 control, 1 patient), no problem.``"""
        groups = Counter(row["group"] for row in self.rows)
        who = ", ".join(f"{count} {group}" for group, count in sorted(groups.items()))
        count = len(self.problems)
        found = f"{count} problem{'s' * (count > 1)}" if count else "no problem"
        return f"{len(self.rows)} subject{'s' * (len(self.rows) != 1)} ({who}), {found}."


def check(
    bids_dir: str | Path,
    *,
    modalities: Sequence[str] | None = None,
    session: str | None = None,
    filters: Mapping[str, Mapping[str, str]] | None = None,
    space: str | None = None,
    group_column: str | None = None,
    groups: Mapping[str, str] | None = None,
    require_controls: bool = False,
) -> Check:
    """All about a data set, raw or derivative, before anything is done with it.

    Example:
        >>> check(derivative_folder, modalities=["SWI"]).problems[0].endswith("of sub-c0.")
        True

    Args:
        bids_dir: the folder. It is a derivative when it holds images in template space, and none in
            native space or a description that says so.
        modalities: that each subject must have; None as in ``raw_subjects`` and ``template_subjects``.
        session, filters: of raw scans, as in ``raw_subjects``.
        space: of a derivative, as in ``template_subjects``.
        group_column: of participants.tsv.
        groups: further words for ``control`` and ``patient``.
        require_controls: fewer than 3 training controls are a problem too.

    Returns:
        One row per subject (subject, session, group, split, one column per modality, masks, problems), the
        problems and the notes. In parentheses: sessions and files that were not taken.

    Raises:
        InputError: no such folder, or no subject in it; an option that does not apply to its kind.
    """
    folder = Path(bids_dir)
    subjects: Sequence[RawSubject | TemplateSubject]
    if folder.is_dir() and is_derivative(folder):
        kind = "derivative"
        if session is not None or filters:
            raise InputError(
                f"{folder}: is in template space; --session and --filter choose among raw scans."
            )
        subjects, problems = template_subjects(
            folder, modalities=modalities, space=space, group_column=group_column, groups=groups
        )
        unread, notes = check_voxels(subjects)
        problems += unread
    else:
        kind = "raw"
        if space is not None:
            raise InputError(f"{folder}: holds raw scans; --space chooses among images in template space.")
        subjects, problems = find_raw_subjects(
            folder,
            modalities=modalities,
            session=session,
            filters=filters,
            group_column=group_column,
            groups=groups,
        )
        images = [path for one in subjects for path in one.images.values()]
        # Nothing is read of raw scans' sidecars: content that was not fetched is no matter.
        problems += sidecar_problems([p for p in images if (s := sidecar_of(p)) is None or s.is_file()])
        notes = [f"sub-{one.subject}: group unknown." for one in subjects if not one.participant.group]
    problems += _folder_problems(folder)
    if require_controls and subjects:
        problems += training_problems(folder, [one.participant for one in subjects])
    notes = [note for one in subjects for note in one.notes] + notes
    columns = [m for m in modalities or MODALITIES if any(m in one.images for one in subjects)]
    with_session = any(one.session for one in subjects)
    rows = [_row(one, columns, with_session, problems) for one in subjects]
    return Check(kind=kind, rows=rows, problems=problems, notes=notes)


def _folder_problems(folder: Path) -> list[str]:
    """Rows of participants.tsv without a folder, and a description that is not JSON."""
    problems = []
    labels = [path.name.removeprefix("sub-") for path in folder.glob("sub-*")]
    people, _ = read_participants(folder)
    strays = unmatched(folder, people, labels, needed=False)[1]
    if strays:
        some = ", ".join(f"sub-{label}" for label in strays[:5]) + (", ..." if len(strays) > 5 else "")
        problems.append(
            f"{folder / 'participants.tsv'}: {len(strays)} rows without a folder ({some}); "
            "get their scans, or remove the rows."
        )
    description = folder / "dataset_description.json"
    if description.is_file():
        try:
            read_object(description)
        except InputError as error:
            problems.append(str(error))
    return problems


def _row(
    subject: RawSubject | TemplateSubject,
    columns: Sequence[str],
    with_session: bool,
    problems: Sequence[str],
) -> dict[str, str]:
    session, who = subject.session, subject.participant
    row = {"subject": subject.subject}
    if with_session:
        row["session"] = _with_rest(session or "n/a", set(subject.sessions) - {session})
    row |= {"group": who.group or "n/a", "split": who.split or "n/a"}
    others = subject.others if isinstance(subject, RawSubject) else {}
    for modality in columns:
        rest = [_short(path, session) for path in others.get(modality, ())]
        row[modality] = _with_rest(_short(subject.images.get(modality), session), rest)
    if isinstance(subject, TemplateSubject):
        row["brain mask"] = _short(subject.brain_mask, session)
    row["lesion mask"] = _short(subject.lesion_mask, session)
    own = re.compile(rf"sub-{re.escape(subject.subject)}(?![0-9A-Za-z])")
    row["problems"] = str(sum(bool(own.search(problem)) for problem in problems))
    return row


def _short(path: Path | None, session: str) -> str:
    """What a file's name says beyond subject, space and this session."""
    if path is None:
        return "n/a"
    return re.sub(rf"(sub|space)-[^_]+_|ses-{re.escape(session)}_|\.nii(\.gz)?$", "", path.name)


def _with_rest(taken: str, rest: Iterable[str]) -> str:
    left = ", ".join(sorted(rest))
    return f"{taken} ({left})" if left else taken
