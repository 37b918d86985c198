"""Gaussian smoothing that stays inside the brain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

if TYPE_CHECKING:
    import tensorflow as tf

FWHM_TO_SIGMA = 1 / np.sqrt(8 * np.log(2))


def smooth(
    volume: NDArray[np.floating[Any]], mask: NDArray[np.bool_], affine: NDArray[np.floating[Any]], fwhm: float
) -> NDArray[np.float32]:
    """Gaussian smoothing that takes nothing from outside the mask (normalised convolution); 0 outside it.

    Args:
        volume: ``(x, y, z)`` or, each channel by itself, ``(x, y, z, c)``.
        mask: ``(x, y, z)`` bool.
        affine: ``(4, 4)``, gives the voxel size.
        fwhm: full width at half maximum, millimetres.
    """
    matrices = gaussian_matrices(mask.shape, affine, fwhm)

    def blur(values: NDArray[np.float32]) -> NDArray[np.float32]:
        for matrix in reversed(matrices):
            values = np.tensordot(matrix, values, (1, 2))  # the last axis, which becomes the first
        return values

    weights = np.maximum(blur(mask.astype(np.float32)), 1e-6)
    smoothed = np.zeros(volume.shape, np.float32)
    for c in np.ndindex(volume.shape[3:]):
        values = np.where(mask, volume[(..., *c)], 0).astype(np.float32)
        smoothed[(..., *c)] = np.where(mask, blur(values) / weights, 0)
    return smoothed


def smooth_in_graph(
    volume: tf.Tensor, mask: tf.Tensor, affine: NDArray[np.floating[Any]], fwhm: float
) -> tf.Tensor:
    """``smooth`` in TensorFlow operations: ``(x, y, z)`` or ``(x, y, z, c)`` inside a mask of known shape."""
    import tensorflow as tf

    if len(volume.shape) == 3:
        return smooth_in_graph(volume[..., tf.newaxis], mask, affine, fwhm)[..., 0]
    inside = tf.cast(mask, tf.float32)[..., tf.newaxis]
    blurred = tf.concat([volume * inside, inside], -1)
    for matrix in reversed(gaussian_matrices(mask.shape, affine, fwhm)):
        blurred = tf.tensordot(matrix, blurred, [[1], [2]])  # the last of x, y, z becomes the first
    return tf.where(inside > 0, blurred[..., :-1] / tf.maximum(blurred[..., -1:], 1e-6), 0.0)


def gaussian_matrices(
    shape: Sequence[int], affine: NDArray[np.floating[Any]], fwhm: float
) -> list[NDArray[np.float32]]:
    """Gaussian smoothing along each axis as a matrix ``(n, n)``, zeros beyond the ends.

    Three products are quicker than convolutions where the Gaussian is wide, and the same numbers.

    Args:
        shape: ``(x, y, z)``.
        affine: ``(4, 4)``, gives the voxel size.
        fwhm: full width at half maximum, millimetres.
    """
    sigma = fwhm * FWHM_TO_SIGMA / np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    return [
        ndimage.gaussian_filter1d(np.eye(n, dtype=np.float32), s, axis=0, mode="constant")
        for n, s in zip(shape, sigma, strict=True)
    ]
