"""What sets the adversarial models apart; what they share is in test_models.py."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import epizoo
from epizoo.models.context_gan import ContextGAN
from tfds_epilepsy.errors import InputError

RNG = np.random.default_rng(0)


def patches(n, *shape):
    return RNG.random((n, *shape), dtype=np.float32)


def batches(x, **others):
    return tf.data.Dataset.from_tensors({"patch": x, **others}).repeat()


# === BiGAN ===


@pytest.mark.slow
def test_bigan_learns_to_invert_itself():
    """Bars of three widths, at two brightnesses: codes of patches give the patches back.

    At the model's own width: with 8 filters it depended on seed and processor whether they did.
    """
    x = np.stack([np.full((5, 5, 1), v, np.float32) * (np.arange(5) < w)[:, None, None]
                  for v in (0.3, 0.9) for w in (1, 3, 5)] * 4)  # fmt: skip
    model = epizoo.create("bigan", patch_shape=(5, 5), channels=1, latent_dim=4, r1=1.0)
    model.compile()
    before = np.mean((model.reconstruct(x) - x) ** 2)
    model.fit(batches(x), steps_per_epoch=1000, verbose=0)
    assert np.mean((model.reconstruct(x) - x) ** 2) < 0.2 * min(before, x.var())


def test_bigan_discriminator_judges_patch_and_code():
    model = epizoo.create("bigan", patch_shape=(5, 5), channels=1, latent_dim=4)
    x, z = patches(2, 5, 5, 1), RNG.standard_normal((2, 4)).astype(np.float32)
    logits = [np.asarray(model.discriminator([x[[i]], z[[j]]])) for i in (0, 1) for j in (0, 1)]
    assert len(np.unique(np.round(logits, 6))) == 4


# === Context GAN ===


@pytest.fixture(scope="module")
def context_gan():
    return ContextGAN((15, 15), 1, 8, filters=8)


def test_surround_is_pooled_and_the_centre_cut_out(context_gan):
    x = patches(3, 15, 15, 1)
    centre, (surround,) = context_gan._views(tf.constant(x))
    assert np.array_equal(centre, x[:, 5:10, 5:10])
    expected = x.reshape(3, 5, 3, 5, 3, 1).mean((2, 4))
    expected[:, 1:4, 1:4] = 0  # voxels 3 to 11: the pooled ones that reach into the centre, 5 to 9
    assert np.allclose(surround, expected, atol=1e-6)


def test_two_scales_see_nested_surrounds():
    model = ContextGAN((25, 25), 1, 8, scales=(3, 5), filters=4)
    assert model.centre_shape == (5, 5)
    _, (near, far) = model._views(tf.ones((1, 25, 25, 1)))
    assert near.shape == far.shape == (1, 5, 5, 1)
    # 15 voxels in fives of 3, 25 in fives of 5: the centre touches three of the one, one of the other.
    assert float(tf.reduce_sum(near)) == 25 - 9
    assert float(tf.reduce_sum(far)) == 25 - 1


def test_generator_does_not_see_the_centre_that_it_makes(context_gan):
    a, b = patches(1, 15, 15, 1), patches(1, 15, 15, 1)
    b_around_a = b.copy()
    b_around_a[:, 3:12, 3:12] = a[:, 3:12, 3:12]
    made = context_gan.imagine(np.repeat(b, 3, 0)), context_gan.imagine(np.repeat(b_around_a, 3, 0))
    assert np.allclose(made[0][:, 5:10, 5:10], made[1][:, 5:10, 5:10], atol=1e-6)
    other = context_gan.imagine(np.repeat(a, 3, 0))
    assert not np.allclose(made[0][:, 5:10, 5:10], other[:, 5:10, 5:10], atol=1e-4)


def test_reconstruction_leaves_the_surround_alone(context_gan):
    x = patches(2, 15, 15, 1)
    made = context_gan.reconstruct(x)
    changed = made != x
    assert changed[:, 5:10, 5:10].all()
    changed[:, 5:10, 5:10] = False
    assert not changed.any()


def test_code_is_read_from_centre_and_surround(context_gan):
    x = patches(1, 15, 15, 1)
    other_centre, other_surround = x.copy(), x.copy()
    other_centre[:, 7, 7] += 0.5
    other_surround[:, 0, 0] += 0.5
    code, *others = context_gan.encode(np.concatenate([x, other_centre, other_surround]))
    assert all(np.abs(code - other).max() > 1e-4 for other in others)


def test_context_gan_without_its_parts():
    x, position = patches(4, 9, 9, 1), np.zeros((4, 3), np.float32)
    for parts in ({"scales": ()}, {"position": False}, {"adversarial": False}):
        model = ContextGAN((9, 9), 1, 4, filters=4, **parts)
        model.compile(run_eagerly=True)
        data = {"position": position} if model.position else {}
        history = model.fit(batches(x, **data), steps_per_epoch=1, verbose=0).history
        assert ("d_loss" in history) == model.adversarial
        assert np.isfinite(list(history.values())).all()
    assert ContextGAN((9, 9), 1, 4, scales=()).centre_shape == (9, 9)


def test_missing_position_is_named(context_gan):
    with pytest.raises(InputError, match="'position' in each batch, received patch"):
        context_gan.check_batch({"patch": tf.zeros((2, 15, 15, 1))})


def test_scales_that_leave_no_surround_are_named():
    with pytest.raises(InputError, match="scale 1: at least 2"):
        ContextGAN((15, 15), scales=(1, 3))
    with pytest.raises(InputError, match="no surround"):
        ContextGAN((3, 3))


# === DCGAN ===


def test_dcgan_code_is_a_fixed_rotation_of_the_features():
    model = epizoo.create("dcgan", patch_shape=(9, 9), channels=1, latent_dim=8, filters=4)
    model.compile(run_eagerly=True)
    projection = model.encoder.get_layer("latent").kernel.numpy()
    assert np.allclose(projection.T @ projection, np.eye(8), atol=1e-5)
    x = patches(4, 9, 9, 1)
    before = model.encode(x)
    model.fit(batches(x), steps_per_epoch=2, verbose=0)
    assert np.array_equal(model.encoder.get_layer("latent").kernel, projection)
    code = np.asarray(model.features(x)) @ projection
    assert np.allclose(model.encode(x), code, atol=1e-5)
    assert not np.allclose(code, before)


def test_original_dcgan_follows_its_recipe():
    model = epizoo.create("original_dcgan", patch_shape=(15, 15), channels=1, latent_dim=8)
    model.compile(run_eagerly=True)
    weights = [*model.live_features.weights, *model.live_generator.weights, *model.classifier.weights]
    drawn = np.concatenate([w.numpy().ravel() for w in weights if w.name == "kernel"])
    assert drawn.std() == pytest.approx(0.02, rel=0.02)
    assert np.abs(drawn).max() < 0.12
    norms = {
        name: sum(isinstance(one, keras.layers.BatchNormalization) for one in getattr(model, name).layers)
        for name in ("live_features", "live_generator")
    }
    assert norms == {"live_features": 2, "live_generator": 3}  # not on D's first layer nor on G's last
    strides = [one.strides for one in model.live_features.layers if isinstance(one, keras.layers.Conv2D)]
    assert strides == [(2, 2)] * 3
    for optimizer in (model.d_optimizer, model.g_optimizer):
        assert float(optimizer.learning_rate) == pytest.approx(2e-4)
        assert (optimizer.beta_1, optimizer.beta_2) == (0.5, 0.999)
    assert "r1" not in model.get_config()
    history = model.fit(batches(patches(8, 15, 15, 1)), steps_per_epoch=2, verbose=0).history
    assert set(history) == {"d_loss", "g_loss"}
    # Statistics of batches go on in G's step, past what D learnt in its own.
    last = zip(model.features.weights, model.live_features.weights, strict=True)
    assert all(np.array_equal(a, b) for a, b in last if b.trainable)


# === f-AnoGAN ===


@pytest.mark.slow
def test_f_anogan_encoder_learns_against_a_generator_that_it_leaves_alone():
    model = epizoo.create(
        "f_anogan", patch_shape=(5, 5), channels=1, latent_dim=4, filters=8, kappa=0.0, critic_steps=1
    )
    still = {name: keras.optimizers.SGD(0.0) for name in ("g_optimizer", "c_optimizer")}
    model.compile(**still, e_optimizer=keras.optimizers.RMSprop(1e-3))
    made = model.generate(16)
    before = np.mean((model.reconstruct(made) - made) ** 2)
    history = model.fit(batches(made), steps_per_epoch=200, epochs=2, verbose=0).history
    assert np.allclose(model.generate(16), made, atol=1e-5)  # an average of equal values, rounded
    assert history["e_loss"][1] < history["e_loss"][0]
    assert np.mean((model.reconstruct(made) - made) ** 2) < 0.6 * before
