"""The model deviation: the changes that it learns from, and that it finds what controls do not do."""

import numpy as np
import pytest
import tensorflow as tf

import epizoo


def test_changes_are_blobs_of_known_size_that_mostly_go_the_way_of_lesions():
    one = epizoo.create(
        "deviation", patch_shape=(9, 9, 9), channels=3, latent_dim=4, filters=4, modalities=["T1w", "FLAIR"]
    )
    one.compile()
    x = np.random.default_rng(0).normal(size=(600, 9, 9, 9, 3)).astype(np.float32)
    x[:, :2] = 0  # outside the brain
    made, where = (value.numpy() for value in one.alter(tf.constant(x)))
    change = made - x
    assert not change[:, :2].any()
    largest = change.reshape(600, -1, 3)
    largest = np.take_along_axis(largest, np.abs(largest).argmax(1)[:, None], 1)[:, 0]
    sizes = np.abs(largest[np.abs(largest) > 0.35])
    assert sizes.max() <= 4.001
    assert np.median(sizes) == pytest.approx(np.sqrt(0.4 * 4), rel=0.25)
    altered = where.any((1, 2, 3, 4))
    assert altered.mean() == pytest.approx(0.5 * (1 - 0.4**3), abs=0.06)
    assert not change[~where.any((1, 2, 3, 4)) & (np.abs(change).max((1, 2, 3, 4)) > 0.5)].any()
    up = [(largest[:, k] > 0.1).sum() / (np.abs(largest[:, k]) > 0.1).sum() for k in range(3)]
    assert up[0] == pytest.approx(1 / 7, abs=0.06)
    assert up[1] == pytest.approx(6 / 7, abs=0.06)
    assert up[2] == pytest.approx(6 / 7, abs=0.06)


def test_it_learns_to_find_what_controls_do_not_do():
    """Noise that is smooth along x is normal; what is raised in a blob is not."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 13, 9, 9, 1)).astype(np.float32)
    x = (x[:, :-4] + x[:, 1:-3] + x[:, 2:-2] + x[:, 3:-1] + x[:, 4:]) / np.float32(np.sqrt(5))
    one = epizoo.create(
        "deviation", patch_shape=(9, 9, 9), channels=1, latent_dim=8, filters=8, modalities=[]
    )
    one.compile()
    data = tf.data.Dataset.from_tensor_slices({"patch": x}).repeat().batch(16)
    one.fit(data, steps_per_epoch=150, verbose=0)
    blob = np.exp(-((np.stack(np.meshgrid(*[np.arange(-4, 5)] * 3)) / 2.5) ** 2).sum(0))[..., None]
    raised = one.head(one.encode(x + 2 * blob.astype(np.float32))).numpy()
    assert (raised > one.head(one.encode(x)).numpy()).mean() > 0.9
