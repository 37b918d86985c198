"""The demo: the default method on the embedded phantom, beside the siamese reference and a z-score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from epizoo.evaluation.side_by_side import as_table
from epizoo.finished_run import METRICS, open_run
from epizoo.run import Run
from epizoo.run_config import RunConfig
from tfds_epilepsy.progress import stderr

DEFAULT = "deviation"
# The siamese learns in 300 steps what it shows of lesions: 5000 find no more of them (docs/results.md).
OTHERS: dict[str, dict[str, Any]] = {
    "siamese": {"model": "siamese", "epochs": 3, "steps_per_epoch": 100},
    "z-score": {"detector": "zscore"},
}


def run(
    folder: str | Path,
    *,
    data_dir: Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> None:
    """Run the three methods on ``phantom_2mm``; the report of the default one opens with their figures.

    Args:
        folder: gets a run's folder for each method.
        data_dir: where prepared data sets live; TFDS's default if None.
        overwrite: start finished runs anew.
        console: where the figures are shown; standard output if None.
    """
    console = console or Console()
    runs: dict[str, Run] = {}
    for name, method in {DEFAULT: {}, **OTHERS}.items():
        stderr.print(f"{name} ({len(runs) + 1} of {1 + len(OTHERS)})", style="bold blue")
        config = RunConfig.resolve("phantom_2mm", **method)
        place = Path(folder) / name
        runs[name] = Run(config, place, data_dir=data_dir, overwrite=overwrite)
        if not runs[name].folder.metrics.is_file():
            runs[name].evaluate()
    done = {name: open_run(one.folder.path, needs=[METRICS], data_dir=data_dir) for name, one in runs.items()}
    report = runs[DEFAULT].report(beside=[done[name] for name in OTHERS])
    console.print(as_table({name: one.metrics for name, one in done.items()}))
    best = min(done[DEFAULT].metrics.annotated, key=lambda row: row.lesion["overlap"].rank)
    console.print(f"report:      {report}", markup=False, soft_wrap=True)
    page = report.parent / f"sub-{best.subject}" / report.name
    console.print(f"one patient: {page}", markup=False, soft_wrap=True)
