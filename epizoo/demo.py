"""The demo: the siamese encoder with its detector on the embedded phantom, beside a voxel-wise z-score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from epizoo.evaluation import RANKS, Interval, Metrics
from epizoo.run import Run
from epizoo.run_config import RunConfig

RUNS: dict[str, dict[str, Any]] = {
    "siamese": {"model": "siamese", "detector": "ocsvm"},
    "voxel-wise z-score": {"model": "none", "detector": "zscore"},
}


def run(folder: str | Path, *, overwrite: bool = False, console: Console | None = None) -> None:
    """Run both methods on ``phantom_2mm`` and print their figures side by side.

    Args:
        folder: gets a run's folder for each method.
        overwrite: start finished runs anew.
        console: where progress and figures are shown.
    """
    console = console or Console()
    results = {}
    for name, method in RUNS.items():
        console.rule(f"[bold blue]{name}")
        config = RunConfig.resolve("phantom_2mm", **method)
        one = Run(config, Path(folder) / name.replace(" ", "-"), overwrite=overwrite, console=console)
        results[name] = one()
        console.print(f"report: {one.folder.report}", markup=False)
    console.print(comparison(results))


def comparison(results: Mapping[str, Metrics]) -> Table:
    """A table of the main figures, with a column for each method."""
    found = list(results.values())
    patients = ", ".join({str(metrics.patients) for metrics in found})
    table = Table("figure", *map(escape, results), title=f"{patients} patients, 95 % intervals")

    def add(name: str, figures: Iterable[Interval], digits: int = 2) -> None:
        table.add_row(name, *(f"{figure:.{digits}f}" for figure in figures))

    add("voxel AUROC", (metrics.voxel.auroc for metrics in found), 3)
    add("voxel AUPRC", (metrics.voxel.auprc for metrics in found), 3)
    add("  prevalence", (metrics.voxel.prevalence for metrics in found), 4)
    overlap = [metrics.lesion["overlap"].sensitivity for metrics in found]
    for rank in RANKS:
        add(f"sensitivity at rank {rank}", (sensitivity[rank].interval for sensitivity in overlap))
    chances = [sensitivity[5].chance for sensitivity in overlap]
    table.add_row(
        "  chance at rank 5", *("–" if math.isnan(chance) else f"{chance:.2f}" for chance in chances)
    )
    false = [metrics.false_positives.clusters_at_threshold for metrics in found]
    add("false-positive clusters per control", false)
    return table
