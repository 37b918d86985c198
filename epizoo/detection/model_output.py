"""Detectors that read what a part of a model makes of a voxel: the controls come in by calibration alone."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Self

import keras
import numpy as np
from numpy.typing import NDArray

from epizoo.detection.codes import Codes, EncoderCodes
from epizoo.detection.detector import Detector, check_latents
from tfds_epilepsy.errors import InputError


class ModelOutput(Detector):
    """Base: sub-classes say which part of the model, what is read of it, and the score of that.

    ``part``: attribute of a ``PatchModel``, beside its encoder.
    ``missing``: what is told of a model without it.
    """

    part: ClassVar[str]
    missing: ClassVar[str]

    @staticmethod
    @abstractmethod
    def reader(encoder: keras.Model, part: keras.Model) -> keras.Model:
        """The model from ``patch`` to what is read of it."""

    def codes(self, encoder: Any) -> Codes:
        """Of a model with ``encoder`` and the part.

        Raises:
            InputError: a model without the part.
        """
        if encoder is None or isinstance(encoder, Codes):
            return super().codes(encoder)
        part = getattr(encoder, self.part, None)
        if part is None:
            raise InputError(f"{getattr(encoder, 'name', encoder)}: {self.missing}")
        return EncoderCodes(self.reader(encoder.encoder, part), encoder)

    def fit(self, latents: NDArray[np.floating], **covariates: NDArray[np.floating]) -> Self:
        self.voxels_ = np.array(len(check_latents(latents)))
        return self
