"""Gaussian smoothing that stays inside the brain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numba
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
    smoothed = np.zeros(volume.shape, np.float32)
    if not mask.any():
        return smoothed
    box = ndimage.find_objects(mask.astype(np.uint8))[0]  # beyond it are zeros, which add nothing
    volume, mask, inside = volume[box], mask[box], smoothed[box]
    x, y, z = (_taps(sigma) for sigma in _sigmas(affine, fwhm))
    passed, blurred = (np.empty(mask.shape, np.float32) for _ in range(2))

    def blur(values: NDArray[np.float32]) -> NDArray[np.float32]:
        _along_rows(values, z, blurred)
        _along_planes(blurred, y, passed)
        _along_planes(passed.reshape(1, len(passed), -1), x, blurred.reshape(1, len(blurred), -1))
        return blurred

    weights = np.maximum(blur(mask.astype(np.float32)), 1e-6)
    for c in np.ndindex(volume.shape[3:]):
        values = np.where(mask, volume[(..., *c)], 0).astype(np.float32)
        inside[(..., *c)] = np.where(mask, blur(values) / weights, 0)
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

    Args:
        shape: ``(x, y, z)``.
        affine: ``(4, 4)``, gives the voxel size.
        fwhm: full width at half maximum, millimetres.
    """
    return [
        ndimage.gaussian_filter1d(np.eye(n, dtype=np.float32), sigma, axis=0, mode="constant")
        for n, sigma in zip(shape, _sigmas(affine, fwhm), strict=True)
    ]


def _sigmas(affine: NDArray[np.floating[Any]], fwhm: float) -> NDArray[np.float64]:
    """Standard deviation of a Gaussian along each axis, voxels."""
    sigmas: NDArray[np.float64] = fwhm * FWHM_TO_SIGMA / np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    return sigmas


def _taps(sigma: float) -> NDArray[np.float32]:
    """The weights of a Gaussian, out to four standard deviations as in scipy."""
    impulse = np.zeros(2 * int(4 * sigma + 0.5) + 1, np.float32)
    impulse[len(impulse) // 2] = 1
    taps: NDArray[np.float32] = ndimage.gaussian_filter1d(impulse, sigma, mode="constant")
    return taps


# One thread each, in loops of fixed order. Matrix products would be on several threads, which cost more than
# they bring for volumes of this size, and very much more on a machine that is busy.
_compiled = numba.njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy", boundscheck=False)


@_compiled
def _along_planes(volume: NDArray[np.float32], taps: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Convolve ``(a, n, b)`` along its second axis, zeros beyond the ends."""
    blocks, n, width = volume.shape
    reach = len(taps) // 2
    for block in range(blocks):
        for j in range(n):
            row = out[block, j]
            row[:] = 0
            t, stop = max(0, reach - j), min(len(taps), n + reach - j)
            while t + 4 <= stop:  # four at a time, so that the sum is read and written a quarter as often
                i = j + t - reach
                first, second = volume[block, i], volume[block, i + 1]
                third, fourth = volume[block, i + 2], volume[block, i + 3]
                _add_four(row, taps[t : t + 4], first, second, third, fourth)
                t += 4
            while t < stop:
                tap, first = taps[t], volume[block, j + t - reach]
                for k in range(width):
                    row[k] += tap * first[k]
                t += 1


@_compiled
def _along_rows(volume: NDArray[np.float32], taps: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Convolve ``(x, y, z)`` along its last axis, zeros beyond the ends."""
    nx, ny, n = volume.shape
    reach = len(taps) // 2
    padded = np.zeros(n + 2 * reach, np.float32)
    for i in range(nx):
        for j in range(ny):
            padded[reach : reach + n] = volume[i, j]
            row = out[i, j]
            row[:] = 0
            t = 0
            while t + 4 <= len(taps):
                first, second = padded[t : t + n], padded[t + 1 : t + 1 + n]
                third, fourth = padded[t + 2 : t + 2 + n], padded[t + 3 : t + 3 + n]
                _add_four(row, taps[t : t + 4], first, second, third, fourth)
                t += 4
            while t < len(taps):
                tap, first = taps[t], padded[t : t + n]
                for k in range(n):
                    row[k] += tap * first[k]
                t += 1


@_compiled
def _add_four(
    row: NDArray[np.float32],
    taps: NDArray[np.float32],
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    third: NDArray[np.float32],
    fourth: NDArray[np.float32],
) -> None:
    for k in range(len(row)):
        total = row[k] + taps[0] * first[k]
        total += taps[1] * second[k]
        total += taps[2] * third[k]
        row[k] = total + taps[3] * fourth[k]
