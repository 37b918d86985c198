"""Losses: pure functions of tensors, with formula and paper.

Each returns one value per sample, ``(n,)``, unless its docstring says otherwise, in float32, whatever the
precision of the networks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Tensor = Any


def squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """``||x - x_hat||^2``: squared error summed over the patch (Alaverdyan et al. 2020, equation 1)."""
    return tf.reduce_sum(_flat(x - x_hat) ** 2, -1)


def mean_squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """``1/n ||x - x_hat||^2``: squared error averaged over the patch (Schlegl et al. 2019, equation 3)."""
    return tf.reduce_mean(_flat(x - x_hat) ** 2, -1)


def mean_absolute_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """``1/n ||x - x_hat||_1``: absolute error averaged over the patch."""
    return tf.reduce_mean(tf.abs(_flat(x - x_hat)), -1)


def absolute_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """``||x - x_hat||_1``: absolute error summed over the patch."""
    return tf.reduce_sum(tf.abs(_flat(x - x_hat)), -1)


def cosine_similarity(z1: Tensor, z2: Tensor) -> Tensor:
    """``z1 . z2 / (||z1|| ||z2||)``, 0 where a code is all zero (Alaverdyan et al. 2020, equation 1)."""
    return tf.reduce_sum(_unit(z1) * _unit(z2), -1)


def kl_divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """``KL(N(mean, exp(log_var)) || N(0, I)) = 1/2 sum(mean^2 + exp(log_var) - log_var - 1)``.

    Kingma & Welling 2014, arXiv 1312.6114, appendix B.
    """
    mean, log_var = _flat(mean), _flat(log_var)
    return 0.5 * tf.reduce_sum(mean**2 + tf.exp(log_var) - log_var - 1, -1)


def binary_cross_entropy(y: Tensor, logit: Tensor) -> Tensor:
    """``-y log p - (1 - y) log(1 - p)``, ``p = sigmoid(logit)``, of each element: the shape of both."""
    return tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(y, tf.float32), tf.cast(logit, tf.float32))


def mmd(z: Tensor, prior: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of two samples, unbiased; a scalar.

    Kernel ``k(a, b) = sum_s C_s / (C_s + ||a - b||^2)``, ``C_s = 2 d s``, s in (.1, .2, .5, 1, 2, 5, 10):
    the inverse multiquadrics of Tolstikhin et al. 2018, arXiv 1711.01558, section 4. A sample's value may
    be below 0. One code makes no sample: 0.

    Args:
        z: ``(n, d)`` codes.
        prior: ``(n, d)`` draws of the prior, N(0, I).
    """
    z, prior = tf.cast(z, tf.float32), tf.cast(prior, tf.float32)
    n = tf.cast(tf.shape(z)[0], tf.float32)
    scale = 2.0 * z.shape[-1]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        # Differences, not a^2 + b^2 - 2ab: equal codes give exactly 0.
        distance = tf.reduce_sum((a[:, None] - b[None]) ** 2, -1)
        return tf.add_n([scale * s / (scale * s + distance) for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)])

    def off_diagonal(k: Tensor) -> Tensor:
        return (tf.reduce_sum(k) - tf.linalg.trace(k)) / tf.maximum(n * (n - 1), 1.0)

    discrepancy = (
        off_diagonal(kernel(z, z)) + off_diagonal(kernel(prior, prior)) - 2 * tf.reduce_mean(kernel(z, prior))
    )
    return tf.where(n > 1, discrepancy, 0.0)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """``max(0, 1 - D(x)) + max(0, 1 + D(G(z)))`` (Lim & Ye 2017, arXiv 1705.02894)."""
    return tf.nn.relu(1.0 - _logit(real)) + tf.nn.relu(1.0 + _logit(fake))


def hinge_generator(fake: Tensor) -> Tensor:
    """``-D(G(z))`` (Lim & Ye 2017); also the generator's side of the Wasserstein loss."""
    return -_logit(fake)


def non_saturating_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """``-log s(D(x)) - log(1 - s(D(G(z))))``, s the sigmoid, D a logit (Goodfellow et al. 2014)."""
    return tf.nn.softplus(-_logit(real)) + tf.nn.softplus(_logit(fake))


def non_saturating_generator(fake: Tensor) -> Tensor:
    """``-log s(D(G(z)))`` (Goodfellow et al. 2014, section 3)."""
    return tf.nn.softplus(-_logit(fake))


def wasserstein_critic(real: Tensor, fake: Tensor) -> Tensor:
    """``D(G(z)) - D(x)`` (Arjovsky et al. 2017, arXiv 1701.07875)."""
    return _logit(fake) - _logit(real)


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """``(||grad D(x')|| - 1)^2`` at ``x' = mix x + (1 - mix) G(z)``.

    Gulrajani et al. 2017, arXiv 1704.00028.

    Args:
        critic: patches to scores ``(n, 1)``.
        real, fake: patches ``(n, ...)``.
        mix: ``(n,)`` in [0, 1], uniform.
    """
    mix = tf.reshape(mix, (-1,) + (1,) * (len(real.shape) - 1))
    gradient = _input_gradient(critic, mix * real + (1.0 - mix) * fake)
    # The root's slope at 0 is infinite: a floor keeps NaN out of a critic that is flat somewhere.
    norm = tf.sqrt(tf.reduce_sum(gradient**2, -1) + 1e-12)
    return (norm - 1.0) ** 2


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """``||grad D(x)||^2`` at real patches (Mescheder et al. 2018, arXiv 1801.04406, without gamma/2)."""
    return tf.reduce_sum(_input_gradient(discriminator, real) ** 2, -1)


def _input_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(_logit(function(x)))
    return _flat(tape.gradient(value, x))


def _flat(x: Tensor) -> Tensor:
    x = tf.cast(x, tf.float32)
    return tf.reshape(x, (tf.shape(x)[0], -1))


def _logit(x: Tensor) -> Tensor:
    return tf.reshape(tf.cast(x, tf.float32), (-1,))


def _unit(z: Tensor) -> Tensor:
    return tf.math.l2_normalize(tf.cast(z, tf.float32), -1)
