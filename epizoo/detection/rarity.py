"""One scale for the maps of different profiles: how rarely a healthy brain has as high a value anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.interpolation import interp_in_graph
from epizoo.detection.tail import Tail

if TYPE_CHECKING:
    import tensorflow as tf

HISTOGRAM = np.linspace(-20, 80, 10001)  # edges, in z


def rarity(survival: NDArray[np.floating], tail: Tail) -> NDArray[np.float64]:
    """At each edge of ``HISTOGRAM``: minus the log of the number of places as high in a healthy brain.

    0 where one such place is expected in each brain, which is at the location of the tail. Above it the tail
    says how rarely; below it the number of places goes as that of the voxels.

    Args:
        survival: share of the controls' voxels that reach each edge.
        tail: of their maxima.

    Returns:
        Strictly ascending.
    """
    once = np.interp(tail.location, HISTOGRAM, np.log(survival))
    above = (HISTOGRAM - tail.location) / tail.scale
    below = np.minimum(once - np.log(survival), 0)
    logs = np.maximum.accumulate(np.where(tail.location < HISTOGRAM, above, below))
    return np.asarray(logs + 1e-5 * (HISTOGRAM - tail.location))


def rarest(
    z: NDArray[np.floating], rarities: NDArray[np.floating], shares: Sequence[float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Maps of several profiles on the scale of the first, and the rarest of them at each place.

    Args:
        z: ``(..., p)``, NaN where a profile is not looked for.
        rarities: ``(p, len(HISTOGRAM))``, of ``rarity``.
        shares: ``(p,)``, by which each profile counts (``Profile.share``).

    Returns:
        ``(...)``, the highest at each place, and ``(..., p)``, the z of the first profile that is as rare;
        minus infinity where none, or that profile, is looked for.
    """
    aligned = np.where(np.isfinite(z), z, -np.inf).astype(np.float32)
    for p, share in enumerate(shares[1:], start=1):
        known = np.isfinite(z[..., p])
        logs = np.interp(z[..., p][known], HISTOGRAM, rarities[p]) + np.log(share)
        aligned[..., p][known] = np.interp(logs, rarities[0] + np.log(shares[0]), HISTOGRAM)
    return aligned.max(-1), aligned


def rarest_in_graph(z: tf.Tensor, rarities: tf.Tensor, shares: Sequence[float]) -> tf.Tensor:
    """The first of what ``rarest`` gives, in TensorFlow operations; ``rarities`` are float64."""
    import tensorflow as tf

    aligned = [z[..., 0]]
    for p, share in enumerate(shares[1:], start=1):
        logs = interp_in_graph(tf.cast(z[..., p], tf.float64), HISTOGRAM, rarities[p]) + np.log(share)
        same = interp_in_graph(logs, rarities[0] + np.log(shares[0]), HISTOGRAM)
        aligned.append(tf.cast(same, tf.float32))
    return tf.reduce_max(tf.where(tf.math.is_finite(z), tf.stack(aligned, -1), -np.inf), -1)
