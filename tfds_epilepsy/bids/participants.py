"""Who the subjects are: ``participants.tsv``, and the split that each belongs to."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tfds_epilepsy.errors import InputError

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


@dataclass(frozen=True, kw_only=True)
class Participant:
    """A person of a data set: a row of participants.tsv, where there is one.

    Attributes:
        subject: label without ``sub-``.
        group: ``control``, ``patient``, or empty where unknown.
        split: ``train``, ``validation``, ``test``, or empty where unknown.
        age: years, NaN where unknown.
        sex: ``f``, ``m`` or empty.
        site: scanner or centre, empty where unknown.
        row: the table's own words, by column in lower case.
    """

    subject: str
    group: str = ""
    split: str = ""
    age: float = math.nan
    sex: str = ""
    site: str = ""
    row: Mapping[str, str] = field(default_factory=dict)


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
    columns, rows, problem = _read_table(path)
    if problem:
        return {}, [problem]
    column, problems = _group_column(path, columns, group_column)
    words = _group_words(groups)
    only = None if labels is None else {label.removeprefix("sub-") for label in labels}
    people: dict[str, Participant] = {}
    for number, row in enumerate(rows, start=2):
        label = row["participant_id"].removeprefix("sub-")
        where = f"{path}: line {number}:"
        if not label or (only is not None and label not in only):
            continue
        if label in people:
            problems.append(f"{where} a second row for sub-{label}.")
            continue
        people[label], trouble = _participant(row, where, row.get(column, ""), words)
        problems += trouble
    return people, problems


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


def _read_table(path: Path) -> tuple[list[str], list[dict[str, str]], str]:
    """Columns in lower case, rows in which what is unknown is empty, and why the table cannot be used."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t")
            columns = [(name or "").strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [_known(row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        return [], [], f"{path}: cannot be read as a tab-separated table in UTF-8 ({error})."
    if "participant_id" not in columns:
        return [], [], f"{path}: no column 'participant_id' (columns: {', '.join(columns) or 'none'})."
    return columns, rows, ""


def _known(row: Mapping[str, str | None]) -> dict[str, str]:
    texts = {name: (text or "").strip() for name, text in row.items() if isinstance(name, str) and name}
    return {name: "" if text.lower() in ("n/a", "nan") else text for name, text in texts.items()}


def _group_column(path: Path, columns: Sequence[str], asked: str | None) -> tuple[str, list[str]]:
    """The column that holds the group, empty where there is none, and what is wrong with that."""
    known = [asked.lower()] if asked else GROUP_COLUMNS
    column = next((name for name in known if name in columns), "")
    if asked and not column:
        return "", [f"{path}: no column {asked!r} (columns: {', '.join(columns)})."]
    return column, []


def _group_words(groups: Mapping[str, str] | None) -> dict[str, str]:
    words = {**GROUPS, **{word.lower(): group for word, group in (groups or {}).items()}}
    if wrong := sorted(set(words.values()) - {"control", "patient"}):
        raise InputError(f"groups {wrong}: a group is 'control' or 'patient'.")
    return words


def _participant(
    row: Mapping[str, str], where: str, group: str, words: Mapping[str, str]
) -> tuple[Participant, list[str]]:
    """A row's person, and what of the row cannot be understood."""
    label, problems = row["participant_id"].removeprefix("sub-"), []
    if group and group.lower() not in words:
        problems.append(
            f"{where} group {group!r} of sub-{label} is unknown; "
            f"say what it means: --group {group.lower()}=control (or patient)."
        )
    split = row.get("split", "").lower()
    split = {"val": "validation", "valid": "validation"}.get(split, split)
    if split and split not in SPLITS:
        problems.append(f"{where} split {row['split']!r} of sub-{label}; use {', '.join(SPLITS)}.")
        split = ""
    sex = (row.get("sex", "") or row.get("gender", "")).lower()[:1]
    person = Participant(
        subject=label,
        group=words.get(group.lower(), ""),
        split=split,
        age=_years(row.get("age", "") or row.get("age_at_scan", "")),
        sex=sex if sex in ("f", "m") else "",
        site=row.get("site", ""),
        row=row,
    )
    return person, problems


def _years(text: str) -> float:
    """``32``, ``32.5``, ``89+``; the middle of a class such as ``20-24``; NaN for anything else."""
    if not re.fullmatch(r"\d+(\.\d+)?\+?( *[-–] *\d+(\.\d+)?)?", text):
        return math.nan
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]
    return sum(numbers) / len(numbers)
