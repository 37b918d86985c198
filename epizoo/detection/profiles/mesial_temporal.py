"""The profile of mesial temporal sclerosis: a hippocampus that is small and bright, unlike the other."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.profiles.profile import Profile

# Head to tail of the right hippocampus, mm of MNI152, and how far around it is looked for.
AXIS = ((25, -9, -21), (27, -14, -18), (29, -20, -15), (29, -26, -11.5), (28, -32, -8), (25, -37, -4))
REACH = 12.0


class MesialTemporal(Profile):
    """Brighter FLAIR, darker T1w and fluid, averaged over the hippocampus, with the difference of the sides.

    Its volume is lower by 1.7 to 1.9 standard deviations in patients (Whelan et al. 2018, Brain 141:391), and
    its FLAIR signal, with the difference of the sides, tells them from healthy people with a sensitivity of
    97 % and a specificity of 95 % (Huppertz et al. 2011, Epilepsy Res 97:146).
    """

    name: ClassVar[str] = "mesial_temporal"
    words = "signs of hippocampal sclerosis"
    weights: ClassVar[Mapping[str, float]] = {"FLAIR": 1, "T2w": 1, "T1w": -1, "csf": 1}
    needs = ("csf",)
    fwhm: ClassVar[float] = 10.0
    share: ClassVar[float] = 0.2
    mirrored: ClassVar[bool] = True

    def region(self, shape: tuple[int, ...], affine: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """Within 12 mm of the axis of either hippocampus."""
        places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
        places[..., 0] = np.abs(places[..., 0])
        return np.asarray(_distance(places, np.array(AXIS)) < REACH)


def _distance(places: NDArray[np.floating], axis: NDArray[np.floating]) -> NDArray[np.floating]:
    """Of places ``(..., 3)`` from a polyline ``(n, 3)``."""
    nearest = np.full(places.shape[:-1], np.inf)
    for start, end in itertools.pairwise(axis):
        way = end - start
        along = np.clip((places - start) @ way / (way @ way), 0, 1)
        nearest = np.minimum(nearest, np.linalg.norm(places - start - along[..., None] * way, axis=-1))
    return nearest
