"""The profile of dysplasia: signal unlike the surround, and a blurred junction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from epizoo.detection.detector import MODEL
from epizoo.detection.profiles.profile import Profile
from epizoo.maps.signs import JUNCTION
from tfds_epilepsy.lesions import DIRECTIONS


class Dysplasia(Profile):
    """The signs of focal cortical dysplasia that readers are taught, and what the model finds.

    Signal that differs from its surround as ``tfds_epilepsy.lesions.DIRECTIONS`` says, and a junction of grey
    and white matter that is wider (Blümcke et al. 2011, Epilepsia 52:158-174; Colombo et al. 2009, AJNR
    31:658-664). A model that was taught sees strong changes in the form of a lesion, the sum weak ones of any
    form.
    """

    name: ClassVar[str] = "dysplasia"
    words = "signs of dysplasia"
    weights: ClassVar[Mapping[str, float]] = {**DIRECTIONS, JUNCTION: 1, MODEL: 1}
