"""The profile of lost tissue: fluid where healthy people have brain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from epizoo.detection.profiles.profile import Profile


class Loss(Profile):
    """Fluid in the place of tissue: focal atrophy, a cleft, a wide sulcus or ventricle.

    The signs of dysplasia do not show it: fluid where tissue was even lowers FLAIR. More fluid than in
    healthy people is what voxel-based morphometry finds of lost tissue (Ashburner & Friston 2000,
    NeuroImage 11:805).
    """

    name: ClassVar[str] = "loss"
    words = "fluid in the place of tissue"
    weights: ClassVar[Mapping[str, float]] = {"csf": 1}
    needs = ("csf",)
    fwhm: ClassVar[float] = 6.0
    share: ClassVar[float] = 0.2
