"""Voxel-level figures of one score map against one lesion, inside the brain mask.

Exact rank statistics, never binned: lesions are rare and scores squeezed, and binned areas can be off by
.4. All figures come from one sort of the voxels; tied scores enter the curves together, so that the order of
voxels never matters. A patient whose lesion mask is empty, or fills the brain, has no such figure: NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tfds_epilepsy.errors import InputError

FPR_LIMIT = 0.3  # of AUROC30 and AU-PRO (Bergmann et al. 2021)
NEIGHBOURS = np.ones((3, 3, 3), dtype=int)  # 26, as for clusters


@dataclass(frozen=True)
class VoxelMetrics:
    """Figures of one patient; each is NaN where the lesion mask is empty or fills the brain.

    Example:
        >>> done.metrics.annotated[0].voxel.prevalence > 0
        True

    Attributes:
        auroc: area under the ROC curve; chance .5.
        auroc30: area under the ROC curve up to a false-positive rate of .3, divided by .3; chance .15.
        auprc: average precision, sum of (recall step x precision); chance is the prevalence.
        prevalence: share of the brain's voxels that are lesion.
        aupro: area under the per-region overlap up to a false-positive rate of .3, divided by .3: as
            auroc30, but every connected part of the lesion weighs the same, whatever its size.
        dice: overlap ``2 |A & B| / (|A| + |B|)`` of the lesion with the voxels at or above ``threshold``; NaN
            without one.
        best_dice: the highest Dice over all thresholds, an upper bound that looks at the lesion.
    """

    auroc: float
    auroc30: float
    auprc: float
    prevalence: float
    aupro: float
    dice: float
    best_dice: float


def voxel_metrics(
    score_map: NDArray[np.floating],
    lesion: NDArray[np.bool_],
    mask: NDArray[np.bool_],
    threshold: float | None = None,
) -> VoxelMetrics:
    """Compute all voxel-level figures of one patient.

    Example:
        >>> lesion = np.arange(8).reshape(2, 2, 2) > 5
        >>> figures = voxel_metrics(lesion.astype(float), lesion, np.ones_like(lesion), threshold=0.5)
        >>> figures.auroc, figures.auprc, figures.prevalence, figures.dice
        (1.0, 1.0, 0.25, 1.0)

    Args:
        score_map: ``(x, y, z)``, higher is more abnormal; only the voxels of ``mask`` are read.
        lesion: ``(x, y, z)`` bool; its voxels outside ``mask`` do not count.
        mask: ``(x, y, z)`` bool brain mask.
        threshold: for ``dice``; the level of p = .1 (``epizoo.detection.tail``), say.

    Raises:
        InputError: shapes that disagree, or NaN inside the mask.
    """
    if not score_map.shape == lesion.shape == mask.shape:
        raise InputError(
            f"score map {score_map.shape}, lesion {lesion.shape} and mask {mask.shape} must have one shape."
        )
    lesion, mask = lesion.astype(bool) & mask.astype(bool), mask.astype(bool)
    scores, truth = score_map[mask], lesion[mask]
    positives = int(truth.sum())
    if positives == 0 or positives == truth.size:
        return VoxelMetrics(*[np.nan] * 7)
    regions, n = ndimage.label(lesion, structure=NEIGHBOURS)
    region = regions[mask]
    # Every region's voxels sum to 1 / n.
    shares = np.concatenate([[0], 1 / (n * np.bincount(region)[1:])])[region]

    curve = _Curve.of(scores, truth, shares)
    return VoxelMetrics(
        auroc=_area(curve.fpr, curve.tpr),
        auroc30=_area(curve.fpr, curve.tpr, FPR_LIMIT),
        auprc=_average_precision(curve),
        prevalence=positives / truth.size,
        aupro=_area(curve.fpr, curve.pro, FPR_LIMIT),
        dice=np.nan if threshold is None else dice(scores >= threshold, truth),
        best_dice=float(np.max(2 * curve.tp / (curve.tp + curve.fp + positives))),
    )


def auroc(scores: NDArray[np.floating], truth: NDArray[np.bool_], max_fpr: float = 1.0) -> float:
    """Compute the area under the ROC curve up to ``max_fpr``, divided by ``max_fpr``.

    A perfect map has 1, a map of chance ``max_fpr / 2``.

    Example:
        >>> float(auroc(np.array([0.1, 0.9, 0.4, 0.8]), np.array([False, True, True, False])))
        0.75

    Args:
        scores: any shape.
        truth: bool, the same shape.
        max_fpr: in (0, 1].

    Returns:
        NaN where ``truth`` is all False or all True.
    """
    truth = np.asarray(truth, dtype=bool).ravel()
    if truth.all() or not truth.any():
        return float("nan")
    curve = _Curve.of(np.asarray(scores).ravel(), truth, truth / truth.sum())
    return _area(curve.fpr, curve.tpr, max_fpr)


def average_precision(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Compute the area under the precision-recall curve without interpolation.

    It is the sum over all scores of precision times the step in recall.

    Example:
        >>> scores, truth = np.array([0.1, 0.9, 0.4, 0.8]), np.array([False, True, True, False])
        >>> round(float(average_precision(scores, truth)), 3)  # (1 / 1 + 2 / 3) / 2
        0.833

    Args:
        scores: any shape.
        truth: bool, the same shape.

    Returns:
        NaN where ``truth`` is all False or all True.
    """
    truth = np.asarray(truth, dtype=bool).ravel()
    if truth.all() or not truth.any():
        return float("nan")
    return _average_precision(_Curve.of(np.asarray(scores).ravel(), truth, truth / truth.sum()))


