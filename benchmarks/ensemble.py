"""An ensemble of encoders: the score maps of finished runs on the same data, each alone and fused.

    python -m benchmarks.ensemble bench/siamese-ocsvm-0 bench/siamese-ocsvm-1 bench/siamese-ocsvm-2

Maps are fused as z (``fuse_maps``); differences from the first run's are paired by patient.
"""

from __future__ import annotations

import sys

import numpy as np

from benchmarks.contrast import first_five, with_clusters
from epizoo.detection import fuse_maps
from epizoo.evaluation import bootstrap_mean, evaluate
from epizoo.finished_run import open_run


def main(*folders: str) -> None:
    runs = [open_run(folder) for folder in folders]
    patients = [subject for subject in runs[0].read("test") if subject.group == "patient"]
    maps = [[run.score_map(subject.subject) for run in runs] for subject in patients]
    first: list[float] = []
    choices = {run.name: [k] for k, run in enumerate(runs)} | {"all": list(range(len(runs)))}
    for name, chosen in choices.items():
        scored = (
            with_clusters(subject, fuse_maps([of_runs[k] for k in chosen]))
            for subject, of_runs in zip(patients, maps, strict=True)
        )
        rows = evaluate(scored, resamples=10).annotated
        areas = [row.voxel.auroc for row in rows]
        first = first or areas
        precision = bootstrap_mean([row.voxel.auprc for row in rows]).value
        less = bootstrap_mean(np.subtract(areas, first))
        print(
            f"{name:28} AUROC {bootstrap_mean(areas):.2f}, less the first's {less:+.3f}, "
            f"AUPRC {precision:.3f}, in the first 5 "
            f"{first_five(rows).value:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
