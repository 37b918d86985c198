"""One Gaussian per voxel, with shrunk covariance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.detector import Detector, check_codes
from epizoo.detection.kernels import check_threads, compiled, over_voxels
from epizoo.detection.scorer import Scorer

if TYPE_CHECKING:
    import tensorflow as tf


class LocalGaussian(Detector):
    """Mahalanobis distance from the controls' mean at every voxel.

    The covariance is the oracle approximating shrinkage estimate (Chen et al. 2010, IEEE TSP 58:5016), as
    scikit-learn's ``OAS``: regular however few the controls. Where all controls are equal it is the identity.

    Args:
        threads: threads; all cores by default. The results do not depend on it.

    Attributes:
        mean_: ``(v, d)`` float32.
        factor_: ``(v, d (d + 1) / 2)`` float32, the rows of the upper Cholesky factor of the covariance.

    Raises:
        InputError: threads under 1.
    """

    name: ClassVar[str] = "gaussian"
    working: ClassVar[float] = 1.0
    exportable: ClassVar[bool] = True

    def __init__(self, threads: int | None = None):
        self.threads = check_threads(threads)

    def fit(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> Self:
        codes = check_codes(codes)
        voxels, _, d = codes.shape
        self.mean_ = np.empty((voxels, d), np.float32)
        self.factor_ = np.empty((voxels, d * (d + 1) // 2), np.float32)
        arguments = (codes, self.mean_, self.factor_)
        over_voxels(lambda start, stop: _fit(*arguments, start, stop), voxels, self.threads)
        return self

    def score(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        codes = check_codes(codes, *self.mean_.shape)
        scores = np.empty(codes.shape[:2], np.float32)
        arguments = (codes, self.mean_, self.factor_, scores)
        over_voxels(lambda start, stop: _score(*arguments, start, stop), len(codes), self.threads)
        return scores

    def whiten(self, codes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Codes ``(v, m, d)`` about the mean, of unit covariance: their length is the score."""
        codes = check_codes(codes, *self.mean_.shape)
        white = np.empty_like(codes)
        arguments = (codes, self.mean_, self.factor_, white)
        over_voxels(lambda start, stop: _whiten(*arguments, start, stop), len(codes), self.threads)
        return white

    def cross_scores(
        self, codes: NDArray[np.floating], folds: NDArray[np.integer], **covariates: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Scores as of the base class; a fold's scatter is that of all controls less that of the fold."""
        codes = check_codes(codes)
        scores = np.empty(codes.shape[:2], np.float32)
        arguments = (codes, np.unique(folds, return_inverse=True)[1].astype(np.int64), scores)
        over_voxels(lambda start, stop: _cross(*arguments, start, stop), len(codes), self.threads)
        return scores

    def state(self) -> dict[str, NDArray[Any]]:
        """Mean and factor, the factor in half precision of its scale: distances move by less than 1 %."""
        scale = np.abs(self.factor_).max(1, initial=1e-30)
        return {
            "mean": self.mean_,
            "scale": scale,
            "factor": (self.factor_ / scale[:, None]).astype(np.float16),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]], **config: Any) -> Self:
        detector = cls(**config)
        detector.mean_ = state["mean"]
        detector.factor_ = state["factor"].astype(np.float32) * state["scale"][:, None]
        return detector

    def graph(self, state: Mapping[str, NDArray[Any]], order: NDArray[np.int64]) -> Scorer:
        return GaussianScorer(self, state, order)


