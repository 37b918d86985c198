"""``np.interp`` for exported pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf


def interp_in_graph(x: tf.Tensor, places: Any, values: Any) -> tf.Tensor:
    """``np.interp`` in TensorFlow operations.

    Args:
        x: of any shape, float64; what is NaN gives any number.
        places: ``(n,)``, ascending; beyond the ends the values at them hold.
        values: ``(n,)``.
    """
    import tensorflow as tf

    places, values = tf.cast(places, tf.float64), tf.cast(values, tf.float64)
    flat = tf.clip_by_value(tf.reshape(x, [-1]), places[0], places[-1])
    after = tf.clip_by_value(tf.searchsorted(places, flat, side="right"), 1, tf.size(places) - 1)
    start, end = tf.gather(places, after - 1), tf.gather(places, after)
    low, high = tf.gather(values, after - 1), tf.gather(values, after)
    return tf.reshape(low + (high - low) * (flat - start) / (end - start), tf.shape(x))
