"""The view ``signs``: maps of the signs of a lesion that readers look for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from epizoo.maps.junction import junction_width, junction_width_in_graph, tissue_weights
from epizoo.maps.smoothing import smooth, smooth_in_graph
from epizoo.maps.view import BRIGHTNESS, Graph, View
from tfds_epilepsy.lesions import DIRECTIONS
from tfds_epilepsy.volumes import Subject

if TYPE_CHECKING:
    import tensorflow as tf

SURROUND_FWHM = 40.0  # millimetres; what is as wide is a bias field or the anatomy of a lobe
JUNCTION = "junction"  # name of the last map, beside those of the modalities


class Signs(View):
    """Each modality less its mean over the surround, then the log of the width of the junction in the first.

    These are the signs of focal cortical dysplasia that readers are taught (Blümcke et al. 2011, Epilepsia
    52:158-174): signal that differs from its surround, and a blurred junction of grey and white matter.
    Lesions change the signal as ``tfds_epilepsy.lesions.DIRECTIONS`` says, and widen the junction.
    """

    name: ClassVar[str] = "signs"
    words = BRIGHTNESS

    def __call__(self, subject: Subject) -> NDArray[np.float32]:
        """``(x, y, z, m + 1)``, see ``sign_maps``."""
        return sign_maps(subject.image, subject.brain_mask, subject.affine)

    @property
    def names(self) -> tuple[str, ...]:
        return () if self.modalities is None else (*self.modalities, JUNCTION)

    @property
    def directions(self) -> tuple[int, ...]:
        if self.modalities is None:
            return ()
        return (*(DIRECTIONS.get(name, 0) for name in self.modalities), 1)  # a junction gets wider

    @property
    def signs(self) -> tuple[str, ...]:
        return (*super().signs[:-1], "blurred junction") if self.names else ()

    def graph(self, shape: tuple[int, ...], affine: NDArray[np.floating[Any]]) -> Graph:
        import tensorflow as tf

        weights = tf.Variable(tissue_weights(shape, tuple(np.ravel(affine))), trainable=False)
        return Graph(lambda volume, mask: sign_maps_in_graph(volume, mask, affine, weights), [weights])


def sign_maps(
    image: NDArray[np.floating[Any]], mask: NDArray[np.bool_], affine: NDArray[np.floating[Any]]
) -> NDArray[np.float32]:
    """Each modality less its mean over the surround; the log of the width of the junction in the first.

    Args:
        image: ``(x, y, z, m)``.
        mask: ``(x, y, z)``, the brain.
        affine: ``(4, 4)``, voxel to world, mm.

    Returns:
        ``(x, y, z, m + 1)``; 0 outside the mask.
    """
    relative = np.where(mask[..., None], image - smooth(image, mask, affine, SURROUND_FWHM), 0)
    junction = junction_width(image[..., 0], mask, affine)
    return np.concatenate([relative, junction[..., None]], -1, dtype=np.float32)


def sign_maps_in_graph(
    volume: tf.Tensor, mask: tf.Tensor, affine: NDArray[np.floating[Any]], weights: tf.Tensor
) -> tf.Tensor:
    """``sign_maps`` in TensorFlow operations.

    Args:
        volume, mask, affine: of the subject.
        weights: ``junction.tissue_weights`` of the grid.
    """
    import tensorflow as tf

    surround = smooth_in_graph(volume, mask, affine, SURROUND_FWHM)
    relative = tf.where(mask[..., tf.newaxis], volume - surround, 0.0)
    junction = junction_width_in_graph(volume[..., 0], mask, affine, weights)
    return tf.concat([relative, junction[..., tf.newaxis]], -1)
