"""The baselines that need no encoder: what voxels and tissue maps tell by themselves.

They have the interface of every other detector; each names the view that it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.adjusted import Adjusted
from epizoo.detection.detector import Detector, check_codes
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

    def view_options(self) -> dict[str, Any]:
        return {"fwhm": self.fwhm}

    def fit(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> Self:
        codes = check_codes(codes)
        n = codes.shape[1]
        self.mean_ = codes.mean(1)
        sd = codes.std(1, ddof=min(1, n - 1)) * np.sqrt(1 + 1 / n)
        self.sd_ = np.maximum(sd, SMALLEST_SD).astype(np.float32)
        return self

    def score(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        codes = check_codes(codes, *self.mean_.shape)
        return np.asarray((np.abs(codes - self.mean_[:, None]) / self.sd_[:, None]).max(2), np.float32)

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

    def view_options(self) -> dict[str, Any]:
        return {"fwhm": self.fwhm}

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

    def view_options(self) -> dict[str, Any]:
        return {"tissues": ["gm"], "fwhm": self.fwhm}


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
