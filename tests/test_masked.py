"""The masked autoencoder; what it shares with every model is in test_models.py."""

import numpy as np
import pytest
import tensorflow as tf

import epizoo
from tfds_epilepsy.errors import InputError


def loss(model, x):
    return float(model.compute_losses({"patch": x}, training=False)["loss"])


@pytest.mark.parametrize(("shape", "block"), [((15, 15), 3), ((7, 9), 4), ((5, 7, 7), 3)])
def test_it_is_blind_to_what_it_is_asked_for(shape, block):
    x = np.random.default_rng(0).uniform(0.2, 0.8, (6, *shape, 2)).astype(np.float32)
    model = epizoo.create("masked", patch_shape=shape, block=block)
    model.compile()
    counts = [-(-n // block) for n in shape]
    mask = np.asarray(model.uniform("mask", (6, *counts, 1), training=False)) < 0.6
    for axis in range(1, len(shape) + 1):
        mask = np.repeat(mask, block, axis)
    spare = [(n * block - size) // 2 for n, size in zip(counts, shape, strict=True)]
    mask = mask[(slice(None), *(slice(s, s + n) for s, n in zip(spare, shape, strict=True)))]
    x_hat = model.decoder(model.encoder(np.where(mask, 0, x)))
    expected = np.mean(np.sum(np.where(mask, x - x_hat, 0) ** 2, tuple(range(1, x.ndim))))
    assert loss(model, x) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_it_fills_in_what_it_does_not_see():
    """Patches of one brightness: what is hidden is as bright as what is seen."""
    level = np.random.default_rng(0).uniform(0.2, 0.8, (256, 1, 1, 1)).astype(np.float32)
    x = np.tile(level, (1, 9, 9, 1))
    model = epizoo.create("masked", patch_shape=(9, 9), channels=1, latent_dim=8)
    model.compile()
    before = loss(model, x)
    model.fit(tf.data.Dataset.from_tensors({"patch": x}).repeat(), steps_per_epoch=200, verbose=0)
    assert loss(model, x) < 0.1 * before


@pytest.mark.parametrize("config", [{"hidden": 0.0}, {"hidden": 1.0}, {"block": 0}])
def test_numbers_out_of_range_are_refused(config):
    with pytest.raises(InputError, match="between 0 and 1"):
        epizoo.create("masked", **config)
