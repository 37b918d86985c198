"""Lesion-level figures: at which rank a lesion is found, and at the cost of how many false clusters.

Each patient counts once, however many parts the lesion has: it is found when a cluster hits any part of the
lesion mask. Clusters that hit nothing are false positives; a second cluster on a lesion that was already
found is neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfds_epilepsy.errors import InputError

RULES = {
    "overlap": "the cluster shares at least one voxel with the lesion",
    "strict": "the centre of the cluster lies in the lesion, or their IoU is at least 0.1",
}
MIN_IOU = 0.1
RANKS = (1, 3, 5, 10)
MAX_FP = 10.0  # false positives per patient at which the area under the FROC ends


def match_clusters(labels: NDArray[np.integer], lesion: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """Tell which clusters hit the lesion, under each rule of ``RULES``.

    Example:
        >>> labels, lesion = np.zeros((6, 4, 4), int), np.zeros((6, 4, 4), bool)
        >>> labels[0, 0, 0], labels[5], lesion[4:] = 1, 2, True
        >>> {rule: hits.tolist() for rule, hits in match_clusters(labels, lesion).items()}
        {'overlap': [False, True], 'strict': [False, True]}

    Args:
        labels: ``(x, y, z)``, 1..n by rank and 0 elsewhere (``epizoo.detection.clusters.find_clusters``).
        lesion: ``(x, y, z)`` bool.

    Returns:
        For each rule ``(n,)`` bool, first rank first.

    Raises:
        InputError: shapes that disagree.
    """
    if labels.shape != lesion.shape:
        raise InputError(f"labels {labels.shape} and lesion {lesion.shape} must have one shape.")
    at = np.nonzero(labels)
    label = labels[at]
    n = int(label.max(initial=0))
    size = np.bincount(label, minlength=n + 1)[1:]
    shared = np.bincount(label, lesion[at], n + 1)[1:]
    union = size + np.count_nonzero(lesion) - shared
    centres = np.stack([np.bincount(label, axis, n + 1)[1:] / np.maximum(size, 1) for axis in at], axis=1)
    inside = lesion[tuple(np.rint(centres).astype(int).T)]
    return {"overlap": shared > 0, "strict": inside | (shared / np.maximum(union, 1) >= MIN_IOU)}


def first_hit(hits: ArrayLike) -> float:
    """The rank of the first cluster that hits; infinity where none does.

    Example:
        >>> float(first_hit([False, True, True])), float(first_hit([False]))
        (2.0, inf)
    """
    at = np.flatnonzero(hits)
    return float(at[0] + 1) if at.size else float("inf")


def sensitivity(first_hits: ArrayLike, rank: int) -> float:
    """Share of patients whose lesion is among the first ``rank`` clusters; NaN without patients.

    Example:
        >>> sensitivity([1, 4, np.inf, 2], 3)
        0.5
    """
    first_hits = np.asarray(first_hits, dtype=float)
    return float(np.mean(first_hits <= rank)) if first_hits.size else float("nan")


def mean_rank(first_hits: ArrayLike) -> float:
    """Mean rank of the first hit over the patients that were found; NaN where none was.

    Example:
        >>> mean_rank([1, 4, np.inf])
        2.5
    """
    first_hits = np.asarray(first_hits, dtype=float)
    found = first_hits[np.isfinite(first_hits)]
    return float(found.mean()) if found.size else float("nan")


@dataclass(frozen=True)
class Froc:
    """The free-response ROC curve of a group of patients.

    Example:
        >>> curve = froc([np.array([False, True]), np.array([True])])
        >>> curve.false_positives, curve.sensitivity
        (array([0. , 0.5, 0.5]), array([0. , 0.5, 1. ]))

    Attributes:
        false_positives: ``(k,)`` mean number per patient at each point of the curve, ascending.
        sensitivity: ``(k,)`` share of patients found at each point.
        area: mean sensitivity from 0 to ``MAX_FP`` false positives per patient. Between two points, and after
            the last one, the sensitivity is that of the point before.
    """

    false_positives: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    area: float


def froc(hits: Sequence[NDArray[np.bool_]], confidence: Sequence[NDArray[np.floating]] | None = None) -> Froc:
    """Compute the free-response ROC curve of a group of patients.

    Example:
        >>> curve = froc([np.array([False, True]), np.array([True])])  # of two patients, first rank first
        >>> curve.area
        0.95

    Args:
        hits: for each patient ``(n,)`` bool, whether each cluster hits, first rank first.
        confidence: for each patient ``(n,)``, how suspicious each cluster is, on a scale that holds for all
            patients; by default clusters are as suspicious as their rank says.
    """
    n = len(hits)
    if n == 0:
        return Froc(np.zeros(1), np.full(1, np.nan), float("nan"))
    if confidence is None:
        confidence = [-np.arange(len(patient), dtype=float) for patient in hits]
    patient = np.repeat(np.arange(n), [len(h) for h in hits])
    hit, level = np.concatenate(hits).astype(bool), np.concatenate(confidence)
    best = np.full(n, -np.inf)
    np.maximum.at(best, patient[hit], level[hit])  # a patient is found at the best of the clusters that hit
    levels = np.unique(level)[::-1]
    found = np.searchsorted(np.sort(-best), -levels, side="right") / n
    false = np.searchsorted(np.sort(-level[~hit]), -levels, side="right") / n
    x, y = np.append(0, false), np.append(0, found)
    return Froc(x, y, _step_area(x, y, MAX_FP))


def _step_area(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> float:
    inside = x <= limit
    x, y = x[inside], np.maximum.accumulate(y[inside])
    return float(np.sum(np.diff(x, append=limit) * y) / limit)
