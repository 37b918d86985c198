"""What a model itself holds to be abnormal, for models that say so."""

from __future__ import annotations

from typing import ClassVar

import keras
import numpy as np
from numpy.typing import NDArray

from epizoo.detection.detector import check_latents
from epizoo.detection.model_output import ModelOutput


class Head(ModelOutput):
    """The logit that a model's ``head`` makes of a code, against the controls' logits there."""

    name: ClassVar[str] = "head"
    map_fwhm: ClassVar[float] = 6.0  # chosen on a phantom cohort of another seed
    part: ClassVar[str] = "head"
    missing: ClassVar[str] = (
        "no head that says what is abnormal; 'deviation' and 'synthetic' have one, other models need another "
        "detector."
    )

    @staticmethod
    def reader(encoder: keras.Model, part: keras.Model) -> keras.Model:
        """The model ``patch -> head(encoder(patch))``, one feature."""
        patch = keras.Input(encoder.input_shape[1:], name="patch")
        return keras.Model(patch, keras.layers.Identity(name="latent")(part(encoder(patch))))

    def score(self, latents: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        return check_latents(latents, int(self.voxels_)).mean(2)
