"""Distance to the nearest controls, voxel by voxel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.detector import Detector, check_codes
from epizoo.detection.kernels import (
    buffers,
    check_threads,
    compiled,
    distances,
    over_voxels,
    packed,
    unpacked,
)
from epizoo.detection.scorer import Scorer
from tfds_epilepsy.errors import InputError

if TYPE_CHECKING:
    import tensorflow as tf


class LocalKNN(Detector):
    """Mean Euclidean distance to the k nearest controls at every voxel (Angiulli & Pizzuti 2002).

    It keeps every control's codes, as 16-bit integers on disk.

    Args:
        k: neighbours; all of the controls where they are fewer.
        threads: threads; all cores by default. The results do not depend on it.

    Attributes:
        codes_: ``(v, n, d)`` float32.

    Raises:
        InputError: k or threads under 1.
    """

    name: ClassVar[str] = "knn"
    working: ClassVar[float] = 1.0
    exportable: ClassVar[bool] = True

    def __init__(self, k: int = 5, threads: int | None = None):
        if k < 1:
            raise InputError(f"k={k!r}: at least one neighbour is needed.")
        self.k, self.threads = k, check_threads(threads)

    def fit(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> Self:
        self.codes_ = check_codes(codes)
        return self

    def score(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        codes = check_codes(codes, len(self.codes_), self.codes_.shape[2])
        scores = np.empty(codes.shape[:2], np.float32)
        arguments = (codes, self.codes_, self.k, scores)
        over_voxels(lambda start, stop: _score(*arguments, start, stop), len(codes), self.threads)
        return scores

    def cross_scores(
        self, codes: NDArray[np.floating], folds: NDArray[np.integer], **covariates: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        codes = check_codes(codes)
        scores = np.empty(codes.shape[:2], np.float32)
        arguments = (codes, np.asarray(folds, np.int64), self.k, scores)
        over_voxels(lambda start, stop: _cross(*arguments, start, stop), len(codes), self.threads)
        return scores

    def state(self) -> dict[str, NDArray[Any]]:
        voxels, n, d = self.codes_.shape
        return packed(self.codes_.reshape(-1, d), np.arange(voxels + 1) * n)

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]], **config: Any) -> Self:
        detector = cls(**config)
        rows, voxels = len(state["packed"]), len(state["lowest"])
        first = np.arange(voxels + 1) * (rows // max(voxels, 1))
        detector.codes_ = unpacked(state, first, detector.threads).reshape(voxels, rows // max(voxels, 1), -1)
        return detector

    def graph(self, state: Mapping[str, NDArray[Any]], order: NDArray[np.int64]) -> Scorer:
        return KNNScorer(self, state, order)


class KNNScorer(Scorer):
    """Mean distance to the k nearest controls."""

    def __init__(self, detector: LocalKNN, state: Mapping[str, NDArray[Any]], order: NDArray[np.int64]):
        super().__init__(detector, state, order)
        packed = state["packed"].reshape(len(state["lowest"]), -1, state["packed"].shape[-1])
        self.packed = self.keep(packed[order])
        self.low, self.step = (self.keep(state[key][order]) for key in ("lowest", "step"))
        self.k = min(detector.k, packed.shape[1])

    def score(self, codes: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        import tensorflow as tf

        low, step = (v[start:stop][:, tf.newaxis, tf.newaxis] for v in (self.low, self.step))
        controls = low + step * tf.cast(self.packed[start:stop], tf.float32)  # (v, n, d)
        distances = tf.norm(controls - codes[:, tf.newaxis], axis=2)
        return tf.reduce_mean(-tf.math.top_k(-distances, self.k, sorted=False)[0], 1)


@compiled
def _score(
    codes: NDArray[Any], controls: NDArray[Any], k: int, scores: NDArray[Any], start: int, stop: int
) -> None:
    _, m, d = codes.shape
    n = controls.shape[1]
    squares = np.empty(n, np.float32)
    for voxel in range(start, stop):
        for i in range(m):
            x = codes[voxel, i]
            for j in range(n):
                y = controls[voxel, j]
                total = np.float32(0)
                for c in range(d):
                    total += (x[c] - y[c]) * (x[c] - y[c])
                squares[j] = total
            scores[voxel, i] = _mean_of_nearest(squares, n, k)


@compiled
def _cross(
    codes: NDArray[Any], folds: NDArray[Any], k: int, scores: NDArray[Any], start: int, stop: int
) -> None:
    _, n, d = codes.shape
    distance, buffer = buffers(n, d)
    squares = np.empty(n, np.float32)
    for voxel in range(start, stop):
        distances(codes[voxel], buffer, distance)
        for i in range(n):
            size = 0
            for j in range(n):
                if folds[j] != folds[i]:
                    squares[size] = distance[i, j]
                    size += 1
            scores[voxel, i] = _mean_of_nearest(squares, size, k)


@compiled
def _mean_of_nearest(squares: NDArray[Any], size: int, k: int) -> float:
    """Mean root of the k smallest; sorts them to the front."""
    k = min(k, size)
    total = 0.0
    for a in range(k):
        smallest = a
        for b in range(a + 1, size):
            if squares[b] < squares[smallest]:
                smallest = b
        squares[a], squares[smallest] = squares[smallest], squares[a]
        total += math.sqrt(squares[a])
    return total / k
