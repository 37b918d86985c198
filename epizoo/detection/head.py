"""What a model itself holds to be abnormal, for models that say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from epizoo.detection.detector import check_codes
from epizoo.detection.model_output import ModelOutput
from epizoo.detection.scorer import Scorer


class Head(ModelOutput):
    """The logit that a model's ``head`` makes of a code, against the controls' logits there."""

    name: ClassVar[str] = "head"
    exportable: ClassVar[bool] = True
    map_fwhm: ClassVar[float] = 6.0  # chosen on a phantom cohort of another seed
    missing: ClassVar[str] = (
        "no head that says what is abnormal; 'deviation' and 'synthetic' have one, other models need another "
        "detector."
    )

    @staticmethod
    def part(model: Any) -> keras.Model | None:
        return model.head if isinstance(model, HasHead) else None

    @staticmethod
    def reader(encoder: keras.Model, part: keras.Model) -> keras.Model:
        """The model ``patch -> head(encoder(patch))``, one number."""
        patch = keras.Input(encoder.input_shape[1:], name="patch")
        return keras.Model(patch, keras.layers.Identity(name="latent")(part(encoder(patch))))

    def score(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        return np.asarray(check_codes(codes, int(self.voxels_)).mean(2), np.float32)

    def graph(self, state: Mapping[str, NDArray[Any]], order: NDArray[np.int64]) -> Scorer:
        return HeadScorer(self, state, order)


@runtime_checkable
class HasHead(Protocol):
    """A model with a ``head``, from ``latent`` to a logit, or None."""

    head: keras.Model | None


class HeadScorer(Scorer):
    """The model's own logit."""

    def score(self, codes: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        return codes[:, 0]
