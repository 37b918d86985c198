"""Detection against lesion contrast: finished runs on the phantom, its test patients made at other contrasts.

    python -m benchmarks.contrast docs/contrast.png demo/siamese demo/voxel-wise-z-score

At contrast 0 the image holds no sign of the lesion, so every method must be at chance (AUROC 0.5); the mask
is where the lesion would be. The models were fitted on controls, which contrast does not touch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from epizoo.detection import find_clusters
from epizoo.evaluation import AnnotatedRow, Interval, Scored, bootstrap_mean, evaluate, proportion
from epizoo.finished_run import open_run
from epizoo.method import Scorer
from tfds_epilepsy import phantom
from tfds_epilepsy.volumes import Subject

CONTRASTS = (0.0, 1.0, 2.0, 4.0)


def main(picture: str, *runs: str) -> None:
    curves = {}
    for run in runs:
        name, normative = fitted(run)
        configs = [replace(phantom.PhantomConfig(), contrast=contrast) for contrast in CONTRASTS]
        by_patient, found = zip(*(measure(normative, config) for config in configs), strict=True)
        areas = [bootstrap_mean(values) for values in by_patient]
        for contrast, area, share in zip(CONTRASTS, areas, found, strict=True):
            figures = f"AUROC {area:.2f}, in the first 5 {share:.2f}"
            print(f"{name:20} contrast {contrast:g}: {figures}")
        curves[name] = (CONTRASTS, areas, found)
    draw_curves(picture, curves, "contrast of the lesions")


def fitted(run: str) -> tuple[str, Scorer]:
    """The name and the detector of a finished run."""
    done = open_run(run, needs=["detector"])
    return done.name, done.detector


def measure(normative: Scorer, config: phantom.PhantomConfig) -> tuple[list[float], Interval]:
    """Voxel AUROC of each test patient of a phantom; sensitivity at rank 5 over them."""
    patients = evaluate(score_patients(normative, config), resamples=10).annotated
    return [row.voxel.auroc for row in patients], first_five(patients)


def score_patients(normative: Scorer, config: phantom.PhantomConfig) -> Iterator[Scored]:
    """The test patients of a phantom, one at a time."""
    for label in phantom.cohort(config)["test"]:
        if label.startswith("patient"):
            yield score(normative, phantom.subject(config, label))


def score(normative: Scorer, subject: Subject) -> Scored:
    """A subject, its map and its clusters."""
    return with_clusters(subject, normative.score(subject))


def with_clusters(subject: Subject, score_map: NDArray[np.float32]) -> Scored:
    """A subject, a map of it and the map's clusters."""
    return Scored(subject, score_map, *find_clusters(score_map, subject.affine, subject.brain_mask))


def first_five(patients: Sequence[AnnotatedRow]) -> Interval:
    """Share of patients whose lesion is among the first 5 clusters."""
    return proportion([row.lesion["overlap"].rank <= 5 for row in patients])


def draw(ax: Axes, at: ArrayLike, intervals: Sequence[Interval], **options: Any) -> None:
    """Values with their intervals as error bars."""
    values = [interval.value for interval in intervals]
    bars = [[i.value - i.low for i in intervals], [i.high - i.value for i in intervals]]
    ax.errorbar(at, values, np.maximum(bars, 0), marker="o", capsize=3, **options)


def draw_curves(
    picture: str, curves: Mapping[str, tuple[ArrayLike, Sequence[Interval], Sequence[Interval]]], xlabel: str
) -> None:
    """Each run's voxel AUROC and share of lesions in the first 5 clusters, against something."""
    figure = Figure(figsize=(7.5, 3))
    voxel, lesion = figure.subplots(1, 2)
    for name, (at, areas, found) in curves.items():
        draw(voxel, at, areas, label=name)
        draw(lesion, at, found, label=name)
    voxel.axhline(0.5, color="0.5", linestyle=":")
    voxel.set(xlabel=xlabel, ylabel="voxel AUROC, mean", ylim=(0.3, 1))
    lesion.set(xlabel=xlabel, ylabel="lesions in the first 5 clusters", ylim=(-0.03, 1.03))
    voxel.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    main(*sys.argv[1:])
