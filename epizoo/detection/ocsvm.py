"""One one-class SVM per voxel, all voxels in compiled code.

The solver is libsvm's (Fan, Chen & Lin 2005, JMLR 6:1889: SMO with second-order working sets), without
shrinking, on the whole n x n kernel of a voxel, which stays in the first levels of cache for the tens to few
hundreds of controls that a normative cohort has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.detector import Detector, check_codes
from epizoo.detection.kernels import (
    LANES,
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


class LocalOneClassSVM(Detector):
    """A one-class SVM with an RBF kernel at every voxel (Schölkopf et al. 2001; Alaverdyan et al. 2020).

    Scores are minus scikit-learn's ``OneClassSVM.decision_function``, on libsvm's scale
    (``sum alpha = nu * n``).

    Example:
        >>> codes = np.random.default_rng(0).normal(size=(5, 30, 8))  # voxels, controls, features
        >>> LocalOneClassSVM(nu=0.1).fit(codes).score(codes).shape
        (5, 30)

    Args:
        nu: bound on the fraction of controls outside, between 0 and 1. 0.03 is the paper's.
        gamma: of the kernel ``exp(-gamma |x - y|^2)``; ``"scale"`` is ``1 / (d * Var)`` over all entries of
            a voxel's ``(n, d)`` codes, as in scikit-learn; 1 where Var is under 1e-30.
        tol: the optimality gap at which the solver stops (libsvm's default is 1e-3); the many fits of the
            calibration stop at 1e-4.
        threads: threads; all cores by default. The results do not depend on it.

    Attributes:
        support_: ``(s, d)`` float32, the support vectors of all voxels one after another.
        alpha_: ``(s,)`` float32, their coefficients.
        first_: ``(v + 1,)`` int64; those of voxel i are ``first_[i]:first_[i + 1]``.
        rho_: ``(v,)`` float32, the offsets.
        gamma_: ``(v,)`` float64.

    Raises:
        InputError: options out of range.
    """

    name: ClassVar[str] = "ocsvm"
    working: ClassVar[float] = 1.0
    exportable: ClassVar[bool] = True

    def __init__(
        self,
        nu: float = 0.03,
        gamma: float | str = "scale",
        tol: float = 1e-6,
        threads: int | None = None,
    ):
        if not 0 < nu < 1:
            raise InputError(f"nu={nu!r}: a number between 0 and 1 is needed.")
        if gamma != "scale" and not (isinstance(gamma, int | float) and gamma > 0):
            raise InputError(f"gamma={gamma!r}: 'scale' or a positive number is needed.")
        self.nu, self.gamma, self.tol, self.threads = nu, gamma, tol, check_threads(threads)

    def fit(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> Self:
        codes = check_codes(codes)
        voxels, n, _ = codes.shape
        alpha = np.zeros((voxels, n), np.float32)
        self.rho_ = np.zeros(voxels, np.float32)
        self.gamma_ = np.full(voxels, self._fixed_gamma, np.float64)
        over_voxels(
            lambda start, stop: _fit(codes, self.nu, self.tol, alpha, self.rho_, self.gamma_, start, stop),
            voxels,
            self.threads,
        )
        chosen = alpha > 0
        self.first_ = np.concatenate([[0], np.cumsum(chosen.sum(1))]).astype(np.int64)
        self.alpha_ = alpha[chosen]
        self.support_ = codes[chosen]
        return self

    def score(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        codes = check_codes(codes, len(self.rho_), self.support_.shape[1])
        scores = np.empty(codes.shape[:2], np.float32)
        over_voxels(
            lambda start, stop: _score(
                codes, self.support_, self.alpha_, self.first_, self.rho_, self.gamma_, scores, start, stop
            ),
            len(codes),
            self.threads,
        )
        return scores

    def cross_scores(
        self, codes: NDArray[np.floating], folds: NDArray[np.integer], **covariates: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Scores as of the base class; the distances at a voxel are computed once for all folds.

        A decision value grows with the number of controls (``sum alpha = nu * n``), so those of a fold are
        multiplied by n over the number of controls that it was fitted on.
        """
        codes = check_codes(codes)
        scores = np.empty(codes.shape[:2], np.float32)
        folds = np.unique(folds, return_inverse=True)[1].astype(np.int64)
        over_voxels(
            lambda start, stop: _cross(
                codes, folds, self.nu, self.tol, self._fixed_gamma, scores, start, stop
            ),
            len(codes),
            self.threads,
        )
        return scores

    def state(self) -> dict[str, NDArray[Any]]:
        """What was learnt, the support vectors as 16-bit integers between the extremes of each voxel.

        A decision value moves by at most ``0.86 * nu * n * (range / sd) / 131070`` (the steepest slope of
        the kernel times the largest rounding; range and sd over the codes of the voxel): 2e-4 for n = 75,
        nu = 0.03 and a range of 12 sd, and in practice a tenth of that.
        """
        return {
            **packed(self.support_, self.first_),
            "count": np.diff(self.first_).astype(np.uint16),
            "alpha": self.alpha_,
            "rho": self.rho_,
            "gamma": self.gamma_,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]], **config: Any) -> Self:
        detector = cls(**config)
        detector.first_ = np.concatenate([[0], np.cumsum(state["count"], dtype=np.int64)])
        detector.alpha_, detector.rho_, detector.gamma_ = state["alpha"], state["rho"], state["gamma"]
        detector.support_ = unpacked(state, detector.first_, detector.threads)
        return detector

    def graph(self, state: Mapping[str, NDArray[Any]], order: NDArray[np.int64]) -> Scorer:
        return OneClassSVMScorer(self, state, order)

    @property
    def _fixed_gamma(self) -> float:
        return 0.0 if self.gamma == "scale" else float(self.gamma)


