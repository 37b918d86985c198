import math

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit
from scipy.stats import norm

from epizoo.models import losses


def test_squared_error_is_summed_over_the_patch():
    x = np.zeros((2, 2, 2, 1))
    x_hat = np.array([[[[1.0], [2]], [[0], [0]]], [[[0], [0]], [[0], [-3]]]])
    assert np.array_equal(losses.squared_error(x, x_hat), [5, 9])
    assert np.array_equal(losses.absolute_error(x, x_hat), [3, 3])


def test_half_precision_is_summed_in_single():
    x = tf.fill((1, 100, 100, 1), tf.constant(0.5, tf.bfloat16))
    assert float(losses.squared_error(x, tf.zeros_like(x))[0]) == 2500


def test_cosine_similarity_of_worked_codes():
    z1 = np.array([[3.0, 4], [1, 0], [2, 2], [0, 0]])
    z2 = np.array([[4.0, 3], [0, 5], [-1, -1], [1, 1]])
    assert np.allclose(losses.cosine_similarity(z1, z2), [24 / 25, 0, -1, 0], atol=1e-6)


def test_kl_divergence_of_worked_gaussians():
    # N(1, 1): 1/2. N(0, 4): (4 - ln 4 - 1) / 2.
    assert np.allclose(
        losses.kl_divergence([[1.0, 0.0], [0.0, 0.0]], [[0.0, math.log(4)], [0.0, 0.0]]),
        [0.5 + (3 - math.log(4)) / 2, 0],
    )


def test_kl_divergence_equals_its_integral():
    mean, log_var = 0.7, -0.9
    x = np.linspace(-8, 8, 20001)
    p = norm.pdf(x, mean, math.exp(log_var / 2))
    integral = np.trapezoid(p * (np.log(p + 1e-300) - norm.logpdf(x)), x)
    assert float(losses.kl_divergence([[mean]], [[log_var]])[0]) == pytest.approx(integral, rel=1e-4)


def test_mmd_equals_the_loops_over_all_pairs():
    rng = np.random.default_rng(0)
    n, d = 7, 3
    z, prior = rng.normal(1, 2, size=(n, d)), rng.normal(size=(n, d))

    def k(a, b):
        return sum(2 * d * s / (2 * d * s + ((a - b) ** 2).sum()) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))

    within = sum(k(a[i], a[j]) for a in (z, prior) for i in range(n) for j in range(n) if i != j) / (
        n * (n - 1)
    )
    across = 2 * sum(k(a, b) for a in z for b in prior) / n**2
    assert float(losses.mmd(z, prior)) == pytest.approx(within - across, rel=1e-4)


def test_mmd_is_near_zero_for_one_distribution_only():
    rng = np.random.default_rng(1)
    prior = rng.normal(size=(400, 4))
    same = float(losses.mmd(rng.normal(size=(400, 4)), prior))
    shifted = float(losses.mmd(rng.normal(1, 1, size=(400, 4)), prior))
    assert abs(same) < 0.02
    assert shifted > 0.2


REAL, FAKE = np.array([[2.0], [0.5], [-1.0]]), np.array([[-2.0], [0.25], [3.0]])


def test_hinge_losses_of_worked_scores():
    # max(0, 1 - real) = 0, .5, 2; max(0, 1 + fake) = 0, 1.25, 4.
    assert np.allclose(losses.hinge_discriminator(REAL, FAKE), [0, 1.75, 6])
    assert np.allclose(losses.hinge_generator(FAKE), [2, -0.25, -3])


def test_non_saturating_losses_are_cross_entropies():
    expected = -np.log(expit(REAL)) - np.log(1 - expit(FAKE))
    assert np.allclose(losses.non_saturating_discriminator(REAL, FAKE), expected[:, 0], atol=1e-5)
    assert np.allclose(losses.non_saturating_generator(FAKE), -np.log(expit(FAKE))[:, 0], atol=1e-5)


def test_wasserstein_critic_of_worked_scores():
    assert np.allclose(losses.wasserstein_critic(REAL, FAKE), [-4, -0.25, 4])


def test_gradient_penalty_of_a_quadratic_critic():
    # D(x) = ||x||^2 / 2 has gradient x; halfway between (0, 0) and (6, 8) that is (3, 4), of norm 5.
    real, fake = tf.zeros((2, 2)), tf.constant([[6.0, 8.0], [0.6, 0.8]])
    penalty = losses.gradient_penalty(
        lambda x: tf.reduce_sum(x**2, -1, keepdims=True) / 2, real, fake, tf.constant([0.5, 0.0])
    )
    assert np.allclose(penalty, [16, 0], atol=1e-5)


def test_gradient_penalty_of_a_flat_critic_has_a_gradient():
    weight = tf.Variable(0.0)
    with tf.GradientTape() as tape:
        penalty = losses.gradient_penalty(
            lambda x: weight * tf.reduce_sum(x, -1, keepdims=True),
            tf.ones((2, 3)),
            tf.zeros((2, 3)),
            tf.constant([0.3, 0.6]),
        )
    assert np.allclose(penalty, 1, atol=1e-5)
    assert np.isfinite(tape.gradient(penalty, weight))


def test_r1_penalty_of_a_quadratic_discriminator():
    x = tf.constant([[[[1.0], [2.0]]], [[[3.0], [0.0]]]])
    penalty = losses.r1_penalty(lambda x: tf.reduce_sum(x**2, [1, 2, 3])[:, None] / 2, x)
    assert np.allclose(penalty, [5, 9])


def test_mean_errors_do_not_depend_on_the_size_of_the_patch():
    x, x_hat = np.zeros((2, 2, 2, 1), np.float32), np.array([[[1, 1], [1, 1]], [[0, 0], [0, 2]]], np.float32)
    assert np.allclose(losses.mean_squared_error(x, x_hat[..., None]), [1, 1])
    assert np.allclose(losses.mean_absolute_error(x, x_hat[..., None]), [1, 0.5])


def test_binary_cross_entropy_of_hand_worked_logits():
    assert np.allclose(losses.binary_cross_entropy([1, 0], np.log([3.0, 1.0])), np.log([4 / 3, 2]))
