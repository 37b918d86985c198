"""Detection under other conditions: fewer controls, another scanner, other kinds of lesion, smaller voxels.

    python -m benchmarks.robustness docs/robustness.png demo/voxel-wise-z-score demo/siamese

Finished runs on the phantom. The encoder of a run stays as it is, trained on all 40 controls; its detector,
and the deviations that it reads, are fitted anew on the first of them, and score the same test patients. A
run without an encoder is measured at 1 mm too: an encoder of 2 mm patches says nothing there. Differences
from the first run are paired by patient.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from tempfile import TemporaryDirectory

import numpy as np
from matplotlib.figure import Figure

from benchmarks.contrast import draw, measure
from epizoo.detection import create_detector, fit_detector
from epizoo.evaluation import Interval, bootstrap_mean
from epizoo.finished_run import open_run
from tfds_epilepsy import phantom
from tfds_epilepsy.phantom import PhantomConfig

CONTROLS = (10, 20, 40)
UNSEEN = ("heterotopia", "hippocampal_sclerosis")  # in no other cohort
DEFAULT = PhantomConfig()


def main(picture: str, *runs: str) -> None:
    figure = Figure(figsize=(9, 3))
    panels = figure.subplots(1, 2)
    first: dict[str, list[float]] = {}
    for number, run in enumerate(runs):
        done = open_run(run, needs=["detector"])
        model, manifest = done.model, done.detector.manifest
        intervals: list[tuple[Interval, Interval]] = []
        for name, controls, patients in conditions(with_voxels=model is None):
            train = [phantom.subject(controls, label) for label in phantom.cohort(controls)["train"]]
            if model is not None:
                model.view.adapt(train)
            with TemporaryDirectory() as scratch:
                normative = fit_detector(
                    model,
                    lambda train=train: train,
                    scratch,
                    create_detector(manifest["detector"], **manifest["config"]),
                    modalities=controls.modalities,
                    fwhm=manifest["fwhm"],
                    seed=manifest["seed"],
                )
                areas, share = measure(normative, patients)
            area = bootstrap_mean(areas)
            intervals.append((area, share))
            less = bootstrap_mean(np.subtract(areas, first.setdefault(name, areas)))
            print(
                f"{done.name:20} {name:16} AUROC {area:.2f}, less the first run's {less:.2f}, "
                f"in the first 5 {share:.2f}",
                flush=True,
            )
        at = np.arange(len(intervals)) + 0.12 * number
        for ax, these in zip(panels, zip(*intervals, strict=True), strict=True):
            draw(ax, at, these, linestyle="none", label=done.name)
    ticks = [name for name, _, _ in conditions(with_voxels=True)]
    for ax, title in zip(panels, ("voxel AUROC, mean", "lesions in the first 5 clusters"), strict=True):
        ax.set(ylabel=title, ylim=(-0.03, 1.03))
        ax.set_xticks(range(len(ticks)), ticks, rotation=20, ha="right", fontsize=8)
    panels[0].axhline(0.5, color="0.5", linestyle=":")
    panels[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=80)


def conditions(*, with_voxels: bool) -> Iterator[tuple[str, PhantomConfig, PhantomConfig]]:
    """Name, the cohort of the training controls, and that of the test patients."""
    for n in CONTROLS:
        yield f"{n} controls", replace(DEFAULT, n_train=n), DEFAULT
    yield "another scanner", DEFAULT, replace(DEFAULT, second_site=1.0)
    yield "both scanners", replace(DEFAULT, second_site=0.5), replace(DEFAULT, second_site=0.5)
    yield "unseen kinds", DEFAULT, replace(DEFAULT, kinds=UNSEEN)
    if with_voxels:
        fine = replace(DEFAULT, voxel_size=1)
        yield "1 mm", fine, fine


if __name__ == "__main__":
    main(*sys.argv[1:])
