"""What a model cannot reconstruct, for models with a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from epizoo.detection.detector import check_codes
from epizoo.detection.model_output import ModelOutput
from epizoo.detection.scorer import Scorer


class Reconstruction(ModelOutput):
    """Size of the residual at the centre of each patch (Baur et al. 2021), against the controls' there."""

    name: ClassVar[str] = "reconstruction"
    exportable: ClassVar[bool] = True
    missing: ClassVar[str] = "no decoder, so no residual; give a model with one."

    @staticmethod
    def part(model: Any) -> keras.Model | None:
        return model.decoder if isinstance(model, HasDecoder) else None

    @staticmethod
    def reader(encoder: keras.Model, part: keras.Model) -> keras.Model:
        """``patch -> patch - decoder(encoder(patch))`` at the central voxel, one number per modality."""
        patch = keras.Input(encoder.input_shape[1:], name="patch")
        borders = [(size // 2, size // 2) for size in encoder.input_shape[1:-1]]
        crop = layers.Cropping2D if len(borders) == 2 else layers.Cropping3D
        centre = layers.Flatten()(crop(borders)(patch))
        made = layers.Flatten()(crop(borders)(part(encoder(patch))))
        return keras.Model(patch, layers.Subtract(name="latent")([centre, made]))

    def score(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        codes = check_codes(codes, int(self.voxels_))
        return np.asarray(np.sqrt((codes**2).mean(2)), np.float32)

    def graph(self, state: Mapping[str, NDArray[Any]], order: NDArray[np.int64]) -> Scorer:
        return ReconstructionScorer(self, state, order)


@runtime_checkable
class HasDecoder(Protocol):
    """A model with a ``decoder``, from ``latent`` to ``patch``, or None."""

    decoder: keras.Model | None


class ReconstructionScorer(Scorer):
    """Root of the mean square of the residual."""

    def score(self, codes: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        return tf.sqrt(tf.reduce_mean(tf.square(codes), 1))