class GaussianScorer(Scorer):
    """``|U^-T (x - mean)|``."""

    def __init__(self, detector: Detector, state: Mapping[str, NDArray[Any]], order: NDArray[np.int64]):
        super().__init__(detector, state, order)
        self.mean, self.scale, self.factor = (self.keep(state[k][order]) for k in ("mean", "scale", "factor"))

    def score(self, codes: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        import tensorflow as tf

        rows = tf.cast(self.factor[start:stop], tf.float32) * self.scale[start:stop, tf.newaxis]
        rest = codes - self.mean[start:stop]
        total, position = tf.zeros_like(rest[:, :1]), 0
        while rest.shape[1]:  # forward substitution along the rows of U, all voxels at once
            row = rows[:, position : position + rest.shape[1]]
            position += rest.shape[1]
            y = rest[:, :1] / row[:, :1]
            total += tf.square(y)
            rest = rest[:, 1:] - y * row[:, 1:]
        return tf.sqrt(total[:, 0])


@compiled
def _fit(codes: NDArray[Any], means: NDArray[Any], factors: NDArray[Any], start: int, stop: int) -> None:
    _, n, d = codes.shape
    mean, scatter, row = np.empty(d), np.empty((d, d)), np.empty(d)
    for voxel in range(start, stop):
        _scatter(codes[voxel], mean, scatter, row)
        _factorise(scatter, n, 0.0)
        position = 0
        for k in range(d):
            means[voxel, k] = mean[k]
            for j in range(k, d):
                factors[voxel, position] = scatter[k, j]
                position += 1


@compiled
def _score(
    codes: NDArray[Any],
    means: NDArray[Any],
    factors: NDArray[Any],
    scores: NDArray[Any],
    start: int,
    stop: int,
) -> None:
    _, m, d = codes.shape
    white = np.empty(d, np.float32)
    for voxel in range(start, stop):
        for i in range(m):
            _solve(codes[voxel, i], means[voxel], factors[voxel], white)
            total = np.float32(0)
            for k in range(d):
                total += white[k] * white[k]
            scores[voxel, i] = math.sqrt(total)


@compiled
def _whiten(
    codes: NDArray[Any],
    means: NDArray[Any],
    factors: NDArray[Any],
    white: NDArray[Any],
    start: int,
    stop: int,
) -> None:
    for voxel in range(start, stop):
        for i in range(codes.shape[1]):
            _solve(codes[voxel, i], means[voxel], factors[voxel], white[voxel, i])


@compiled
def _solve(x: NDArray[Any], mean: NDArray[Any], factor: NDArray[Any], white: NDArray[Any]) -> None:
    """``white = U^-T (x - mean)``, by forward substitution along the rows of U."""
    d = len(x)
    for k in range(d):
        white[k] = x[k] - mean[k]
    position = 0
    for k in range(d):
        row, tail = factor[position : position + d - k], white[k:]
        y = tail[0] / row[0]
        for j in range(1, len(row)):
            tail[j] -= y * row[j]
        tail[0] = y
        position += d - k


@compiled
def _cross(codes: NDArray[Any], folds: NDArray[Any], scores: NDArray[Any], start: int, stop: int) -> None:
    _, n, d = codes.shape
    mean, scatter, row = np.empty(d), np.empty((d, d)), np.empty(d)
    shift, left = np.empty(d), np.empty((d, d))
    for voxel in range(start, stop):
        x = codes[voxel]
        _scatter(x, mean, scatter, row)
        trace = 0.0
        for k in range(d):
            trace += scatter[k, k]
        for fold in range(folds.max() + 1):
            left[:] = scatter
            shift[:] = 0
            held_out = 0
            for i in range(n):
                if folds[i] == fold:
                    held_out += 1
                    for k in range(d):
                        row[k] = x[i, k] - mean[k]
                        shift[k] -= row[k]
                    _add_product(left, row, -1.0)
            size = n - held_out
            shift /= size  # from the mean of all to the mean of those left
            _add_product(left, shift, -float(size))
            _factorise(left, size, 1e-12 * trace / d)
            for i in range(n):
                if folds[i] == fold:
                    for k in range(d):
                        row[k] = x[i, k] - mean[k] - shift[k]
                    scores[voxel, i] = _length(left, row)


@compiled
def _scatter(x: NDArray[Any], mean: NDArray[Any], scatter: NDArray[Any], row: NDArray[Any]) -> None:
    """Mean, and the upper half of the sum of products about it."""
    n, d = x.shape
    mean[:] = 0
    for i in range(n):
        for k in range(d):
            mean[k] += np.float64(x[i, k])
    mean /= n
    scatter[:] = 0
    for i in range(n):
        for k in range(d):
            row[k] = x[i, k] - mean[k]
        _add_product(scatter, row, 1.0)


@compiled
def _add_product(matrix: NDArray[Any], row: NDArray[Any], factor: float) -> None:
    d = len(row)
    for k in range(d):
        scaled = factor * row[k]
        out, tail = matrix[k, k:], row[k:]
        for j in range(len(out)):
            out[j] += scaled * tail[j]


@compiled
def _factorise(matrix: NDArray[Any], n: int, nothing: float) -> None:
    """The upper half of a scatter matrix of n becomes the Cholesky factor of the shrunk covariance.

    Args:
        nothing: a trace per feature that is rounding and no variance.
    """
    d = len(matrix)
    trace = 0.0
    for k in range(d):
        trace += matrix[k, k]
    if trace <= nothing * d or trace == 0:
        matrix[:] = np.eye(d)
        return
    mu = trace / d / n
    square = 0.0
    for k in range(d):
        row = matrix[k, k:]
        for j in range(len(row)):
            row[j] /= n
            square += 2 * row[j] * row[j]
        square -= row[0] * row[0]
    alpha = square / (d * d)
    gap = (n + 1) * (alpha - mu * mu / d)
    shrinkage = min((alpha + mu * mu) / gap, 1.0) if gap > 0 else 1.0
    if d == 1:
        shrinkage = 0.0
    for k in range(d):
        row = matrix[k, k:]
        for j in range(len(row)):
            row[j] *= 1 - shrinkage
        row[0] += shrinkage * mu
    for k in range(d):
        pivot = matrix[k, k:]
        root = 1 / math.sqrt(pivot[0])
        for j in range(len(pivot)):
            pivot[j] *= root
        for i in range(1, len(pivot)):
            factor, row, tail = pivot[i], matrix[k + i, k + i :], pivot[i:]
            for j in range(len(row)):
                row[j] -= factor * tail[j]


@compiled
def _length(factor: NDArray[Any], rest: NDArray[Any]) -> float:
    """``|U^-T rest|``; uses up ``rest``."""
    d = len(rest)
    total = 0.0
    for k in range(d):
        y = rest[k] / factor[k, k]
        total += y * y
        row, tail = factor[k, k:], rest[k:]
        for j in range(len(row)):
            tail[j] -= y * row[j]
    return math.sqrt(total)
