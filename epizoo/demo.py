"""The demo: the reference method on the embedded phantom, beside a voxel-wise z-score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from epizoo.run import Run
from epizoo.run_config import RunConfig

RUNS: dict[str, dict[str, Any]] = {
    "siamese": {"model": "siamese", "detector": "ocsvm"},
    "voxel-wise z-score": {"model": "none", "detector": "zscore"},
}


def run(folder: str | Path, *, overwrite: bool = False, console: Console | None = None) -> None:
    """Run both methods on ``phantom_2mm`` and print their figures side by side.

    Args:
        folder: a run folder for each method is made in it.
        overwrite: start finished runs anew.
    """
    console = console or Console()
    results = {}
    for name, method in RUNS.items():
        console.rule(f"[bold blue]{name}")
        config = RunConfig.resolve("phantom_2mm", **method)
        one = Run(config, Path(folder) / name.replace(" ", "-"), overwrite=overwrite, console=console)
        results[name] = one()
        console.print(f"report: {one.folder.report}")
    console.print(comparison(results))


def comparison(results: dict[str, dict[str, Any]]) -> Table:
    """A table of the main figures of ``metrics.json``, a column a method."""
    patients = {metrics["patients"] for metrics in results.values()}
    table = Table("figure", *results, title=f"{', '.join(map(str, patients))} patients, 95 % intervals")

    def add(name: str, *path: str, digits: int = 2) -> None:
        cells = []
        for metrics in results.values():
            figure: Any = metrics
            for key in path:
                figure = figure[key]
            value, low, high = (figure[key] for key in ("value", "low", "high"))
            cells.append(
                "-" if value is None else f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
            )
        table.add_row(name, *cells)

    add("voxel AUROC", "voxel", "auroc", digits=3)
    add("voxel AUPRC", "voxel", "auprc", digits=3)
    add("  prevalence", "voxel", "prevalence", digits=4)
    for rank in ("1", "3", "5", "10"):
        add(f"sensitivity at rank {rank}", "lesion", "overlap", "sensitivity", rank)
    chances = [metrics["lesion"]["overlap"]["sensitivity"]["5"]["chance"] for metrics in results.values()]
    table.add_row("  chance at rank 5", *("-" if c is None else f"{c:.2f}" for c in chances))
    add("false-positive clusters a control", "false_positives", "clusters_at_threshold")
    return table
