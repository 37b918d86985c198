"""Why do codes miss lesions? What they vary with, and what each choice of the detector does.

    python -m benchmarks.causes bench/siamese-ocsvm-0 bench/bigan-ocsvm-0

Finished runs of an encoder on the phantom. The lesions are those to choose on (``benchmarks.kinds``), the
controls those of the runs. First the variance of the codes: how much of it is the scan (the same person
scanned again), how much the person, and how large the lesion's own change is beside it (the same patient at
contrast 0). Then, for the first run, the reference detector with one thing changed at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

import benchmarks.objectives  # noqa: F401 (registers its models: their runs are read too)
from benchmarks.contrast import first_five, with_clusters
from benchmarks.kinds import COHORT, cases
from epizoo.detection import create_detector, fit_detector
from epizoo.detection.codes import Codes, Homotopic, codes_of
from epizoo.detection.detector import Detector
from epizoo.evaluation import AnnotatedRow, bootstrap_mean, evaluate
from epizoo.finished_run import open_run
from tfds_epilepsy import phantom
from tfds_epilepsy.volumes import Subject

CONTROLS = phantom.PhantomConfig()
TWICE = 12  # training controls that are scanned again


def main(*runs: str) -> None:
    train = [phantom.subject(CONTROLS, label) for label in phantom.cohort(CONTROLS)["train"]]
    again = [phantom.subject(CONTROLS, subject.subject, scan=1) for subject in train[:TWICE]]
    patients = [label for label in phantom.cohort(COHORT)["test"] if label.startswith("patient")]
    dysplasia = [phantom.subject(COHORT, label) for label in patients]
    healthy = [phantom.subject(replace(COHORT, contrast=0.0), label) for label in patients]
    encoders = [open_run(run, needs=[]).model for run in runs]
    print("variance of the codes between controls: scan, person; lesions' squared change, all in its units")
    for run, model in zip(runs, encoders, strict=True):
        scan, lesion = shares(codes_of(model), train, again, dysplasia, healthy)
        print(f"{Path(run).name:24} {scan:.2f}, {1 - scan:.2f}; {lesion:.3f}", flush=True)

    others = list(cases())
    reference: list[list[float]] = []
    print("\nAUROC, AUPRC, in the first 5: dysplasia | other kinds; AUROC on all less the reference's")
    for name, codes, detector, options, change in variants(codes_of(encoders[0]), encoders[0].latent_dim):
        with TemporaryDirectory() as scratch:
            normative = fit_detector(codes, lambda: train, scratch, detector, **options)
            rows = [
                evaluate(
                    (with_clusters(s, change(normative.score(s))) for s in group), resamples=10
                ).annotated
                for group in (dysplasia, others)
            ]
        areas = [[row.voxel.auroc for row in group] for group in rows]
        reference = reference or areas
        less = bootstrap_mean(np.concatenate(areas) - np.concatenate(reference))
        shown = " | ".join(figures(group) for group in rows)
        print(f"{name:44} {shown}; {less:+.3f}", flush=True)


def variants(
    codes: Codes, d: int
) -> Iterator[tuple[str, Codes, str | Detector, dict[str, Any], Callable[[NDArray[Any]], NDArray[Any]]]]:
    """Name, codes (of size d), detector, options of its fit, and what is done to its map."""

    def one(name: str, detector: Any = "ocsvm", *, of: Codes = codes, to: Any = same, **options: Any) -> Any:
        return name, of, detector, options, to

    yield one("reference: one SVM a voxel, nu .03")
    for nu in (0.01, 0.1, 0.3, 0.5):
        yield one(f"nu {nu:g}", create_detector("ocsvm", nu=nu))
    yield one("features standardised", create_detector("adjusted", scale="standard"))
    for factor in (1 / 16, 1 / 4, 4, 16):
        options = {"gamma": factor / d}
        detector = create_detector("adjusted", options=options, scale="standard")
        yield one(f"the same, gamma {factor:g} / d", detector)
    yield one("codes whitened", create_detector("adjusted", scale="whiten"))
    whole = create_detector("ocsvm")
    whole.calibration = "brain"  # type: ignore[misc]
    yield one("calibrated over the brain, not by voxel", whole)
    for fwhm in (4.0, 8.0, 12.0):
        yield one(f"map smoothed, {fwhm:g} mm", fwhm=fwhm)
    yield one("either tail: |z|", to=np.abs)
    yield one("too typical: -z", to=np.negative)
    yield one("less the mirror's code", of=Homotopic(codes))
    yield one("one SVM for the brain", "pooled")
    yield one("an SVM of the patient's own brain", "patient")
    yield one("Gaussian, shrunk covariance", "gaussian")
    yield one("the same, map smoothed, 8 mm", "gaussian", fwhm=8.0)
    yield one("nearest 5 controls", "knn")
    yield one("the same, map smoothed, 8 mm", "knn", fwhm=8.0)
    yield one("controls' codes at the six neighbours too", neighbours=True)


def shares(
    codes: Codes,
    controls: Sequence[Subject],
    again: Sequence[Subject],
    patients: Sequence[Subject],
    healthy: Sequence[Subject],
) -> tuple[float, float]:
    """Of the variance of codes between controls, means over the voxels of all lesions.

    Args:
        codes: of an encoder.
        controls: different people.
        again: the first of them in another scan.
        patients, healthy: each with its lesion and without.

    Returns:
        The share of the scan, half the squared difference of two scans of one person; and the mean squared
        change by a lesion over that variance.
    """
    union = np.any([patient.lesion_mask for patient in patients], axis=0)

    def at(subject: Subject) -> NDArray[np.float64]:
        found = codes.at(codes.volume(subject), union, slice(0, union.shape[2]))
        return found.astype(np.float64)  # (v, d)

    first = np.stack([at(subject) for subject in controls])  # (n, v, d)
    total = first.var(0, ddof=1).sum(-1)
    second = np.stack([at(subject) for subject in again])
    scan = ((second - first[: len(again)]) ** 2).sum(-1).mean(0) / 2
    change, variance = 0.0, 0.0
    for patient, same_patient in zip(patients, healthy, strict=True):
        there = patient.lesion_mask[union]
        change += float(((at(patient) - at(same_patient))[there] ** 2).sum(-1).mean())
        variance += float(total[there].mean())
    return float(scan.mean() / total.mean()), change / variance


def figures(rows: Sequence[AnnotatedRow]) -> str:
    area = bootstrap_mean([row.voxel.auroc for row in rows])
    precision = bootstrap_mean([row.voxel.auprc for row in rows])
    return f"{area:.2f}, {precision.value:.3f}, {first_five(rows).value:.2f}"


def same(score_map: NDArray[Any]) -> NDArray[Any]:
    return score_map


if __name__ == "__main__":
    main(*sys.argv[1:])
