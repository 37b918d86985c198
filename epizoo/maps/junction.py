"""How wide the junction of grey and white matter is: a sign of dysplasia that folding does not change."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from epizoo.maps.smoothing import smooth, smooth_in_graph
from tfds_epilepsy.tissue import template_priors

if TYPE_CHECKING:
    import tensorflow as tf

EDGE_FWHM = 2.0  # millimetres, before the gradient is taken
WINDOW_FWHM = 6.0  # millimetres, over which the junction is measured
NARROW, WIDE = 0.2, 1 / 3  # sd of the bands of levels that count as between, and as an edge
LITTLE = 0.02  # of a window: where there is less between and fewer edges than this ...
USUAL_WIDTH = 4.0  # ... the width goes to this, millimetres
SMALLEST_SPAN = 1e-3  # between white and grey matter, of intensities in [0, 1]


def junction_width(
    t1: NDArray[np.floating[Any]], mask: NDArray[np.bool_], affine: NDArray[np.floating[Any]]
) -> NDArray[np.float32]:
    """Log of the width, in millimetres, of the junction of grey and white matter around each voxel.

    With ``u`` the signal on a scale of 0 in grey and 1 in white matter and ``N_s`` a Gaussian of deviation
    ``s`` about one half that integrates to 1, the junction near a voxel has a width of

        w = (<N_.2(u)> + e) / (<N_.33(u) |grad u|> + e / w0),    e = .02, w0 = 4 mm

    where ``<>`` is the mean in the brain over 6 mm. By the coarea formula ``<N |grad u|>`` is the area of the
    junction in a volume, ``<N>`` the volume times the gradient's inverse: on a straight ramp ``w`` is its
    length. More cortex, or cortex elsewhere, makes more of both; a blurred junction, of the first alone.
    After the junction map of Huppertz et al. 2005 (Epilepsy Res 67:35-50), which holds the volume alone.

    Args:
        t1: ``(x, y, z)``, the T1w of a brain in template space, or another modality in which grey and white
            matter differ.
        mask: ``(x, y, z)``, the brain.
        affine: ``(4, 4)``, voxel to world, mm.

    Returns:
        ``(x, y, z)`` float32; 0 outside the mask.
    """
    signal = t1[mask].astype(np.float64)
    weights = tissue_weights(t1.shape, tuple(np.ravel(affine)))
    grey, white = (np.average(signal, weights=w[mask] + 1e-6) for w in weights)
    span = white - grey
    if abs(span) < SMALLEST_SPAN:
        span = SMALLEST_SPAN
    middle = (t1 - grey) / span - 0.5
    slope = gradient(smooth(t1, mask, affine, EDGE_FWHM), mask, affine) / abs(span)
    volume, area = (_band(middle, sd) for sd in (NARROW, WIDE))
    measures = np.where(mask[..., None], np.stack([volume, area * slope], -1), 0)
    volume, area = np.moveaxis(smooth(measures, mask, affine, WINDOW_FWHM), -1, 0)
    width = (volume + LITTLE) / (area + LITTLE / USUAL_WIDTH)
    return np.where(mask, np.log(width), 0).astype(np.float32)


def gradient(
    volume: NDArray[np.floating[Any]], mask: NDArray[np.bool_], affine: NDArray[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """Size of the gradient of ``(x, y, z)``, a millimetre: central differences inside the mask, 0 outside.

    A neighbour outside the mask counts as the voxel itself: the border of the brain is no edge.
    """
    zooms = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    squares = np.zeros(volume.shape, volume.dtype)
    for axis, zoom in enumerate(zooms):
        rise = np.diff(volume, axis=axis) * (np.diff(mask.astype(np.int8), axis=axis) == 0)
        pads = ([side if i == axis else (0, 0) for i in range(3)] for side in ((1, 0), (0, 1)))
        before, after = (np.pad(rise, pad) for pad in pads)
        squares += np.square((before + after) / (2 * zoom))
    return np.where(mask, np.sqrt(squares), 0)


@lru_cache(maxsize=1)
def tissue_weights(shape: tuple[int, ...], affine: tuple[float, ...]) -> NDArray[np.float32]:
    """What a voxel counts for in the mean signal of grey and of white matter: ``(2, x, y, z)``.

    The fourth power of the template's tissue maps, so that mixed voxels count for little.
    """
    priors = template_priors(shape, np.reshape(affine, (4, 4)))
    return np.moveaxis(priors[..., :2], -1, 0).astype(np.float32) ** 4


def _band(off: NDArray[np.floating[Any]], sd: float) -> NDArray[np.floating[Any]]:
    return np.asarray(np.exp(-0.5 * np.square(off / sd)) / (sd * np.sqrt(2 * np.pi)))


# === In TensorFlow operations ===


def junction_width_in_graph(
    t1: tf.Tensor, mask: tf.Tensor, affine: NDArray[np.floating[Any]], weights: tf.Tensor
) -> tf.Tensor:
    """``junction_width``; ``weights`` are ``tissue_weights`` of the grid."""
    import tensorflow as tf

    shares = tf.cast((weights + 1e-6) * tf.cast(mask, tf.float32), tf.float64)
    total = tf.reduce_sum(shares * tf.cast(t1, tf.float64), [1, 2, 3])
    grey, white = tf.unstack(tf.cast(total / tf.reduce_sum(shares, [1, 2, 3]), tf.float32))
    span = white - grey
    span = tf.where(tf.abs(span) < SMALLEST_SPAN, SMALLEST_SPAN, span)
    middle = (t1 - grey) / span - 0.5
    slope = gradient_in_graph(smooth_in_graph(t1, mask, affine, EDGE_FWHM), mask, affine) / tf.abs(span)
    bands = [tf.exp(-0.5 * tf.square(middle / sd)) / (sd * np.sqrt(2 * np.pi)) for sd in (NARROW, WIDE)]
    measures = tf.stack([bands[0], bands[1] * slope], -1)
    volume, area = tf.unstack(smooth_in_graph(measures, mask, affine, WINDOW_FWHM), axis=-1)
    return tf.where(mask, tf.math.log((volume + LITTLE) / (area + LITTLE / USUAL_WIDTH)), 0.0)


def gradient_in_graph(volume: tf.Tensor, mask: tf.Tensor, affine: NDArray[np.floating[Any]]) -> tf.Tensor:
    """``gradient``, of a volume of known shape."""
    import tensorflow as tf

    def steps(values: tf.Tensor, axis: int) -> tf.Tensor:
        """From each voxel to the next along an axis."""
        size = values.shape[axis]
        after = tf.gather(values, tf.range(1, size), axis=axis)
        return after - tf.gather(values, tf.range(size - 1), axis=axis)

    zooms = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    inside = tf.cast(mask, tf.float32)
    squares = []
    for axis, zoom in enumerate(zooms):
        pads = [[side if i == axis else (0, 0) for i in range(3)] for side in ((1, 0), (0, 1))]
        rise = steps(volume, axis) * tf.cast(tf.equal(steps(inside, axis), 0), tf.float32)
        squares.append(tf.square(tf.add_n([tf.pad(rise, pad) for pad in pads]) / (2 * zoom)))
    return tf.where(mask, tf.sqrt(tf.add_n(squares)), 0.0)
