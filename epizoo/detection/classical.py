"""The baselines that need no encoder: what voxels and tissue maps tell by themselves.

They have the interface of every other detector; each says what it reads of a subject (``codes``).
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.codes import Codes, Intensities
from epizoo.detection.detector import Detector, check_latents


class ZScore(Detector):
    """Voxel-wise z-score of smoothed intensities: the largest ``|z|`` of the modalities.

    Args:
        fwhm: smoothing of the intensities inside the brain, millimetres.

    Attributes:
        mean_, sd_: ``(v, d)`` float32, of the controls; an sd under 1/1000 of the voxels' mean sd is raised
            to it.
    """

    name: ClassVar[str] = "zscore"

    def __init__(self, fwhm: float = 6.0):
        self.fwhm = fwhm

    def codes(self, encoder: Codes | None) -> Codes:
        return Intensities(self.fwhm)

    def fit(self, latents: NDArray[np.floating]) -> Self:
        latents = check_latents(latents)
        n = latents.shape[1]
        self.mean_ = latents.mean(1)
        self.sd_ = latents.std(1, ddof=min(1, n - 1)) * np.float32(np.sqrt(1 + 1 / n))
        self.sd_ = np.maximum(self.sd_, SMALLEST_SD)
        return self

    def score(self, latents: NDArray[np.floating]) -> NDArray[np.float32]:
        latents = check_latents(latents, len(self.mean_))
        return (np.abs(latents - self.mean_[:, None]) / self.sd_[:, None]).max(2)


SMALLEST_SD = np.float32(1e-3)  # of intensities in [0, 1]
