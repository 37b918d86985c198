"""Lesions to choose on, of a phantom cohort of another seed: dysplasia, and kinds that no tested cohort has.

    python -m benchmarks.kinds bench/deviation-signs-0 bench/deviation-head-0 bench/signs

Finished runs on the phantom. 24 patients have dysplasia; in 45 held-out controls lie a tumour-like lesion, a
scar or a spot in white matter. A change that helps dysplasia alone is tuned to it. More kinds to choose on,
and those that judge, are in ``benchmarks.cases``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.contrast import first_five, fitted, score, score_patients
from epizoo.evaluation import AnnotatedRow, bootstrap_mean, evaluate
from tfds_epilepsy import phantom
from tfds_epilepsy.lesions import EDGE, irregular_ball
from tfds_epilepsy.tissue import estimate_tissue
from tfds_epilepsy.volumes import Subject

COHORT = phantom.PhantomConfig(
    seed=7, n_validation_controls=0, n_validation_patients=0, n_test_controls=53, n_test_patients=24
)
KINDS = ("tumour", "scar", "spot")
CASES = 45
SEED = 5


def main(*runs: str) -> None:
    print(f"{'':20} {'':10} n   AUROC, AUPRC, in the first 5 clusters")
    made = list(cases())
    for run in runs:
        name, normative = fitted(run)
        dysplasia = evaluate(score_patients(normative, COHORT), resamples=10).annotated
        others = evaluate((score(normative, case) for case in made), resamples=10).annotated
        report(name, "dysplasia", dysplasia)
        report(name, "others", others)
        for number, kind in enumerate(KINDS):
            report(name, kind, others[number :: len(KINDS)])


def report(name: str, kind: str, rows: list[AnnotatedRow]) -> None:
    area = bootstrap_mean([row.voxel.auroc for row in rows])
    precision = bootstrap_mean([row.voxel.auprc for row in rows])
    figures = f"{area:.2f}, {precision.value:.3f}, {first_five(rows):.2f}"
    print(f"{name:20} {kind:10} {len(rows):2}  {figures}", flush=True)


def cases() -> Iterator[Subject]:
    """Held-out controls of the cohort with a lesion each, the kinds in turn."""
    rng = np.random.default_rng(SEED)
    controls = [label for label in phantom.cohort(COHORT)["test"] if label.startswith("control")]
    for number, label in enumerate(controls[-CASES:]):
        yield with_lesion(phantom.subject(COHORT, label), KINDS[number % len(KINDS)], rng)


def with_lesion(subject: Subject, kind: str, rng: np.random.Generator) -> Subject:
    """A healthy scan of T1w and FLAIR with a subtle lesion of a kind.

    - *tumour*: 8 to 18 mm; grey and white matter 30 to 60 % of the way to one signal, darker on T1w than grey
      matter and brighter on FLAIR;
    - *scar*: 10 to 22 mm; FLAIR 4 to 10 % brighter, white matter 2 to 6 % darker on T1w, 10 to 30 % of the
      cortex by the fluid lost;
    - *spot*: 5 to 10 mm, deep in white matter; FLAIR 6 to 14 % brighter, T1w up to 5 % darker.

    Args:
        subject: a control; T1w and FLAIR.
        kind: one of ``KINDS``.
        rng: draws place, size and strength.
    """
    brain, zooms = subject.brain_mask, np.linalg.norm(subject.affine[:3, :3], axis=0)
    grey, white, fluid = tissue = estimate_tissue(subject.image[..., 0], brain, subject.affine)
    depth = ndimage.distance_transform_edt(brain, sampling=zooms)
    place, smallest, largest = {
        "tumour": ((grey > 0.5) & (depth > 4), 8, 18),
        "scar": ((grey > 0.5) & (depth > 3) & (depth < 24), 10, 22),
        "spot": ((white > 0.9) & (depth > 14), 5, 10),
    }[kind]
    radius = rng.uniform(smallest, largest) / 2
    candidates = np.argwhere(place & brain)
    offsets = np.moveaxis(np.indices(brain.shape), 0, -1) - candidates[rng.integers(len(candidates))]
    weight = irregular_ball(offsets * zooms, radius, zooms, rng) * brain * (1 - fluid)
    t1, flair = (subject.image[..., k].astype(np.float32) for k in (0, 1))
    means_t1, means_flair = ([_mean(volume, share * brain) for share in tissue] for volume in (t1, flair))

    if kind == "tumour":
        amount = rng.uniform(0.3, 0.6) * weight * (grey + white)
        t1 = t1 + amount * (0.95 * means_t1[0] - grey * means_t1[0] - white * means_t1[1])
        flair = flair + amount * (1.03 * means_flair[0] - grey * means_flair[0] - white * means_flair[1])
    elif kind == "scar":
        flair = flair * (1 + rng.uniform(0.04, 0.10) * weight)
        t1 = t1 * (1 - rng.uniform(0.02, 0.06) * weight * white)
        by_fluid = np.clip(4 * ndimage.gaussian_filter(fluid, 2 / zooms), 0, 1)
        lost = rng.uniform(0.1, 0.3) * weight * grey * by_fluid
        t1 = t1 + lost * (means_t1[2] - means_t1[0])
        flair = flair + lost * (means_flair[2] - means_flair[0])
    else:
        flair = flair * (1 + rng.uniform(0.06, 0.14) * weight)
        t1 = t1 * (1 - rng.uniform(0, 0.05) * weight)
    image = np.clip(np.stack([t1, flair], -1), 0, 1)
    return replace(subject, group="patient", image=image, lesion_mask=weight > EDGE)


def _mean(volume: NDArray[np.floating], weights: NDArray[np.floating]) -> float:
    return float((weights * volume).sum() / weights.sum())


if __name__ == "__main__":
    main(*sys.argv[1:])