class OneClassSVMScorer(Scorer):
    """``rho - sum alpha exp(-gamma |x - y|^2)``."""

    def __init__(self, detector: Detector, state: Mapping[str, NDArray[Any]], order: NDArray[np.int64]):
        super().__init__(detector, state, order)
        first, rows = _reordered(np.cumsum(state["count"], dtype=np.int64), order)
        self.first = self.keep(first)
        self.support, self.alpha = self.keep(state["packed"][rows]), self.keep(state["alpha"][rows])
        self.low, self.step, self.rho = (self.keep(state[key][order]) for key in ("lowest", "step", "rho"))
        self.gamma = self.keep(state["gamma"][order].astype(np.float32))

    def score(self, codes: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        import tensorflow as tf

        first = self.first[start : stop + 1]
        a, b = first[0], first[-1]
        voxel = tf.repeat(tf.range(stop - start), tf.cast(first[1:] - first[:-1], tf.int32))  # (s,)
        low, step = (tf.gather(v[start:stop], voxel)[:, tf.newaxis] for v in (self.low, self.step))
        support = low + step * tf.cast(self.support[a:b], tf.float32)  # (s, d)
        distance = tf.reduce_sum(tf.square(tf.gather(codes, voxel) - support), 1)
        kernel = self.alpha[a:b] * tf.exp(-tf.gather(self.gamma[start:stop], voxel) * distance)
        return self.rho[start:stop] - tf.math.unsorted_segment_sum(kernel, voxel, stop - start)


def _reordered(ends: NDArray[np.int64], order: NDArray[np.int64]) -> tuple[Any, Any]:
    """Runs of rows that end at ``ends``, in another order: their first rows, and which rows they are."""
    first = np.concatenate([[0], ends])
    counts = np.diff(first)[order]
    new = np.concatenate([[0], np.cumsum(counts)])
    return new, np.repeat(first[order] - new[:-1], counts) + np.arange(new[-1])


# === Kernels over voxels ===
# Distances and kernels are float32; the gradients of the solver, summed over many steps, and the variances
# are float64.

BIG = 1e30
SMALLEST = 1e-30  # variance: of less, the squares are nothing in float32


@compiled
def _fit(
    codes: NDArray[Any],
    nu: float,
    tol: float,
    alpha: NDArray[Any],
    rho: NDArray[Any],
    gammas: NDArray[Any],
    start: int,
    stop: int,
) -> None:
    _, n, d = codes.shape
    everyone = np.arange(n)
    distance, buffer = buffers(n, d)
    kernel, powers = np.zeros(distance.shape, np.float32), np.empty(len(distance), np.int32)
    means, squares, weights = np.empty(n), np.empty(n), np.empty(n)
    for voxel in range(start, stop):
        x = codes[voxel]
        _moments(x, means, squares)
        if gammas[voxel] == 0:
            gammas[voxel] = _scale_gamma(means, squares, everyone, d)
        distances(x, buffer, distance)
        _kernel(distance, gammas[voxel], everyone, kernel, powers)
        weights[:] = 0
        rho[voxel] = _solve(kernel, nu, tol, weights)
        alpha[voxel] = weights


@compiled
def _cross(
    codes: NDArray[Any],
    folds: NDArray[Any],
    nu: float,
    tol: float,
    fixed_gamma: float,
    scores: NDArray[Any],
    start: int,
    stop: int,
) -> None:
    _, n, d = codes.shape
    everyone = np.arange(n)
    distance, buffer = buffers(n, d)
    kernel, powers = np.zeros(distance.shape, np.float32), np.empty(len(distance), np.int32)
    means, squares, all_weights = np.empty(n), np.empty(n), np.empty(n)
    for voxel in range(start, stop):
        x = codes[voxel]
        _moments(x, means, squares)
        distances(x, buffer, distance)
        gamma = fixed_gamma if fixed_gamma > 0 else _scale_gamma(means, squares, everyone, d)
        _kernel(distance, gamma, everyone, kernel, powers)
        all_weights[:] = 0
        _solve(kernel, nu, 1e-2, all_weights)  # where the folds begin
        for fold in range(folds.max() + 1):
            train = np.nonzero(folds != fold)[0]
            gamma = fixed_gamma if fixed_gamma > 0 else _scale_gamma(means, squares, train, d)
            _kernel(distance, gamma, train, kernel, powers)
            weights = all_weights[train]
            rho = _solve(kernel, nu, max(tol, 1e-4), weights)
            for i in range(n):
                if folds[i] == fold:
                    value = rho
                    for j in range(len(train)):
                        if weights[j] > 0:
                            value -= weights[j] * math.exp(-gamma * distance[i, train[j]])
                    scores[voxel, i] = value * n / len(train)


@compiled
def _score(
    codes: NDArray[Any],
    support: NDArray[Any],
    alpha: NDArray[Any],
    first: NDArray[Any],
    rho: NDArray[Any],
    gammas: NDArray[Any],
    scores: NDArray[Any],
    start: int,
    stop: int,
) -> None:
    _, m, d = codes.shape
    for voxel in range(start, stop):
        root = np.float32(math.sqrt(gammas[voxel]))
        for i in range(m):
            x = codes[voxel, i]
            value = np.float64(rho[voxel])
            for s in range(first[voxel], first[voxel + 1]):
                y = support[s]
                total = np.float32(0)
                for k in range(d):
                    difference = (x[k] - y[k]) * root
                    total += difference * difference
                value -= alpha[s] * math.exp(-total)
            scores[voxel, i] = value


# === One voxel ===


@compiled
def _moments(x: NDArray[Any], means: NDArray[Any], squares: NDArray[Any]) -> None:
    """Mean and sum of squared deviations of each control's features."""
    n, d = x.shape
    for i in range(n):
        mean = 0.0
        for k in range(d):
            mean += np.float64(x[i, k])
        mean /= d
        square = 0.0
        for k in range(d):
            square += (np.float64(x[i, k]) - mean) ** 2
        means[i], squares[i] = mean, square


@compiled
def _scale_gamma(means: NDArray[Any], squares: NDArray[Any], chosen: NDArray[Any], d: int) -> float:
    """``1 / (d * Var)`` over all features of the chosen controls (Chan's sum of variances)."""
    mean = 0.0
    for i in chosen:
        mean += means[i]
    mean /= len(chosen)
    total = 0.0
    for i in chosen:
        total += squares[i] + d * (means[i] - mean) ** 2
    variance = total / (len(chosen) * d)
    return 1 / (d * variance) if variance > SMALLEST else 1.0


@compiled
def _kernel(
    distance: NDArray[Any], gamma: float, chosen: NDArray[Any], kernel: NDArray[Any], powers: NDArray[Any]
) -> None:
    """``exp(-gamma distance)`` among the chosen controls; 0 past them.

    2^t = 2^e 2^f with e = round(t): e goes into the exponent's bits, 2^f is its series (relative error 2e-7).

    Args:
        powers: ``(width,)`` int32 buffer.
    """
    n = len(chosen)
    width = -(-n // LANES) * LANES
    scale = np.float32(-gamma * 1.4426950408889634)  # log2(e)
    floats = powers.view(np.float32)
    for a in range(n):
        row, out = distance[chosen[a]], kernel[a]
        for b in range(n):
            out[b] = row[chosen[b]]
        for b in range(width):
            t = max(out[b] * scale, np.float32(-126))
            e = np.int32(t - np.float32(0.5))
            f = t - np.float32(e)
            powers[b] = (e + 127) << 23
            p = np.float32(1.5403530e-4)
            p = p * f + np.float32(1.3333558e-3)
            p = p * f + np.float32(9.6181291e-3)
            p = p * f + np.float32(5.5504109e-2)
            p = p * f + np.float32(2.4022651e-1)
            p = p * f + np.float32(6.9314718e-1)
            out[b] = (p * f + np.float32(1)) * floats[b]
        out[n:] = 0


@compiled
def _solve(kernel: NDArray[Any], nu: float, tol: float, weights: NDArray[Any]) -> float:
    """Minimise ``w K w / 2`` with ``0 <= w <= 1`` and ``sum w = nu n``.

    Args:
        kernel: ``(>= n, width)``.
        weights: ``(n,)``: where to begin, zeros for where libsvm does; becomes the solution.

    Returns:
        rho.
    """
    n = len(weights)
    width = -(-n // LANES) * LANES
    gradient = np.zeros(width)
    full = np.full(width, BIG)  # 0 where a weight can grow
    empty = np.full(width, BIG)  # 0 where a weight can shrink
    gains = np.empty(width, np.float32)  # they only choose

    left = nu * n
    total = weights.sum()
    if total > left:
        weights *= left / total
        left = 0.0
    else:
        left -= total
    for i in range(n):
        more = min(1.0 - weights[i], left)
        weights[i] += more
        left -= more
        full[i] = 0.0 if weights[i] < 1 else BIG
        empty[i] = 0.0 if weights[i] > 0 else BIG
        if weights[i] > 0:
            for t in range(width):
                gradient[t] += weights[i] * kernel[i, t]

    for _ in range(100000):
        lowest, highest = BIG, -BIG
        for t in range(width):
            lowest = min(lowest, gradient[t] + full[t])
            highest = max(highest, gradient[t] - empty[t])
        if highest - lowest < tol:
            break
        i = 0
        while gradient[i] + full[i] != lowest:
            i += 1
        row_i = kernel[i]
        best = np.float32(0)
        for t in range(width):
            gap = np.float32(max(gradient[t] - empty[t] - lowest, 0.0))
            gains[t] = gap * gap / max(2 - 2 * row_i[t], np.float32(1e-12))
        for t in range(width):  # apart from the loop above, which is vectorised without it
            best = max(best, gains[t])
        j = 0
        while gains[j] != best:
            j += 1
        row_j = kernel[j]
        step = (gradient[j] - gradient[i]) / max(2 - 2 * np.float64(row_i[j]), 1e-12)
        step = min(step, min(1 - weights[i], weights[j]))
        up, down = weights[i] + step, weights[j] - step
        if step == 1 - weights[i]:
            up = 1.0
        if step == weights[j]:
            down = 0.0
        weights[i], weights[j] = up, down
        full[i] = 0.0 if up < 1 else BIG
        empty[i] = 0.0
        full[j] = 0.0
        empty[j] = 0.0 if down > 0 else BIG
        for t in range(width):
            gradient[t] += step * (np.float64(row_i[t]) - np.float64(row_j[t]))

    free, total, low, high = 0, 0.0, -BIG, BIG
    for i in range(n):
        if weights[i] >= 1:
            low = max(low, gradient[i])
        elif weights[i] <= 0:
            high = min(high, gradient[i])
        else:
            free += 1
            total += gradient[i]
    rho: float = total / free if free > 0 else (low + high) / 2
    return rho
