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
from benchmarks.contrast import first_five, show
from benchmarks.kinds import COHORT, cases
from epizoo import models
from epizoo.detection import create_detector, find_clusters, fit_normative
from epizoo.detection.codes import Codes, Homotopic, as_codes
from epizoo.detection.detector import Detector
from epizoo.evaluation import Scored, bootstrap_mean, evaluate
from epizoo.run_folder import RunFolder
from tfds_epilepsy import phantom
from tfds_epilepsy.volumes import Subject

CONTROLS = phantom.PhantomConfig()
TWICE = 12  # training controls that are scanned again


def main(*runs: str) -> None:
    train = [phantom.subject(CONTROLS, label) for label in phantom.cohort(CONTROLS)["train"]]
    patients = [label for label in phantom.cohort(COHORT)["test"] if label.startswith("patient")]
    print("variance of the codes between controls: scan, person; lesions' squared change, all in its units")
    for run in runs:
        codes = as_codes(models.load_model(RunFolder(Path(run)).model))
        scan, lesion = shares(codes, train, patients)
        print(f"{Path(run).name:24} {scan:.2f}, {1 - scan:.2f}; {lesion:.3f}", flush=True)

    model = models.load_model(RunFolder(Path(runs[0])).model)
    dysplasia = [phantom.subject(COHORT, label) for label in patients]
    others = list(cases())
    reference: list[list[float]] = []
    print(
        "\nAUROC, AUPRC, in the first 5: dysplasia | other kinds; AUROC less the reference's on all, paired"
    )
    for name, codes, detector, options, change in variants(as_codes(model)):
        with TemporaryDirectory() as scratch:
            normative = fit_normative(codes, lambda: train, scratch, detector, **options)
            rows = [
                evaluate((scored(change(normative.score(s)), s) for s in group), resamples=10)["rows"]
                for group in (dysplasia, others)
            ]
        areas = [[row["auroc"] for row in group] for group in rows]
        reference = reference or areas
        less = bootstrap_mean(np.concatenate(areas) - np.concatenate(reference))
        shown = " | ".join(figures(group) for group in rows)
        print(f"{name:44} {shown}; {less.value:+.3f} ({less.low:+.3f} to {less.high:+.3f})", flush=True)


def variants(
    codes: Codes,
) -> Iterator[tuple[str, Codes, str | Detector, dict[str, Any], Callable[[NDArray[Any]], NDArray[Any]]]]:
    """Name, codes, detector, options of its fit, and what is done to its map."""

    def one(
        name: str, detector: str | Detector = "ocsvm", *, of: Codes = codes, to: Any = same, **options: Any
    ):
        return name, of, detector, options, to

    yield one("reference: one SVM a voxel, nu .03")
    for nu in (0.01, 0.1, 0.3, 0.5):
        yield one(f"nu {nu:g}", create_detector("ocsvm", nu=nu))
    yield one("features standardised", create_detector("adjusted", scale="standard"))
    for factor in (1 / 16, 1 / 4, 4, 16):
        options = {"gamma": factor / 64}
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


def shares(codes: Codes, controls: Sequence[Subject], patients: Sequence[str]) -> tuple[float, float]:
    """Of the variance of codes between controls, means over the voxels of all lesions.

    Returns:
        The share of the scan, half the squared difference of two scans of one person; and the mean squared
        change by a lesion over that variance.
    """
    without = replace(COHORT, contrast=0.0)
    pairs = [(phantom.subject(COHORT, label), phantom.subject(without, label)) for label in patients]
    lesions = [patient.lesion_mask for patient, _ in pairs]
    union = np.any(lesions, axis=0)

    def at(subject: Subject) -> NDArray[np.float64]:
        found = codes.latents(codes.volume(subject), union, slice(0, union.shape[2]))
        return found.astype(np.float64)  # (v, d)

    first = np.stack([at(subject) for subject in controls])  # (n, v, d)
    total = first.var(0, ddof=1).sum(-1)
    again = np.stack([at(phantom.subject(CONTROLS, s.subject, scan=1)) for s in controls[:TWICE]])
    scan = ((again - first[:TWICE]) ** 2).sum(-1).mean(0) / 2
    change, variance = 0.0, 0.0
    for (patient, healthy), lesion in zip(pairs, lesions, strict=True):
        there = lesion[union]
        change += float(((at(patient) - at(healthy))[there] ** 2).sum(-1).mean())
        variance += float(total[there].mean())
    return float(scan.mean() / total.mean()), change / variance


def scored(score_map: NDArray[np.float32], subject: Subject) -> Scored:
    return Scored(subject, score_map, *find_clusters(score_map, subject.affine, subject.brain_mask))


def figures(rows: Sequence[dict[str, Any]]) -> str:
    area, precision = (bootstrap_mean([row[key] for row in rows]) for key in ("auroc", "auprc"))
    return f"{show(area)}, {precision.value:.3f}, {first_five(rows).value:.2f}"


def same(score_map: NDArray[Any]) -> NDArray[Any]:
    return score_map


if __name__ == "__main__":
    main(*sys.argv[1:])
