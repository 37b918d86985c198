"""What a model cannot reconstruct, for models with a decoder."""

from __future__ import annotations

from typing import ClassVar

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from epizoo.detection.detector import check_latents
from epizoo.detection.model_output import ModelOutput


class Reconstruction(ModelOutput):
    """Size of the residual at the centre of each patch (Baur et al. 2021), against the controls' there."""

    name: ClassVar[str] = "reconstruction"
    part: ClassVar[str] = "decoder"
    missing: ClassVar[str] = "no decoder, so no residual; give a model with one."

    @staticmethod
    def reader(encoder: keras.Model, part: keras.Model) -> keras.Model:
        """``patch -> patch - decoder(encoder(patch))`` at the central voxel, a feature a modality."""
        patch = keras.Input(encoder.input_shape[1:], name="patch")
        borders = [(size // 2, size // 2) for size in encoder.input_shape[1:-1]]
        crop = layers.Cropping2D if len(borders) == 2 else layers.Cropping3D
        centre = layers.Flatten()(crop(borders)(patch))
        made = layers.Flatten()(crop(borders)(part(encoder(patch))))
        return keras.Model(patch, layers.Subtract(name="latent")([centre, made]))

    def score(self, latents: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        latents = check_latents(latents, int(self.voxels_))
        return np.sqrt((latents**2).mean(2))
