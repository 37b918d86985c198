"""Detectors that read what a part of a model makes of a voxel: the controls come in by calibration alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.codes import Codes
from epizoo.detection.detector import Detector, check_codes
from tfds_epilepsy.errors import InputError

if TYPE_CHECKING:
    import keras


class ModelOutput(Detector):
    """Base: sub-classes say which part of the model, what is read of it, and the score of that.

    ``missing``: what is told of a model without the part.
    """

    missing: ClassVar[str]

    @staticmethod
    @abstractmethod
    def part(model: Any) -> keras.Model | None:
        """The part of a model, beside its encoder; None where it has none."""

    @staticmethod
    @abstractmethod
    def reader(encoder: keras.Model, part: keras.Model) -> keras.Model:
        """The model from ``patch`` to what is read of it."""

    def codes(self, model: Any, modalities: Sequence[str] | None = None) -> Codes:
        if model is None:
            raise InputError(f"detector {self.name!r} reads a model; without one, take another detector.")
        return super().codes(model, modalities)

    def read_of(self, model: Any) -> keras.Model:
        part = self.part(model)
        if part is None:
            raise InputError(f"{model.name}: {self.missing}")
        return self.reader(model.encoder, part)

    def fit(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> Self:
        self.voxels_ = np.array(len(check_codes(codes)))
        return self
