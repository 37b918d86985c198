"""participants.tsv of a derivative that grows: rows are added and corrected, what users wrote in it stays."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfds_epilepsy.files import cell, write_text

if TYPE_CHECKING:
    import pandas as pd


def add_rows(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the rows of people whom the table does not hold; rows, columns and cells that are there stay.

    A column that the table lacks is added where a new row knows something for it. Rows that were sorted stay
    sorted. Without a new row the file is not touched.

    Example:
        >>> table = folder / "participants.tsv"
        >>> add_rows(table, [{"participant_id": "sub-01", "group": "control"}])
        >>> table.read_text().split()
        ['participant_id', 'group', 'sub-01', 'control']

    Args:
        path: of a table that ``read_participants`` finds nothing wrong with, or of none yet.
        rows: with ``participant_id``, all with the same columns.
    """
    import pandas as pd

    path = Path(path)
    table = _read(path) if path.is_file() else pd.DataFrame(columns=["participant_id"], dtype=str)
    there = set(_labels(table))
    new = [row for row in rows if _label(row["participant_id"]) not in there]
    if not new:
        return
    for name in _missing(table, new):
        before = [column.lower() for column in list(rows[0])[: list(rows[0]).index(name)]]
        place = max(i for i, column in enumerate(table.columns, 1) if column.lower() in before)
        table.insert(place, name, "n/a")
    lower = {column: column.lower() for column in table.columns}
    added = [{column: cell(row.get(name)) for column, name in lower.items()} for row in new]
    in_order = _labels(table) == sorted(_labels(table))
    table = pd.concat([table, pd.DataFrame(added, columns=table.columns)])
    if in_order:
        table = table.sort_values(_id_column(table), kind="stable")
    _write(path, table)


def correct_cells(
    path: str | Path, before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Bring a table up to date with its source; cells that were edited since stay.

    Example:
        >>> table = folder / "corrected.tsv"
        >>> add_rows(table, [{"participant_id": "sub-01", "age": 30}])
        >>> before, now = {"01": {"age": 30}}, {"01": {"age": 31}}
        >>> told = correct_cells(table, before, now)
        >>> table.read_text().split()
        ['participant_id', 'age', 'sub-01', '31']

    Args:
        path: of the table.
        before: label -> column -> what the source said when the row was made.
        now: what it says now.

    Returns:
        What was corrected, and what was not.
    """
    path = Path(path)
    changes = [
        (label, name, cell(before[label].get(name)), cell(value))
        for label, cells in now.items()
        for name, value in cells.items()
        if label in before and cell(before[label].get(name)) != cell(value)
    ]
    if not changes or not path.is_file():
        return []
    table, told = _read(path), []
    labels = _labels(table)
    for label, name, old, new in changes:
        if label not in labels:
            continue
        column = next((column for column in table.columns if column.lower() == name), None)
        if column is None:
            table[name], column = "n/a", name
        row = table.index[labels.index(label)]
        found = str(table.at[row, column])
        if _same(found, old):
            table.at[row, column] = new
            told.append(f"{path}: sub-{label}: {name} is {new} now, as in the raw table; it was {old}.")
        elif not _same(found, new):
            told.append(f"{path}: sub-{label}: {name} stays {found}; the raw table says {new} now.")
    _write(path, table)
    return told


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(
        path,
        sep="\t",
        dtype=str,
        keep_default_na=False,
        quoting=csv.QUOTE_NONE,
        encoding="utf-8-sig",
        index_col=False,
    )


def _write(path: Path, table: pd.DataFrame) -> None:
    lines = [list(table.columns), *table.to_numpy().tolist()]
    write_text(path, "\n".join("\t".join(map(str, line)) for line in lines) + "\n")


def _missing(table: pd.DataFrame, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Columns of which a new row knows something, and the table nothing."""
    there = {column.lower() for column in table.columns}
    known = {name: None for row in rows for name, value in row.items() if cell(value) != "n/a"}
    order = [name for row in rows for name in row]
    return [name for name in dict.fromkeys(order) if name in known and name.lower() not in there]


def _id_column(table: pd.DataFrame) -> str:
    return next(column for column in table.columns if column.strip().lower() == "participant_id")


def _labels(table: pd.DataFrame) -> list[str]:
    return [_label(name) for name in table[_id_column(table)]]


def _label(name: str) -> str:
    return name.strip().removeprefix("sub-")


def _same(first: str, second: str) -> bool:
    """Equal words, or equal numbers."""
    try:
        return first.strip() == second or float(first) == float(second)
    except ValueError:
        return False
