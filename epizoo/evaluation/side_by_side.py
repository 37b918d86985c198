"""The main figures of several methods on the same test subjects, side by side, for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from epizoo.evaluation.figures import Metrics
from epizoo.evaluation.lesion_level import RANKS
from epizoo.evaluation.statistics import Interval


@dataclass(frozen=True)
class SideBySide:
    """A table of text.

    Attributes:
        title: how many patients it is over.
        columns: ``figure``, then a method each.
        rows: one a figure, with its 95 % interval.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]


def side_by_side(results: Mapping[str, Metrics]) -> SideBySide:
    """The table of methods by name."""
    found = list(results.values())
    patients = ", ".join({str(metrics.patients) for metrics in found})
    rows: list[list[str]] = []

    def add(name: str, figures: Iterable[Interval], digits: int = 2) -> None:
        rows.append([name, *(f"{figure:.{digits}f}" for figure in figures)])

    add("voxel AUROC", (metrics.voxel.auroc for metrics in found), 3)
    add("voxel AUPRC", (metrics.voxel.auprc for metrics in found), 3)
    add("  prevalence", (metrics.voxel.prevalence for metrics in found), 4)
    # A resection is not the lesion: overlap with it is called what it is.
    resection = any(metrics.reference == "resection" for metrics in found)
    hit = "overlap with the resection" if resection else "sensitivity"
    overlap = [metrics.lesion["overlap"].sensitivity for metrics in found]
    for rank in RANKS:
        add(f"{hit} at rank {rank}", (sensitivity[rank].interval for sensitivity in overlap))
    chances = [sensitivity[5].chance for sensitivity in overlap]
    rows.append(
        ["  chance at rank 5", *("–" if math.isnan(chance) else f"{chance:.2f}" for chance in chances)]
    )
    false = [metrics.false_positives.clusters_at_threshold for metrics in found]
    add("false-positive clusters per control", false)
    return SideBySide(f"{patients} patients, 95 % intervals", ["figure", *results], rows)


def as_table(results: Mapping[str, Metrics]) -> Table:
    """The same for a terminal."""
    made = side_by_side(results)
    table = Table(*map(escape, made.columns), title=made.title)
    for row in made.rows:
        table.add_row(*row)
    return table
