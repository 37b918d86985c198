"""Detectors in TensorFlow operations: the base of the forms that stand beside each detector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import tensorflow as tf

    from epizoo.detection.detector import Detector


class Scorer:
    """A fitted detector at the voxels of a slab, for exported pipelines.

    What it has learnt is kept in variables, packed as in the detector's folder; a form reads a run of voxels
    at a time.

    Args:
        detector: not fitted, with its configuration, told what it reads.
        state: of ``Detector.state``.
        order: ``(v,)``: where in it each voxel of the slab stands.
    """

    def __init__(self, detector: Detector, state: Mapping[str, NDArray[Any]], order: NDArray[np.int64]):
        self.variables: list[tf.Variable] = []

    def score(self, codes: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        """Scores ``(v,)`` of codes ``(v, d)`` at the voxels ``start:stop`` of the slab."""
        raise NotImplementedError

    def evidence(self, codes: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        """``Detector.evidence`` of the same: ``(v, k)``."""
        return self.score(codes, start, stop)[:, None]

    def keep(self, array: NDArray[Any]) -> tf.Variable:
        """An array as a variable of the export."""
        import tensorflow as tf

        variable = tf.Variable(array, trainable=False)
        self.variables.append(variable)
        return variable
