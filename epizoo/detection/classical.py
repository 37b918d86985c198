"""The baselines that need no encoder: what voxels and tissue maps tell by themselves.

They have the interface of every other detector; each names the view that it reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.adjusted import Adjusted
from epizoo.detection.detector import Detector, check_codes
from epizoo.detection.kernels import compiled, over_voxels
from epizoo.detection.scorer import Scorer
from tfds_epilepsy.errors import InputError

if TYPE_CHECKING:
    import tensorflow as tf


class ZScore(Detector):
    """Voxel-wise z-score of smoothed intensities: the largest ``|z|`` of the modalities.

    Args:
        fwhm: smoothing of the intensities inside the brain, millimetres.

    Attributes:
        mean_, sd_: ``(v, d)`` float32, of the controls; an sd under 1e-3 is raised to it.
    """

    name: ClassVar[str] = "zscore"
    views: ClassVar[Sequence[str]] = ("image",)
    reads_model: ClassVar[bool] = False
    exportable: ClassVar[bool] = True

    def __init__(self, fwhm: float = 6.0):
        self.fwhm = fwhm

    def view_options(self) -> Mapping[str, Mapping[str, Any]]:
        return {"image": {"fwhm": self.fwhm}}

    def fit(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> Self:
        codes = check_codes(codes)
        (self.mean_,), (self.sd_,) = self.moments(codes, np.full(codes.shape[1], -1), 1)
        return self

    def moments(
        self, codes: NDArray[np.float32], folds: NDArray[np.integer], count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What codes are held against, of all controls but those of each fold: see ``moments_without``."""
        return moments_without(codes, folds, count)

    def z(self, codes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Codes ``(v, m, d)`` in standard deviations from the controls' mean."""
        codes = check_codes(codes, *self.mean_.shape)
        return np.asarray((codes - self.mean_[:, None]) / self.sd_[:, None])

    def score(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        return np.asarray(np.abs(self.z(codes)).max(2), np.float32)

    def cross_scores(
        self, codes: NDArray[np.floating], folds: NDArray[np.integer], **covariates: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        codes = check_codes(codes)
        scores = np.empty(codes.shape[:2], np.float32)
        for held_out, without in self.without_folds(codes, folds):
            scores[:, held_out] = without.score(codes[:, held_out])
        return scores

    def without_folds(
        self, codes: NDArray[np.float32], folds: NDArray[np.integer]
    ) -> Iterator[tuple[NDArray[np.bool_], Self]]:
        """Which controls are of each fold, and the detector that was fitted without them.

        The sums of the others are those of all less those of the fold.
        """
        names, folds = np.unique(folds, return_inverse=True)
        without = self.unfitted()
        for fold, moments in enumerate(zip(*self.moments(codes, folds, len(names)), strict=True)):
            without.mean_, without.sd_ = moments
            yield folds == fold, without

    def graph(self, state: Mapping[str, NDArray[Any]], order: NDArray[np.int64]) -> Scorer:
        return ZScoreScorer(self, state, order)


class FlairThreshold(Detector):
    """The FLAIR intensity itself, smoothed: what a threshold on FLAIR would show.

    It learns nothing; its map is calibrated with one mean and one deviation for the whole brain, so that the
    order of the voxels is that of the intensities.

    Args:
        fwhm: smoothing of the intensities inside the brain, millimetres.
        modality: which of the image's last axis is FLAIR.
    """

    name: ClassVar[str] = "flair"
    views: ClassVar[Sequence[str]] = ("image",)
    reads_model: ClassVar[bool] = False
    exportable: ClassVar[bool] = True
    calibration = "brain"

    def __init__(self, fwhm: float = 3.0, modality: int = 1):
        self.fwhm, self.modality = fwhm, modality

    def view_options(self) -> Mapping[str, Mapping[str, Any]]:
        return {"image": {"fwhm": self.fwhm}}

    def fit(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> Self:
        self.voxels_ = np.array(len(self._with_flair(codes)))
        return self

    def score(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        return self._with_flair(codes, int(self.voxels_))[..., self.modality].copy()

    def graph(self, state: Mapping[str, NDArray[Any]], order: NDArray[np.int64]) -> Scorer:
        return FlairScorer(self, state, order)

    def _with_flair(self, codes: NDArray[np.floating], voxels: int | None = None) -> NDArray[np.float32]:
        codes = check_codes(codes, voxels)
        if codes.shape[2] <= self.modality:
            raise InputError(f"modality {self.modality} of {codes.shape[2]}: there is no FLAIR to threshold.")
        return codes


class JunctionExtension(Adjusted):
    """Junction and extension maps with a one-class SVM at every voxel.

    El Azami et al. 2016, PLoS ONE 11(9):e0161498.
    Both maps (Huppertz et al. 2005) are scaled by their sd over the controls of the voxel first.

    Args:
        nu: of the one-class SVM.
    """

    name: ClassVar[str] = "junction_extension"
    views: ClassVar[Sequence[str]] = ("junction_extension",)
    reads_model: ClassVar[bool] = False

    def __init__(self, nu: float = 0.03):
        self.nu = nu
        super().__init__("ocsvm", {"nu": nu}, scale="standard")


class SPM(Adjusted):
    """One subject against the controls by a mass-univariate t-test of smoothed grey matter, two-sided.

    The general linear model of voxel-based morphometry (Ashburner & Friston 2000), age and sex regressed out;
    ``|t|`` with the variance of a single new observation (Crawford & Howell 1998).

    Args:
        fwhm: smoothing of the grey-matter map, millimetres.
        covariates: of ``age`` and ``sex``.
    """

    name: ClassVar[str] = "spm"
    views: ClassVar[Sequence[str]] = ("tissue",)
    reads_model: ClassVar[bool] = False

    def __init__(self, fwhm: float = 8.0, covariates: Sequence[str] = ("age", "sex")):
        self.fwhm = fwhm
        super().__init__("zscore", {"fwhm": fwhm}, covariates=covariates)

    def view_options(self) -> Mapping[str, Mapping[str, Any]]:
        return {"tissue": {"tissues": ["gm"], "fwhm": self.fwhm}}


class ZScoreScorer(Scorer):
    """The largest ``|z|`` of the modalities."""

    def __init__(self, detector: ZScore, state: Mapping[str, NDArray[Any]], order: NDArray[np.int64]):
        super().__init__(detector, state, order)
        self.mean, self.sd = (self.keep(state[key][order]) for key in ("mean_", "sd_"))

    def score(self, codes: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        import tensorflow as tf

        return tf.reduce_max(tf.abs(self.z(codes, start, stop)), 1)

    def z(self, codes: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        """Codes ``(v, d)`` in standard deviations from the controls' mean."""
        return (codes - self.mean[start:stop]) / self.sd[start:stop]


class FlairScorer(Scorer):
    """One modality as it is."""

    def __init__(self, detector: FlairThreshold, state: Mapping[str, NDArray[Any]], order: NDArray[np.int64]):
        super().__init__(detector, state, order)
        self.modality = detector.modality

    def score(self, codes: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        return codes[:, self.modality]


SMALLEST_SD = 1e-3  # of intensities and probabilities in [0, 1]


def moments_without(
    codes: NDArray[np.float32], folds: NDArray[np.integer], count: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation, with the doubt about the mean, of all controls but those of each fold.

    Args:
        codes: ``(v, n, d)``.
        folds: ``(n,)``; a control with another number than ``0 ... count - 1`` is in none.
        count: of the folds.

    Returns:
        ``(count, v, d)`` float32 each.
    """
    voxels, _, d = codes.shape
    means, sds = (np.empty((count, voxels, d), np.float32) for _ in range(2))
    arguments = (codes, np.asarray(folds, np.int64), means, sds)
    over_voxels(lambda start, stop: _moments_without(*arguments, start, stop), voxels)
    return means, sds


@compiled
def _moments_without(
    codes: NDArray[Any],
    folds: NDArray[Any],
    means: NDArray[Any],
    sds: NDArray[Any],
    start: int,
    stop: int,
) -> None:
    count, (_, n, d) = len(means), codes.shape
    sums, squares = np.empty((count + 1, d)), np.empty((count + 1, d))  # the last row: of all
    held_out = np.zeros(count)
    for i in range(n):
        if 0 <= folds[i] < count:
            held_out[folds[i]] += 1
    mean = np.empty(d)
    for voxel in range(start, stop):
        mean[:] = 0
        for i in range(n):
            for k in range(d):
                mean[k] += np.float64(codes[voxel, i, k])
        mean /= n
        sums[:], squares[:] = 0, 0
        for i in range(n):
            fold = folds[i]
            for k in range(d):
                off = codes[voxel, i, k] - mean[k]
                sums[count, k] += off
                squares[count, k] += off * off
                if 0 <= fold < count:
                    sums[fold, k] += off
                    squares[fold, k] += off * off
        for fold in range(count):
            left = n - held_out[fold]
            for k in range(d):
                shift = (sums[count, k] - sums[fold, k]) / left
                square = squares[count, k] - squares[fold, k] - left * shift * shift
                variance = max(square, 0.0) / max(left - 1, 1) * (1 + 1 / left)
                means[fold, voxel, k] = mean[k] + shift
                sds[fold, voxel, k] = max(math.sqrt(variance), SMALLEST_SD)
