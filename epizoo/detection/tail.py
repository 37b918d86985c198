"""How rare a score is among healthy people: the upper tail of the highest score of each control."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from epizoo.detection.interpolation import interp_in_graph
from tfds_epilepsy.errors import InputError

if TYPE_CHECKING:
    import tensorflow as tf

LEVEL = 0.10  # p under which a score is called rare
FEWEST = 3  # maxima
SAMPLES = 2000  # simulated fits, from which the doubt about a fit is known
MANY = 500  # maxima, whose fit leaves no doubt that matters
DISTANCES = np.linspace(-6, 100, 5301)  # from the location, in scales: where p is tabulated
SMALLEST = 1e-6  # scale, of maxima that are all alike
STEPS = 20  # of Newton's method; it has converged after a few


@dataclass(frozen=True)
class Tail:
    """The highest score of a healthy person, as a Gumbel distribution fitted to the highest of each control.

    The highest of the many values of a smooth map follows an extreme value distribution (Worsley et al. 1996,
    Hum Brain Mapp 4:58, derive it for Gaussian fields; it is fitted here, since score maps are none). So p is
    family-wise over the brain: a healthy person has a score of p = .05 or rarer *anywhere* with probability
    .05.

    Few controls leave doubt about the fit, and p has it in it, as that of a t test has the doubt about a
    standard deviation: it is the mean over fits to simulated samples of as many controls. Under
    ``1 / (controls + 1)`` it says what no control has shown, and rests on the form of the distribution.

    Attributes:
        location, scale: of the Gumbel distribution, in units of the score.
        controls: how many it was fitted to.

    >>> tail = Tail.fit([5.1, 4.4, 6.0, 5.2, 4.9, 4.7])
    >>> round(float(tail.p(6.0)), 2), round(tail.level(0.1), 1)
    (0.16, 6.4)
    """

    location: float
    scale: float
    controls: int

    @classmethod
    def fit(cls, maxima: ArrayLike) -> Tail:
        """Fit by maximum likelihood.

        Args:
            maxima: ``(n,)``, the highest score of each control, by a detector that had not seen it.

        Raises:
            InputError: fewer than three, one that is not finite.
        """
        values = np.asarray(maxima, np.float64)
        if values.ndim != 1 or len(values) < FEWEST or not np.isfinite(values).all():
            raise InputError(
                f"highest scores {values.tolist()}: those of at least {FEWEST} controls, finite, are needed."
            )
        location, scale = _gumbel(values[None])
        return cls(float(location[0]), float(scale[0]), len(values))

    def p(self, scores: ArrayLike) -> NDArray[np.float64]:
        """The probability that a healthy person has as high a score anywhere, in the shape of the scores."""
        distances = (np.asarray(scores, np.float64) - self.location) / self.scale
        return np.exp(np.interp(distances, DISTANCES, _log_p(self.controls)))

    def p_in_graph(self, scores: tf.Tensor) -> tf.Tensor:
        """``p`` in TensorFlow operations, float32."""
        import tensorflow as tf

        distances = (tf.cast(scores, tf.float64) - self.location) / self.scale
        return tf.cast(tf.exp(interp_in_graph(distances, DISTANCES, _log_p(self.controls))), tf.float32)

    def level(self, p: float) -> float:
        """The score that a healthy person has anywhere with probability p.

        Raises:
            InputError: p is not between 0 and 1.
        """
        if not 0 < p < 1:
            raise InputError(f"p={p}: a probability between 0 and 1 is needed.")
        distance = np.interp(-np.log(p), -_log_p(self.controls), DISTANCES)
        return float(self.location + self.scale * distance)


@lru_cache(maxsize=32)
def _log_p(controls: int) -> NDArray[np.float64]:
    """The log of p at each of ``DISTANCES``, of a fit to some controls."""
    locations, scales = np.zeros(1), np.ones(1)
    if controls <= MANY:
        samples = np.random.default_rng(controls).gumbel(size=(SAMPLES, controls))
        locations, scales = _gumbel(samples)
    p = np.zeros(len(DISTANCES))
    for location, scale in zip(locations, scales, strict=True):
        p -= np.expm1(-np.exp(-(location + scale * DISTANCES)))
    return np.log(p / len(locations))


def _gumbel(samples: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Location and scale ``(s,)`` of the Gumbel distribution that makes each of ``(s, n)`` likeliest.

    The scale solves ``b = mean(x) - sum(x w) / sum(w)``, ``w = exp(-x / b)``; Newton's method on its log,
    from the moments.
    """
    x = samples - samples.mean(1, keepdims=True)
    log_scale = np.log(np.maximum(x.std(1), SMALLEST) * np.sqrt(6) / np.pi)
    for _ in range(STEPS):
        scale = np.exp(log_scale)[:, None]
        weights = np.exp(-(x - x.min(1, keepdims=True)) / scale)
        weights /= weights.sum(1, keepdims=True)
        mean = (weights * x).sum(1)
        spread = (weights * x**2).sum(1) - mean**2
        wrong = np.exp(log_scale) + mean
        slope = np.exp(log_scale) + spread / np.exp(log_scale)
        log_scale = np.maximum(log_scale - np.clip(wrong / slope, -1, 1), np.log(SMALLEST))
    scale = np.exp(log_scale)
    low = x.min(1)
    location = low - scale * np.log(np.exp(-(x - low[:, None]) / scale[:, None]).mean(1))
    return location + samples.mean(1), scale
