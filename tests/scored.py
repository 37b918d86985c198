"""Scored subjects (noise in a ball, a lesion of any shape and contrast) and label volumes."""

import numpy as np
from scipy import ndimage

from epizoo.detection.clusters import find_clusters
from epizoo.evaluation import Scored
from tfds_epilepsy.volumes import Subject

AFFINE = np.array([[4.0, 0, 0, -40], [0, 4, 0, -30], [0, 0, 4, -20], [0, 0, 0, 1]])
SHAPE = (21, 16, 11)


def scored(
    name: str, seed: int, *, lesion: np.ndarray | None = None, contrast: float = 0.0, **fields
) -> Scored:
    mask = ball((10, 8, 5), 7)
    lesion = np.zeros(SHAPE, bool) if lesion is None else lesion
    score_map = (
        ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 0.6) + contrast * lesion
    )
    score_map = np.where(mask, score_map, 0).astype(np.float32)
    strata = fields.pop("strata", {})
    subject = Subject(
        subject=name,
        group="patient" if lesion.any() else "control",
        image=np.zeros((*SHAPE, 1), np.float32),
        brain_mask=mask,
        lesion_mask=lesion,
        affine=AFFINE,
        **fields,
    )
    clusters, labels = find_clusters(score_map, AFFINE, mask, min_size_mm3=128)
    return Scored(subject, score_map, clusters, labels, strata)


def ball(centre, radius, shape=SHAPE) -> np.ndarray:
    at = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
    return (at**2).sum(axis=0) <= radius**2


def blobs(seed: int, shape=SHAPE, n: int = 3) -> np.ndarray:
    """A label volume of n connected clusters."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.0)
    return find_clusters(noise, AFFINE, np.ones(shape, bool), max_clusters=n, min_size_mm3=200)[1]


def cohort(contrast: float, patients: int = 8):
    rng = np.random.default_rng(7)
    for i in range(patients):
        lesion = ball(np.array([10, 8, 5]) + rng.integers(-4, 5, 3), 1.8)
        kind = "fcd_iia" if i % 2 else "fcd_iib"
        yield scored(f"p{i}", i, lesion=lesion, contrast=contrast, site="ab"[i % 2], strata={"type": kind})
    for i in range(4):
        yield scored(f"c{i}", 100 + i)
