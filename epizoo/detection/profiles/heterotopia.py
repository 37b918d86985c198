"""The profile of heterotopia: grey matter where white matter is, beside the ventricles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from epizoo.detection.profiles.profile import Profile
from tfds_epilepsy.tissue import template_priors
from tfds_epilepsy.volumes import voxel_to_world

# A box of MNI152 (mm, mirrored in x) in whose depth nothing but the lateral ventricles is fluid.
WIDE, BACK, FRONT, LOW, HIGH, DEEP = 40.0, -60.0, 40.0, -20.0, 35.0, 15.0
THIN = 2.0  # mm; fluid that is no wider is a sulcus
REACH = 16.0  # mm around them


class Heterotopia(Profile):
    """Nodules of grey matter in the white matter beside the lateral ventricles.

    A map of grey matter there, inside a periventricular mask, found 92 % of the patients at a specificity of
    92 % (Pascher et al. 2013, Epilepsia 54, doi 10.1111/epi.12054).
    """

    name: ClassVar[str] = "heterotopia"
    words = "grey matter in the white matter by the ventricle"
    weights: ClassVar[Mapping[str, float]] = {"gm": 1}
    needs = ("gm",)
    fwhm: ClassVar[float] = 4.0
    share: ClassVar[float] = 0.1

    def region(self, shape: tuple[int, ...], affine: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """Within 16 mm of the template's lateral ventricles."""
        zooms = np.linalg.norm(affine[:3, :3], axis=0)
        priors = template_priors(shape, affine)
        x, y, z = np.moveaxis(voxel_to_world(np.moveaxis(np.indices(shape), 0, -1), affine), -1, 0)
        box = (np.abs(x) < WIDE) & (y > BACK) & (y < FRONT) & (z > LOW) & (z < HIGH)
        deep = ndimage.distance_transform_edt(priors.sum(-1) > 0.5, sampling=zooms) > DEEP
        fluid = box & deep & (priors[..., 2] > 0.5)
        if thin := round(THIN / zooms.max()):
            fluid = ndimage.binary_opening(fluid, iterations=thin)
        if not fluid.any():  # no distance is one from nothing
            return np.asarray(fluid)
        return np.asarray(ndimage.distance_transform_edt(~fluid, sampling=zooms) < REACH)
