"""The view ``image``: the scan's own intensities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from epizoo.maps.smoothing import smooth, smooth_in_graph
from epizoo.maps.view import BRIGHTNESS, Graph, View
from tfds_epilepsy.lesions import DIRECTIONS
from tfds_epilepsy.volumes import Subject

if TYPE_CHECKING:
    import tensorflow as tf


class Image(View):
    """The intensities of all modalities, smoothed inside the brain.

    Args:
        modalities: see :class:`View`.
        fwhm: of the Gaussian, millimetres; 0 leaves the intensities as they are.
    """

    name: ClassVar[str] = "image"
    words = BRIGHTNESS

    def __init__(self, modalities: Sequence[str] | None = None, fwhm: float = 0.0):
        super().__init__(modalities)
        self.fwhm = fwhm

    def __call__(self, subject: Subject) -> NDArray[np.float32]:
        """``(x, y, z, m)``; without smoothing the subject's image itself."""
        if not self.fwhm:
            return subject.image
        return smooth(subject.image, subject.brain_mask, subject.affine, self.fwhm)

    @property
    def names(self) -> tuple[str, ...]:
        return self.modalities or ()

    @property
    def directions(self) -> tuple[int, ...]:
        return tuple(DIRECTIONS.get(name, 0) for name in self.names)

    @property
    def about(self) -> str:
        return ""

    @property
    def limits(self) -> tuple[float, float]:
        return (0.0, 1.0)

    @property
    def whole_brain(self) -> bool:
        return self.fwhm > 0

    def seen(self, subject: Subject) -> Subject:
        return super().seen(subject) if self.fwhm else subject

    def graph(self, shape: tuple[int, ...], affine: NDArray[np.floating[Any]]) -> Graph:
        def maps(volume: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
            return smooth_in_graph(volume, mask, affine, self.fwhm) if self.fwhm else volume

        return Graph(maps)
