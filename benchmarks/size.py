"""Detection against the size of the lesions: finished runs on the phantom, 60 test patients in place of 20.

    python -m benchmarks.size docs/size.png bench/deviation-signs-0 bench/signs

The further patients come from the same cohort, whose training controls stay as they are. Patients are grouped
by the diameter of a ball of the lesion's volume, in four groups of equal number.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace

import numpy as np

from benchmarks.contrast import draw_curves, first_five, fitted, score_patients
from epizoo.evaluation import bootstrap_mean, evaluate
from tfds_epilepsy import phantom

COHORT = replace(phantom.PhantomConfig(), n_test_patients=60)
GROUPS = 4


def main(picture: str, *runs: str) -> None:
    curves = {}
    for run in runs:
        name, normative = fitted(run)
        rows = evaluate(score_patients(normative, COHORT), resamples=10).annotated
        rows.sort(key=lambda row: row.lesion_diameter_mm)
        edges = np.linspace(0, len(rows), GROUPS + 1).astype(int)
        groups = [rows[start:stop] for start, stop in itertools.pairwise(edges)]
        sizes = [float(np.mean([row.lesion_diameter_mm for row in group])) for group in groups]
        areas = [bootstrap_mean([row.voxel.auroc for row in group]) for group in groups]
        found = [first_five(group) for group in groups]
        for group, area, share in zip(groups, areas, found, strict=True):
            first, last = (group[i].lesion_diameter_mm for i in (0, -1))
            print(
                f"{name:20} {first:.1f} to {last:.1f} mm, {len(group)} patients: "
                f"AUROC {area:.2f}, in the first 5 {share:.2f}",
                flush=True,
            )
        curves[name] = (sizes, areas, found)
    draw_curves(picture, curves, "diameter of the lesions (mm)")


if __name__ == "__main__":
    main(*sys.argv[1:])
