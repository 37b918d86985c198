"""The demo: the default method on the embedded phantom, beside the siamese reference and a z-score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from epizoo.evaluation.side_by_side import as_table
from epizoo.finished_run import METRICS, open_run
from epizoo.run import Run
from epizoo.run_config import RunConfig

DEFAULT = "deviation"
# The siamese learns in 300 steps what it shows of lesions: 5000 find no more of them (docs/results.md).
OTHERS: dict[str, dict[str, Any]] = {
    "siamese": {"model": "siamese", "epochs": 3, "steps_per_epoch": 100},
    "z-score": {"detector": "zscore"},
}
NEXT = """\
With your own scans, in BIDS, controls and patients:
    epizoo check BIDS
    epizoo preprocess BIDS DERIVATIVE
    epizoo run DERIVATIVE RUN"""


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
        console: where progress and figures are shown.
    """
    console = console or Console()
    runs = {}
    for name, method in {DEFAULT: {}, **OTHERS}.items():
        console.rule(f"[bold blue]{name}")
        config = RunConfig.resolve("phantom_2mm", **method)
        place = Path(folder) / name
        runs[name] = Run(config, place, data_dir=data_dir, overwrite=overwrite, console=console)
        if not runs[name].folder.metrics.is_file():
            runs[name].evaluate()
    done = {name: open_run(one.folder.path, needs=[METRICS], data_dir=data_dir) for name, one in runs.items()}
    report = runs[DEFAULT].report(beside=[done[name] for name in OTHERS])
    console.print(as_table({name: one.metrics for name, one in done.items()}))
    best = min(done[DEFAULT].metrics.annotated, key=lambda row: row.lesion["overlap"].rank)
    console.print(f"report:      {report}", markup=False, soft_wrap=True)
    page = report.parent / f"sub-{best.subject}" / report.name
    console.print(f"one patient: {page}", markup=False, soft_wrap=True)
    console.print(NEXT, markup=False)
