"""The baselines that need no encoder: what voxels and tissue maps tell by themselves.

They have the interface of every other detector; each says what it reads of a subject (``codes``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from epizoo.detection.adjusted import Adjusted
from epizoo.detection.codes import Codes, Intensities
from epizoo.detection.detector import Detector, check_latents
from epizoo.maps.smoothing import smooth
from epizoo.maps.tissue import tissue_probabilities
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import Subject


class ZScore(Detector):
    """Voxel-wise z-score of smoothed intensities: the largest ``|z|`` of the modalities.

    Args:
        fwhm: smoothing of the intensities inside the brain, millimetres.

    Attributes:
        mean_, sd_: ``(v, d)`` float32, of the controls; an sd under 1e-3 is raised to it.
    """

    name: ClassVar[str] = "zscore"
    reads: ClassVar[frozenset[str]] = frozenset({"image"})

    def __init__(self, fwhm: float = 6.0):
        self.fwhm = fwhm

    def codes(self, encoder: Any) -> Codes:
        return Intensities(self.fwhm)

    def fit(self, latents: NDArray[np.floating], **covariates: NDArray[np.floating]) -> Self:
        latents = check_latents(latents)
        n = latents.shape[1]
        self.mean_ = latents.mean(1)
        sd = latents.std(1, ddof=min(1, n - 1)) * np.sqrt(1 + 1 / n)
        self.sd_ = np.maximum(sd, SMALLEST_SD).astype(np.float32)
        return self

    def score(self, latents: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        latents = check_latents(latents, len(self.mean_))
        return (np.abs(latents - self.mean_[:, None]) / self.sd_[:, None]).max(2)


class FlairThreshold(Detector):
    """The FLAIR intensity itself, smoothed: what a threshold on FLAIR would show.

    It learns nothing; its map is calibrated with one mean and one deviation for the whole brain, so that the
    order of the voxels is that of the intensities.

    Args:
        fwhm: smoothing of the intensities inside the brain, millimetres.
        modality: which of the image's last axis is FLAIR.
    """

    name: ClassVar[str] = "flair"
    reads: ClassVar[frozenset[str]] = frozenset({"image"})
    calibration = "brain"

    def __init__(self, fwhm: float = 3.0, modality: int = 1):
        self.fwhm, self.modality = fwhm, modality

    def codes(self, encoder: Any) -> Codes:
        return Intensities(self.fwhm)

    def fit(self, latents: NDArray[np.floating], **covariates: NDArray[np.floating]) -> Self:
        latents = check_latents(latents)
        if latents.shape[2] <= self.modality:
            raise InputError(
                f"modality {self.modality} of {latents.shape[2]}: there is no FLAIR to threshold."
            )
        self.voxels_ = np.array(len(latents))
        return self

    def score(self, latents: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        return check_latents(latents, int(self.voxels_))[..., self.modality].copy()


class JunctionExtension(Adjusted):
    """Junction and extension maps with a one-class SVM at every voxel.

    El Azami et al. 2016, PLoS ONE 11(9):e0161498.
    Both maps (Huppertz et al. 2005) are scaled by their sd over the controls of the voxel first.

    Args:
        nu: of the one-class SVM.
    """

    name: ClassVar[str] = "junction_extension"
    reads: ClassVar[frozenset[str]] = frozenset({"image"})

    def __init__(self, nu: float = 0.03):
        self.nu = nu
        super().__init__("ocsvm", {"nu": nu}, scale="standard")

    def codes(self, encoder: Any) -> Codes:
        return JunctionExtensionMaps()


class SPM(Adjusted):
    """One subject against the controls by a mass-univariate t-test of smoothed grey matter, two-sided.

    The general linear model of voxel-based morphometry (Ashburner & Friston 2000), age and sex regressed out;
    ``|t|`` with the variance of a single new observation (Crawford & Howell 1998).

    Args:
        fwhm: smoothing of the grey-matter map, millimetres.
        covariates: of ``age`` and ``sex``.
    """

    name: ClassVar[str] = "spm"
    reads: ClassVar[frozenset[str]] = frozenset({"image"})

    def __init__(self, fwhm: float = 8.0, covariates: Sequence[str] = ("age", "sex")):
        self.fwhm = fwhm
        super().__init__("zscore", {"fwhm": fwhm}, covariates=covariates)

    def codes(self, encoder: Any) -> Codes:
        return GreyMatter(self.fwhm)


class JunctionExtensionMaps(Codes):
    """Junction and extension ``(x, y, z, 2)`` of a subject, from its first modality, T1.

    Junction: the share of voxels within 5 mm cubes whose T1 lies between grey and white matter (from half an
    sd above the mean of grey to half an sd under that of white): high where the border is blurred.
    Extension: grey matter smoothed over 6 mm: high where grey matter reaches into white.
    """

    def volume(self, subject: Subject) -> NDArray[np.float32]:
        tissue = tissue_probabilities(subject)
        t1, mask = subject.image[..., 0], subject.brain_mask
        grey, white = (_mean_and_sd(t1[mask], tissue[mask][:, t]) for t in (0, 1))
        between = (t1 > grey[0] + grey[1] / 2) & (t1 < white[0] - white[1] / 2) & mask
        size = np.maximum(1, np.round(5 / np.linalg.norm(subject.affine[:3, :3], axis=0))).astype(int)
        junction = ndimage.uniform_filter(between.astype(np.float32), size, mode="constant")
        extension = smooth(tissue[..., 0], mask, subject.affine, 6.0)
        return np.stack([np.where(mask, junction, 0), extension], -1)


class GreyMatter(Codes):
    """Smoothed grey-matter probability ``(x, y, z, 1)``.

    Args:
        fwhm: millimetres.
    """

    def __init__(self, fwhm: float):
        self.fwhm = fwhm

    def volume(self, subject: Subject) -> NDArray[np.float32]:
        grey = tissue_probabilities(subject)[..., 0]
        return smooth(grey, subject.brain_mask, subject.affine, self.fwhm)[..., None]


SMALLEST_SD = 1e-3  # of intensities and probabilities in [0, 1]


def _mean_and_sd(values: NDArray[np.floating], weights: NDArray[np.floating]) -> tuple[float, float]:
    mean = np.average(values, weights=weights)
    return float(mean), float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
