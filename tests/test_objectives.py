"""Objectives that are measured beside the zoo's (``benchmarks/objectives.py``)."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.interpolate import RegularGridInterpolator

from benchmarks import objectives
from epizoo.models import synthetic


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    first = rng.uniform(0.2, 0.8, (6, 15, 15, 2)).astype(np.float32)
    partner = np.clip(first + rng.normal(scale=0.05, size=first.shape), 0.01, 1).astype(np.float32)
    return {"patch": tf.constant(first), "partner": tf.constant(partner)}


@pytest.mark.parametrize("shape", [(7,), (5, 9), (4, 6, 11)])
def test_values_at_knots_are_interpolated_linearly(shape):
    knots = np.random.default_rng(0).normal(size=(2, *[4] * len(shape))).astype(np.float32)
    at = np.stack(np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij"), -1)
    expected = [RegularGridInterpolator([range(4)] * len(shape), k)(at) for k in knots]
    np.testing.assert_allclose(synthetic.stretched(tf.constant(knots), shape), expected, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        objectives.Contrastive(directions=[-1, 1]),
        objectives.ContrastiveDeviations(modalities=["FLAIR"]),
    ],
    ids=["image", "deviations"],
)
def test_contrastive_loss_is_that_of_a_loop_over_pairs(model, batch):
    model.compile()
    loss = float(model.compute_losses(batch, training=False)["loss"])

    both = np.concatenate([batch["patch"], batch["partner"]])
    altered, where = model.alter(tf.constant(both), training=False)
    changed = np.asarray(where).any((1, 2, 3))
    assert 0 < changed.sum() < len(changed)

    def project(patches):
        code = np.asarray(model.segmenter(model.encoder(patches)))
        return code / np.linalg.norm(code, axis=1, keepdims=True)

    unit, other = project(both), project(altered)
    expected = []
    for i in range(6):
        alike = [np.exp(unit[i] @ unit[6 + j] / 0.1) for j in range(6)]
        edited = [np.exp(unit[i] @ other[j] / 0.1) for j in range(12) if changed[j]]
        expected.append(-np.log(alike[i] / (sum(alike) + sum(edited))))
    assert loss == pytest.approx(np.mean(expected), rel=1e-4)


def test_denoiser_removes_coarse_noise(batch):
    model = objectives.Denoising()
    model.compile()
    x = batch["patch"]
    knots = np.asarray(model.noise("coarse", (6, 2, 5, 5), training=False))
    at = np.stack(np.meshgrid(*[np.linspace(0, 4, 15)] * 2, indexing="ij"), -1)
    noise = [[RegularGridInterpolator([range(5)] * 2, k)(at) for k in channels] for channels in knots]
    x_hat = model.decoder(model.encoder(x + 0.2 * np.moveaxis(noise, 1, -1)))
    expected = np.mean(np.sum((x - x_hat) ** 2, (1, 2, 3)))
    assert float(model.compute_losses(batch, training=False)["loss"]) == pytest.approx(expected, rel=1e-4)