def dice(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Compute the Dice overlap of two masks; NaN where both are empty.

    Example:
        >>> found, truth = np.array([True, True, False]), np.array([True, False, False])
        >>> round(float(dice(found, truth)), 3)  # 2 * 1 / (2 + 1)
        0.667
    """
    total = int(np.count_nonzero(found)) + int(np.count_nonzero(truth))
    return 2 * int(np.count_nonzero(found & truth)) / total if total else float("nan")


@dataclass(frozen=True)
class _Curve:
    """Counts at every distinct score, from none admitted (first entry, 0) to all."""

    tp: NDArray[np.float64]
    fp: NDArray[np.float64]
    tpr: NDArray[np.float64]
    fpr: NDArray[np.float64]
    pro: NDArray[np.float64]  # mean share of each region that is admitted

    @classmethod
    def of(
        cls, scores: NDArray[np.floating], truth: NDArray[np.bool_], shares: NDArray[np.float64]
    ) -> _Curve:
        if np.isnan(scores).any():
            raise InputError(f"{int(np.isnan(scores).sum())} scores are NaN inside the mask.")
        order = np.argsort(scores)[::-1]
        scores, truth = scores[order], truth[order]
        ends = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)  # of each group of ties
        tp = np.append(0, np.cumsum(truth)[ends]).astype(np.float64)
        fp = np.append(0, ends + 1) - tp
        pro = np.append(0, np.cumsum(shares[order])[ends])
        return cls(tp, fp, tp / tp[-1], fp / fp[-1], pro / pro[-1])


def _area(x: NDArray[np.float64], y: NDArray[np.float64], limit: float = 1.0) -> float:
    """Trapezoids under y(x) for x in [0, limit], over limit; the curve is cut by linear interpolation."""
    if limit < 1:
        stop = int(np.searchsorted(x, limit, side="right"))
        y_limit = np.interp(limit, x[stop - 1 : stop + 1], y[stop - 1 : stop + 1])
        x, y = np.append(x[:stop], limit), np.append(y[:stop], y_limit)
    return float(np.trapezoid(y, x) / limit)


def _average_precision(curve: _Curve) -> float:
    precision = curve.tp[1:] / (curve.tp[1:] + curve.fp[1:])
    return float(np.sum(np.diff(curve.tpr) * precision))
