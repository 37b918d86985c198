"""Who the subjects are: ``participants.tsv``, and the split that each belongs to."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tfds_epilepsy.bids.finding import lookalike
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
SPLIT_WORDS = {**{split: split for split in SPLITS}, "val": "validation", "valid": "validation"}
SEXES = {
    **dict.fromkeys(("f", "female", "w", "woman", "weiblich", "frau", "femme", "girl", "mujer"), "f"),
    **dict.fromkeys(("m", "male", "man", "männlich", "mann", "homme", "boy", "hombre"), "m"),
    **dict.fromkeys(("", "o", "other", "u", "unknown", "?"), ""),
}
COLUMNS = ("participant_id", *GROUP_COLUMNS, "split", "age", "age_at_scan", "sex", "gender", "site")
UNKNOWN = ("n/a", "na", "nan")
OLDEST = 120  # years; 999 is a code
# Without a column `split`: cumulative shares of train, validation, test by a hash of the subject's label.
FEWEST_CONTROLS = 3  # that train: each is held against the others, and two vary in one way alone
SHARES = {"control": (0.7, 0.8, 1.0), "patient": (0.0, 0.0, 1.0)}


@dataclass(frozen=True, kw_only=True)
class Participant:
    """A person of a data set: a row of participants.tsv, where there is one.

    Example:
        >>> people, problems = read_participants(derivative_folder)
        >>> people["p1"].group, people["p1"].split
        ('patient', 'test')

    Attributes:
        subject: label without ``sub-``.
        group: ``control``, ``patient``, or empty where unknown.
        split: ``train``, ``validation``, ``test``, or empty where unknown.
        age: years, NaN where unknown.
        sex: ``f``, ``m`` or empty.
        site: scanner or centre, empty where unknown.
        row: the table's own words, by column in lower case.
        notes: what of the row was not understood and is taken as unknown.
    """

    subject: str
    group: str = ""
    split: str = ""
    age: float = math.nan
    sex: str = ""
    site: str = ""
    row: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_participants(
    folder: str | Path,
    *,
    group_column: str | None = None,
    groups: Mapping[str, str] | None = None,
    labels: Sequence[str] | None = None,
) -> tuple[dict[str, Participant], list[str]]:
    """The people of a data set by label, and the problems of the table. No table, no people.

    A byte-order mark, ``n/a``, ``sub-`` or not, and upper or lower case of columns and words are as well.

    Example:
        >>> people, problems = read_participants(derivative_folder)
        >>> sorted(people)[:3], problems
        (['c0', 'c1', 'c2'], [])

    Args:
        folder: of the data set.
        group_column: None tries ``GROUP_COLUMNS``.
        groups: further words for ``control`` and ``patient``.
        labels: whose rows count; None counts all.
    """
    path = Path(folder) / "participants.tsv"
    if not path.is_file():
        return {}, []
    columns, rows, problems = _read_table(path)
    if not columns:
        return {}, problems
    column, trouble = _group_column(path, columns, group_column)
    problems += trouble
    words = _group_words(groups)
    only = None if labels is None else {label.removeprefix("sub-") for label in labels}
    people: dict[str, Participant] = {}
    for number, row in rows:
        label = row["participant_id"].removeprefix("sub-")
        where = f"{path}: line {number}:"
        if only is not None and label not in only and not lookalike(label, only):
            continue
        if label in people:
            problems.append(
                f"{where} a second row for sub-{label}; leave one (what differs between sessions stands in "
                f"sub-{label}_sessions.tsv)."
            )
            continue
        people[label], trouble = _participant(row, where, row.get(column, ""), words)
        problems += trouble
    return people, problems


def split_of(participant: Participant) -> str:
    """The split of participants.tsv; else by the label alone: its SHA-256, as a fraction, in ``SHARES``.

    Example:
        >>> split_of(Participant(subject="01", group="control", split="test"))
        'test'
    """
    if participant.split:
        return participant.split
    fraction = int.from_bytes(hashlib.sha256(participant.subject.encode()).digest()[:8]) / 2**64
    shares = SHARES[participant.group or "control"]
    return next(split for split, share in zip(SPLITS, shares, strict=True) if fraction < share)


def control_problems(source: str | Path, count: int) -> list[str]:
    """Why so many training controls cannot train a normative model, if they cannot.

    Example:
        >>> control_problems("DERIVATIVE", 40)
        []
    """
    if count >= FEWEST_CONTROLS:
        return []
    return [
        f"{source}: {count} controls in split 'train', at least {FEWEST_CONTROLS} are needed; "
        "a column 'split' in participants.tsv decides who trains."
    ]


def training_problems(source: str | Path, people: Iterable[Participant]) -> list[str]:
    """``control_problems`` of those who train."""
    who = [person for person in people if person.group == "control"]
    return control_problems(source, sum(split_of(person) == "train" for person in who))


def unmatched(
    folder: Path, people: Mapping[str, Participant], labels: Iterable[str], *, needed: bool
) -> tuple[list[str], list[str]]:
    """Where participants.tsv and the subjects' folders do not meet.

    Args:
        folder: of the data set.
        people: of its table.
        labels: of its folders.
        needed: each folder must have a row; else only one whose row seems to be there under another name.

    Returns:
        The problems, and the labels of rows without a folder that are no folder's under another name.
    """
    table, folders = folder / "participants.tsv", list(labels)
    strays = [label for label in people if label not in folders]
    problems = []
    for label in folders:
        if label in people:
            continue
        if other := lookalike(label, strays):
            strays.remove(other)
            problems.append(
                f"{table}: no row for sub-{label}; if the one of {people[other].row['participant_id']!r}, "
                f"which has no folder, is meant, write 'sub-{label}' there."
            )
        elif needed:
            problems.append(f"{table}: no row for sub-{label}.")
    return problems, strays


def mask_note(person: Participant, mask: Path | None) -> list[str]:
    """What to tell of a control with a lesion mask."""
    if mask is None or person.group != "control":
        return []
    return [f"sub-{person.subject}: is a control, and has a lesion mask ({mask.name})."]


def _read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]], list[str]]:
    """Columns in lower case, rows with the number of their line, and problems. No columns: not to be used.

    Each line is read alone, so that a stray quotation mark swallows no further row.
    """
    try:
        lines = re.split(r"\r\n|\r|\n", path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        return [], [], [f"{path}: cannot be read as a tab-separated table in UTF-8 ({error})."]
    columns = [name.lower() for name in _cells(lines[0])]
    if problem := _header_problem(columns):
        return [], [], [f"{path}: {problem}"]
    rows, problems = [], []
    for number, line in enumerate(lines[1:], start=2):
        cells = ["" if cell.lower() in UNKNOWN else cell for cell in _cells(line)]
        if not any(cells):
            continue
        row = dict(zip(columns, cells, strict=False))
        if any(cell.startswith('"') for cell in cells):
            problems.append(f"{path}: line {number}: a quotation mark opens and does not close; remove it.")
        elif len(cells) != len(columns):
            problems.append(
                f"{path}: line {number}: {len(cells)} cells under {len(columns)} columns; "
                "cells are separated by one tab each."
            )
        elif not row["participant_id"]:
            problems.append(f"{path}: line {number}: no participant_id.")
        else:
            rows.append((number, row))
    return columns, rows, problems


def _header_problem(columns: Sequence[str]) -> str:
    if "participant_id" not in columns:
        apart = next((mark for mark in (",", ";", " ") if "participant_id" in columns[0].split(mark)), "")
        tabs = f"; it is separated by {apart!r}, and tabs are needed" if apart else ""
        return f"no column 'participant_id' (columns: {', '.join(columns) or 'none'}){tabs}."
    twice = sorted({name for name in COLUMNS if columns.count(name) > 1})
    return f"two columns {', '.join(map(repr, twice))}; leave one." if twice else ""


def _cells(line: str) -> list[str]:
    """The cells of a line; a cell may stand in quotation marks, and a mark that does not close is kept."""
    cells = line.split("\t")
    if line.count('"') and line.count('"') % 2 == 0:
        with suppress(csv.Error):
            cells = next(csv.reader([line], delimiter="\t"))
    return [cell.strip() for cell in cells]


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
    if split and split not in SPLIT_WORDS:
        problems.append(f"{where} split {row['split']!r} of sub-{label}; use {', '.join(SPLITS)}.")
    age, sex = row.get("age") or row.get("age_at_scan", ""), row.get("sex") or row.get("gender", "")
    notes = []
    if age and math.isnan(_years(age)):
        notes.append(f"{where} age {age!r} of sub-{label} is not understood, and taken as unknown.")
    if sex.lower() not in SEXES:
        notes.append(f"{where} sex {sex!r} of sub-{label} is not understood (f or m), and taken as unknown.")
    person = Participant(
        subject=label,
        group=words.get(group.lower(), ""),
        split=SPLIT_WORDS.get(split, ""),
        age=_years(age),
        sex=SEXES.get(sex.lower(), ""),
        site=row.get("site", ""),
        row=row,
        notes=tuple(notes),
    )
    return person, problems


def _years(text: str) -> float:
    """``32``, ``32.5``, ``32,5``, ``89+``, ``032Y``, ``P32Y``; the middle of a class such as ``20-24``.

    NaN for anything else, and beyond what a person reaches.
    """
    text = text.replace(",", ".").lower()
    number = r"\d+(?:\.\d+)?"
    if match := re.fullmatch(rf"p?({number}) *(?:y|yr|yrs|year|years)|p({number})m|({number})m", text):
        years = float(match[1]) if match[1] else float(match[2] or match[3]) / 12
    elif re.fullmatch(rf"{number}\+?( *[-–] *{number})?", text):
        numbers = [float(one) for one in re.findall(number, text)]
        years = sum(numbers) / len(numbers)
    else:
        return math.nan
    return years if years <= OLDEST else math.nan
