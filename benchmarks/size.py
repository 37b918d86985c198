"""Detection against the size of the lesions: finished runs on the phantom, 60 test patients in place of 20.

    python -m benchmarks.size docs/size.png bench/deviation-head-0 bench/signs-0

The further patients come from the same cohort, whose training controls stay as they are. Patients are grouped
by the diameter of a ball of the lesion's volume, in four groups of equal number.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.contrast import draw, score_patients, show
from epizoo import models
from epizoo.detection import NormativeModel
from epizoo.evaluation import bootstrap_mean, evaluate, proportion
from epizoo.run_folder import RunFolder
from tfds_epilepsy import phantom

COHORT = replace(phantom.PhantomConfig(), n_test_patients=60)
GROUPS = 4


def main(picture: str, *runs: str) -> None:
    figure = Figure(figsize=(7.5, 3))
    voxel, lesion = figure.subplots(1, 2)
    for run in runs:
        folder = RunFolder(Path(run))
        model = models.load_model(folder.model) if folder.model.is_file() else None
        normative = NormativeModel.load(folder.detector, model)
        rows = evaluate(score_patients(normative, COHORT), resamples=10)["rows"]
        rows.sort(key=lambda row: row["lesion_diameter_mm"])
        edges = np.linspace(0, len(rows), GROUPS + 1).astype(int)
        groups = [rows[start:stop] for start, stop in itertools.pairwise(edges)]
        sizes = [float(np.mean([row["lesion_diameter_mm"] for row in group])) for group in groups]
        areas = [bootstrap_mean([row["auroc"] for row in group]) for group in groups]
        ranks = [[row["overlap"]["rank"] or np.inf for row in group] for group in groups]
        found = [proportion([rank <= 5 for rank in group]) for group in ranks]
        for group, area, share in zip(groups, areas, found, strict=True):
            first, last = (group[i]["lesion_diameter_mm"] for i in (0, -1))
            print(
                f"{folder.path.name:20} {first:.1f} to {last:.1f} mm, {len(group)} patients: "
                f"AUROC {show(area)}, in the first 5 {show(share)}",
                flush=True,
            )
        for ax, intervals in ((voxel, areas), (lesion, found)):
            draw(ax, sizes, intervals, label=folder.path.name)
    voxel.axhline(0.5, color="0.5", linestyle=":")
    voxel.set(xlabel="diameter of the lesions (mm)", ylabel="voxel AUROC, mean", ylim=(0.3, 1))
    lesion.set(
        xlabel="diameter of the lesions (mm)", ylabel="lesions in the first 5 clusters", ylim=(-0.03, 1.03)
    )
    voxel.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    main(*sys.argv[1:])
