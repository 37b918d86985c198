"""What a model cannot reconstruct, for models with a decoder."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from epizoo.detection.codes import Codes, EncoderCodes
from epizoo.detection.detector import Detector, check_latents
from tfds_epilepsy.errors import InputError


class Reconstruction(Detector):
    """Size of the residual at the centre of each patch (Baur et al. 2021), against the controls' there.

    It reads ``residual_encoder`` of a model; the controls come in by the calibration alone.
    """

    name: ClassVar[str] = "reconstruction"

    def codes(self, encoder: Any) -> Codes:
        """Of a model with ``encoder`` and ``decoder``.

        Raises:
            InputError: a model without a decoder.
        """
        if encoder is None or isinstance(encoder, Codes):
            return super().codes(encoder)
        if getattr(encoder, "decoder", None) is None:
            raise InputError(
                f"{getattr(encoder, 'name', encoder)}: no decoder, so no residual; give a model with one."
            )
        return EncoderCodes(residual_encoder(encoder.encoder, encoder.decoder))

    def fit(self, latents: NDArray[np.floating], **covariates: NDArray[np.floating]) -> Self:
        self.voxels_ = np.array(len(check_latents(latents)))
        return self

    def score(self, latents: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        latents = check_latents(latents, int(self.voxels_))
        return np.sqrt((latents**2).mean(2))


def residual_encoder(encoder: keras.Model, decoder: keras.Model) -> keras.Model:
    """The model ``patch -> patch - decoder(encoder(patch))`` at the central voxel, a feature a modality."""
    patch = keras.Input(encoder.input_shape[1:], name="patch")
    borders = [(size // 2, size // 2) for size in encoder.input_shape[1:-1]]
    crop = layers.Cropping2D if len(borders) == 2 else layers.Cropping3D
    centre = layers.Flatten()(crop(borders)(patch))
    made = layers.Flatten()(crop(borders)(decoder(encoder(patch))))
    return keras.Model(patch, layers.Subtract(name="latent")([centre, made]))
