"""Distance to the nearest controls, a voxel at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.detector import Detector, check_latents
from epizoo.detection.kernels import buffers, compiled, distances, over_voxels, packed, unpacked
from tfds_epilepsy.errors import InputError


class LocalKNN(Detector):
    """Mean Euclidean distance to the k nearest controls at every voxel (Angiulli & Pizzuti 2002).

    It keeps every control's codes, as 16-bit integers on disk.

    Args:
        k: neighbours; all of the controls where they are fewer.
        threads: threads; all cores by default. The results do not depend on it.

    Attributes:
        latents_: ``(v, n, d)`` float32.

    Raises:
        InputError: k under 1.
    """

    name: ClassVar[str] = "knn"
    working: ClassVar[float] = 1.0

    def __init__(self, k: int = 5, threads: int | None = None):
        if k < 1:
            raise InputError(f"k={k!r}: at least one neighbour is needed.")
        self.k, self.threads = k, threads

    def fit(self, latents: NDArray[np.floating], **covariates: NDArray[np.floating]) -> Self:
        self.latents_ = check_latents(latents)
        return self

    def score(self, latents: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        latents = check_latents(latents, len(self.latents_))
        scores = np.empty(latents.shape[:2], np.float32)
        arguments = (latents, self.latents_, self.k, scores)
        over_voxels(lambda start, stop: _score(*arguments, start, stop), len(latents), self.threads)
        return scores

    def cross_scores(
        self, latents: NDArray[np.floating], folds: NDArray[np.integer], **covariates: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        latents = check_latents(latents)
        scores = np.empty(latents.shape[:2], np.float32)
        arguments = (latents, np.asarray(folds, np.int64), self.k, scores)
        over_voxels(lambda start, stop: _cross(*arguments, start, stop), len(latents), self.threads)
        return scores

    def state(self) -> dict[str, NDArray[Any]]:
        voxels, n, d = self.latents_.shape
        return packed(self.latents_.reshape(-1, d), np.arange(voxels + 1) * n)

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]], **config: Any) -> Self:
        detector = cls(**config)
        rows, voxels = len(state["packed"]), len(state["lowest"])
        first = np.arange(voxels + 1) * (rows // max(voxels, 1))
        detector.latents_ = unpacked(state, first, detector.threads).reshape(
            voxels, rows // max(voxels, 1), -1
        )
        return detector


@compiled
def _score(latents, controls, k, scores, start, stop):
    _, m, d = latents.shape
    n = controls.shape[1]
    squares = np.empty(n, np.float32)
    for voxel in range(start, stop):
        for i in range(m):
            x = latents[voxel, i]
            for j in range(n):
                y = controls[voxel, j]
                total = np.float32(0)
                for c in range(d):
                    total += (x[c] - y[c]) * (x[c] - y[c])
                squares[j] = total
            scores[voxel, i] = _mean_of_nearest(squares, n, k)


@compiled
def _cross(latents, folds, k, scores, start, stop):
    _, n, d = latents.shape
    distance, buffer = buffers(n, d)
    squares = np.empty(n, np.float32)
    for voxel in range(start, stop):
        distances(latents[voxel], buffer, distance)
        for i in range(n):
            size = 0
            for j in range(n):
                if folds[j] != folds[i]:
                    squares[size] = distance[i, j]
                    size += 1
            scores[voxel, i] = _mean_of_nearest(squares, size, k)


@compiled
def _mean_of_nearest(squares, size, k):
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
