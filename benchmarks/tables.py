"""The tables of the documentation, made from the figures that are stored in ``docs/figures``.

    python -m benchmarks.tables

A page says where a table stands; the lines between are written anew, and never by hand::

    <!-- figures/zoo.tsv -->
    <!-- end -->

    <!-- figures/zoo.tsv | seeds | AUROC -->     the first column, and these
    <!-- end -->

The TSV holds the cells as they are read, Markdown within; its first line holds the names of the columns.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import write_text

DOCS = Path(__file__).parents[1] / "docs"
PLACE = re.compile(r"(<!-- figures/(\S+)\.tsv(?: \| )?(.*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def rows(name: str, docs: Path = DOCS) -> list[dict[str, str]]:
    """The figures of a table: a row each, cells by the names of their columns."""
    header, *lines = _lines(name, docs)
    return [dict(zip(header, line, strict=True)) for line in lines]


def table(name: str, columns: Sequence[str] = (), docs: Path = DOCS) -> str:
    """A table as Markdown.

    Args:
        name: of the file of figures.
        columns: those that stand beside the first; all by default.
        docs: the folder of the documentation.

    Raises:
        InputError: no such figures, rows of several widths, or no such column.
    """
    header, *lines = _lines(name, docs)
    if unknown := [column for column in columns if column not in header]:
        raise InputError(f"{name}.tsv: no column {', '.join(map(repr, unknown))}, and a page shows it.")
    kept = [0, *map(header.index, columns)] if columns else range(len(header))
    shown = ([cells[i] for i in kept] for cells in (header, ["---"] * len(header), *lines))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in shown)


def pages(docs: Path = DOCS) -> Iterator[tuple[Path, str, str]]:
    """Every page that shows stored figures: its path, what it holds, and what it should hold.

    Raises:
        InputError: as :func:`table`.
    """

    def written(place: re.Match[str]) -> str:
        before, name, columns, _, after = place.groups()
        return before + table(name, columns.split(" | ") if columns else (), docs) + after

    for path in sorted(docs.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if PLACE.search(text):
            yield path, text, PLACE.sub(written, text)


def _lines(name: str, docs: Path) -> list[list[str]]:
    path = docs / "figures" / f"{name}.tsv"
    if not path.is_file():
        raise InputError(f"{path}: no such file, and a page shows its table.")
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    if wrong := [str(i) for i, cells in enumerate(lines, 1) if len(cells) != len(lines[0])]:
        raise InputError(f"{path}: line {', '.join(wrong)}: not as many cells as the first line has.")
    return lines


if __name__ == "__main__":
    try:
        for path, text, made in pages():
            if made != text:
                write_text(path, made)
                print(f"{path}: written")
    except InputError as error:
        sys.exit("\n".join(error.problems))
