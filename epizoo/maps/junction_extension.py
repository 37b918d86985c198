"""The view ``junction_extension``: the junction and extension maps of Huppertz et al. 2005."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from epizoo.maps.smoothing import smooth
from epizoo.maps.tissue import tissue_probabilities
from epizoo.maps.view import View
from tfds_epilepsy.volumes import Subject

CUBE_MM = 5.0  # of the junction map
EXTENSION_FWHM = 6.0  # millimetres


class JunctionExtension(View):
    """Junction and extension ``(x, y, z, 2)`` of a subject, from its first modality, T1.

    Junction: the share of voxels within 5 mm cubes whose T1 lies between grey and white matter (from half an
    sd above the mean of grey to half an sd under that of white): high where the border is blurred.
    Extension: grey matter smoothed over 6 mm: high where grey matter reaches into white.
    Huppertz et al. 2005, Epilepsy Res 67:35-50.
    """

    name: ClassVar[str] = "junction_extension"

    def __call__(self, subject: Subject) -> NDArray[np.float32]:
        tissue = tissue_probabilities(subject)
        t1, mask = subject.image[..., 0], subject.brain_mask
        grey, white = (_mean_and_sd(t1[mask], tissue[mask][:, t]) for t in (0, 1))
        between = (t1 > grey[0] + grey[1] / 2) & (t1 < white[0] - white[1] / 2) & mask
        size = np.maximum(1, np.round(CUBE_MM / np.linalg.norm(subject.affine[:3, :3], axis=0))).astype(int)
        junction = ndimage.uniform_filter(between.astype(np.float32), size, mode="constant")
        extension = smooth(tissue[..., 0], mask, subject.affine, EXTENSION_FWHM)
        return np.stack([np.where(mask, junction, 0), extension], -1)

    @property
    def names(self) -> tuple[str, ...]:
        return ("junction", "extension")

    @property
    def directions(self) -> tuple[int, ...]:
        return (1, 1)


def _mean_and_sd(
    values: NDArray[np.floating[Any]], weights: NDArray[np.floating[Any]]
) -> tuple[float, float]:
    mean = np.average(values, weights=weights)
    return float(mean), float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
