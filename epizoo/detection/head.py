"""What a model itself holds to be abnormal, for models that say so."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import keras
import numpy as np
from numpy.typing import NDArray

from epizoo.detection.codes import Codes, EncoderCodes
from epizoo.detection.detector import Detector, check_latents
from tfds_epilepsy.errors import InputError


class Head(Detector):
    """The logit that a model's ``head`` makes of a code, against the controls' logits there.

    What healthy tissue of a place looks like to the head comes in by the calibration alone.
    """

    name: ClassVar[str] = "head"

    def codes(self, encoder: Any) -> Codes:
        """Of a model with ``encoder`` and ``head``.

        Raises:
            InputError: a model without a head.
        """
        if encoder is None or isinstance(encoder, Codes):
            return super().codes(encoder)
        if getattr(encoder, "head", None) is None:
            raise InputError(
                f"{getattr(encoder, 'name', encoder)}: no head that says what is abnormal; "
                "'synthetic' has one, other models need another detector."
            )
        return EncoderCodes(logit_encoder(encoder.encoder, encoder.head))

    def fit(self, latents: NDArray[np.floating], **covariates: NDArray[np.floating]) -> Self:
        self.voxels_ = np.array(len(check_latents(latents)))
        return self

    def score(self, latents: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        return check_latents(latents, int(self.voxels_)).mean(2)


def logit_encoder(encoder: keras.Model, head: keras.Model) -> keras.Model:
    """The model ``patch -> head(encoder(patch))``, one feature."""
    patch = keras.Input(encoder.input_shape[1:], name="patch")
    return keras.Model(patch, keras.layers.Identity(name="latent")(head(encoder(patch))))
