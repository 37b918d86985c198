"""Normalisation of intensities in TensorFlow operations: what ``tfds_epilepsy.volumes.normalise`` does."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

METHODS = ("unit", "zscore")  # others are learnt from a cohort


def normalise(
    volume: tf.Tensor, mask: tf.Tensor, method: str, *, checks: bool = True
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Map each channel to [0, 1] by what lies in the mask; 0 outside it.

    What has been normalised by the method before stays as it is.

    Args:
        volume: ``(x, y, z, m)`` float32, any unit.
        mask: ``(x, y, z)`` bool.
        method: ``unit`` or ``zscore``; ``none``: volumes are what the encoder reads already.
        checks: refuse an empty mask, NaN, and a channel that is constant inside; not every runtime has the
            operations for it.

    Returns:
        the volume; ``low`` and ``high`` ``(m,)``: the intensities that became 0 and 1.
    """
    inside = tf.boolean_mask(volume, mask)  # (v, m)
    if checks:
        tf.debugging.Assert(tf.size(inside) > 0, ["mask: no voxel is True."])
        tf.debugging.Assert(tf.reduce_all(tf.math.is_finite(inside)), ["NaN or infinite values in the mask."])
    if method == "none":
        ends = [(0.0, 1.0)] * volume.shape[-1]
    else:
        fit = {"unit": _unit, "zscore": _zscore}[method]
        ends = [fit(tf.sort(inside[:, channel])) for channel in range(volume.shape[-1])]
    low, high = (tf.stack([tf.cast(end, tf.float32) for end in side]) for side in zip(*ends, strict=True))
    if checks:
        tf.debugging.Assert(
            tf.reduce_all(_is_scale(low, high)),
            ["an image is constant inside the brain mask, or its range infinite; low, high:", low, high],
        )
    scaled = volume if method == "none" else rescale(volume, low, high)
    return tf.where(mask[..., tf.newaxis], scaled, 0.0), low, high


def rescale(values: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """``low`` to 0, ``high`` to 1, clipped."""
    return tf.clip_by_value((values - low) / (high - low), 0.0, 1.0)


def of_finite(patch: tf.Tensor, code: tf.Tensor, *, checks: bool = True) -> tf.Tensor:
    """Codes of what is finite; max pooling and ReLU make some of anything else, too.

    Args:
        patch: ``(n, ...)``, that they are of.
        code: ``(n, ..., d)``.
        checks: refuse NaN and infinity; else the code of such a patch is NaN.
    """
    finite = tf.abs(patch) <= tf.float32.max  # TFLite has no test for it
    return _where_all(finite, code, "NaN or infinity in a patch.", checks)


def of_scale(low: tf.Tensor, high: tf.Tensor, code: tf.Tensor, *, checks: bool = True) -> tf.Tensor:
    """Codes of what a usable scale made; clipping hides what any other did.

    Args:
        low, high: ``(n or 1, ...)``.
        code: ``(n, d)``.
        checks: refuse a low that is not under its high; else the code of such a patch is NaN.
    """
    return _where_all(_is_scale(low, high), code, "low is not under high.", checks)


def _is_scale(low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    return tf.logical_and(high > low, high - low <= tf.float32.max)


def _where_all(good: tf.Tensor, code: tf.Tensor, message: str, checks: bool) -> tf.Tensor:
    """Codes ``(n, ...)`` where all of ``good`` ``(n or 1, ...)`` is true."""
    if checks:
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(good), [message])]):
            return tf.identity(code)
    whole = tf.reduce_all(good, list(range(1, len(good.shape))))
    return tf.where(tf.reshape(whole, (-1, *[1] * (len(code.shape) - 1))), code, np.nan)


def _unit(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The 0.5th and the 99th percentile of sorted values; 0 and 1 if they were clipped to these before."""
    last = tf.cast(tf.shape(values)[0] - 1, tf.float64)
    ends = tf.gather(values, tf.cast([tf.floor(last * 0.005), tf.math.ceil(last * 0.99)], tf.int32))
    before = tf.logical_and(tf.equal(ends[0], 0), tf.equal(ends[1], 1))
    fitted = tf.stack([_percentile(values, 0.5), _percentile(values, 99.0)])
    low, high = tf.unstack(tf.where(before, tf.constant([0.0, 1.0], tf.float64), fitted))
    return low, high


def _zscore(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The median of sorted values less and plus 5 robust standard deviations."""
    median = _percentile(values, 50.0)
    deviations = tf.sort(tf.abs(values - tf.cast(median, tf.float32)))
    spread = 1.4826 * _percentile(deviations, 50.0)
    return median - 5 * spread, median + 5 * spread


def _percentile(values: tf.Tensor, q: float) -> tf.Tensor:
    """NumPy's percentile of sorted values, by linear interpolation; float64."""
    last = tf.shape(values)[0] - 1
    position = tf.cast(last, tf.float64) * (q / 100)
    index = tf.cast(tf.floor(position), tf.int32)
    pair = tf.cast(tf.gather(values, tf.stack([index, tf.minimum(index + 1, last)])), tf.float64)
    return pair[0] + (pair[1] - pair[0]) * (position - tf.cast(index, tf.float64))
