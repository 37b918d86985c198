"""Alterations of synthetic: each kind against scipy or by hand, where they are, that they are found."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage
from sklearn.metrics import roc_auc_score

import epizoo
from epizoo.models import synthetic
from tfds_epilepsy.errors import InputError

RNG = np.random.default_rng(0)


def patches(n, *shape):
    return RNG.random((n, *shape), dtype=np.float32)


def batches(x, **others):
    return tf.data.Dataset.from_tensors({"patch": x, **others}).repeat()


@pytest.mark.parametrize("shape", [(7, 9), (5, 7, 5)], ids=str)
def test_interpolation_equals_scipy(shape):
    x = patches(2, *shape, 2)
    at = RNG.uniform(-1, 9, (2, *shape, len(shape))).astype(np.float32)
    made = synthetic.interpolate(x, at).numpy()
    for i in range(2):
        for m in range(2):
            expected = ndimage.map_coordinates(
                x[i, ..., m], np.moveaxis(at[i], -1, 0), order=1, mode="nearest"
            )
            assert np.allclose(made[i, ..., m], expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 9), (5, 7, 5)], ids=str)
def test_smoothing_equals_scipy(shape):
    x = patches(2, *shape, 1)
    sigma = np.array([0.6, 1.1], np.float32).reshape(2, *[1] * (len(shape) + 1))
    made = synthetic.gaussian(x, tf.constant(sigma))[..., 0]
    for i in range(2):
        expected = ndimage.gaussian_filter(x[i, ..., 0], sigma.ravel()[i], radius=2, mode="reflect")
        assert np.allclose(made[i], expected, atol=1e-5)


def column(*values):
    """A value a patch, as the edits take them in 2D."""
    return tf.reshape(tf.constant(values, tf.float32), (-1, 1, 1, 1))


def test_tissue_is_magnified_about_a_point():
    x = np.zeros((1, 11, 11, 1), np.float32)
    x[0, 4:7] = 1  # a bar of three voxels
    everywhere, centre = tf.ones((1, 11, 11, 1)), tf.zeros((1, 1, 1, 2))
    thick = synthetic.warped(tf.constant(x), everywhere, column(2.0), centre, 0.0).numpy()
    thin = synthetic.warped(tf.constant(x), everywhere, column(0.5), centre, 0.0).numpy()
    assert thick[0, :, 5, 0].sum() == pytest.approx(6, abs=0.1)
    assert thin[0, :, 5, 0].sum() == pytest.approx(1.5, abs=0.6)
    same = synthetic.warped(tf.constant(x), 0 * everywhere, column(2.0), centre, 0.0)
    assert np.array_equal(same, x)


def test_tissue_grows_into_its_surroundings_and_no_further():
    x = np.full((1, 21, 21, 1), 0.8, np.float32)
    x[0, 9:12] = 0.5  # a bar of three voxels
    weight = np.zeros((1, 21, 21, 1), np.float32)
    weight[:, :, :11] = 1
    made = synthetic.grown(
        tf.constant(x), tf.constant(weight), column(0.5), column(0.05), column(1.0)
    ).numpy()
    assert (made[0, [8, 12], :5] < 0.68).all()  # the next voxels
    assert np.allclose(made[0, [5, 15], :5], 0.8, atol=0.01)
    assert np.allclose(made[0, 10], 0.5, atol=0.02)
    assert np.array_equal(made[0, :, 11:], x[0, :, 11:])


@pytest.mark.parametrize("shape", [(33, 33), (31, 9, 7)], ids=str)
def test_the_noise_of_patches_is_measured_between_edges(shape):
    x = np.full((3, *shape, 2), 0.5, np.float32)
    x[:, :, ::6] = 0.7  # edges along the second axis, and some along the first
    x[:, 5:] += 0.1
    sd = np.array([[0.01, 0.03], [0.02, 0.002], [0.05, 0.01]]).reshape(3, *[1] * len(shape), 2)
    noisy = (x + sd * RNG.normal(size=x.shape)).astype(np.float32)
    noisy[2, 3:] = 0  # hardly any brain is left
    level = synthetic.noise_level(tf.constant(noisy)).numpy()
    assert level.shape == sd.shape
    assert np.allclose(level[:2], sd[:2], rtol=0.3)
    assert np.isfinite(level).all()


@pytest.mark.parametrize("edit", ["foreign", "warped", "blurred"])
def test_edits_leave_the_noise_as_it_was(edit):
    sd = 0.03
    x, other, grain = (tf.constant(sd * RNG.normal(size=(4, 41, 41, 1)), tf.float32) for _ in range(3))
    weight, values = (
        0.7 * tf.ones((4, 41, 41, 1)),
        {
            "foreign": (0.5 + other, column(*[0] * 4), column(*[0.6] * 4)),
            "warped": (column(*[1.3] * 4), tf.zeros((4, 1, 1, 2))),
            "blurred": (column(*[0.9] * 4),),
        },
    )
    made = getattr(synthetic, edit)(0.5 + x, weight, *values[edit], grain).numpy()
    without = getattr(synthetic, edit)(0.5 + x, weight, *values[edit], 0.0).numpy()
    assert without.std() < 0.85 * sd
    assert made.std() == pytest.approx(sd, rel=0.04)


def test_light_keeps_brain_and_background():
    x = np.zeros((2, 5, 5, 1), np.float32)
    x[:, 2:] = 0.001
    x[:, 3:] = 0.5
    made = synthetic.relit(x, 0.1, -0.02).numpy()
    assert np.allclose(made[:, 3:], 0.53)
    assert (made[:, 2] > 0).all()
    assert not made[:, :2].any()


def test_shift_and_tint_scale_what_they_should():
    x = np.full((1, 3, 3, 2), 0.5, np.float32)
    x[0, 0] = 0.9
    weight, gain = tf.ones((1, 3, 3, 1)), tf.constant([[[[0.1, -0.2]]]])
    assert np.allclose(synthetic.shifted(x, weight, gain), x * [1.1, 0.8])
    made = synthetic.tinted(
        x, weight, gain, tf.fill((1, 1, 1, 2), 0.5), tf.constant([[[[1.0, 0]]]]), column(0.1)
    ).numpy()
    assert np.allclose(made[0, 1:], x[0, 1:] * [1.1, 0.8])
    far = np.exp(-0.5 * 4**2)
    assert np.allclose(made[0, 0], x[0, 0] * [1 + 0.1 * far, 1 - 0.2 * far])


def test_replaced_tissue_takes_another_signal_and_keeps_its_texture():
    x = (0.4 + 0.05 * RNG.normal(size=(1, 41, 41, 1))).astype(np.float32)
    weight = tf.ones((1, 41, 41, 1))
    made = synthetic.replaced(x, weight, column(0.8), column(1.0)).numpy()
    assert made.mean() == pytest.approx(0.8, abs=0.01)
    assert 0.5 * x.std() < made.std() < x.std()
    assert np.array_equal(
        synthetic.replaced(x, weight, column(0.0), column(1.0)), x
    )  # background is no tissue


def test_foreign_tissue_is_another_patch_of_the_batch():
    x = patches(5, 7, 7, 1)
    other = synthetic.neighbour(x)
    assert np.array_equal(other, x[[1, 0, 3, 2, 3]])
    weight = tf.ones((5, 7, 7, 1))
    none, all_ = column(*[0] * 5), column(*[1] * 5)
    assert np.allclose(synthetic.foreign(x, weight, other, none, all_, 0.0), other)
    x = 0.4 + 0.2 * x
    fitted = synthetic.foreign(x, weight, synthetic.neighbour(x), all_, all_, 0.0).numpy()
    assert np.allclose(fitted.mean((1, 2)), x.mean((1, 2)), atol=1e-5)
    assert not np.allclose(fitted, x, atol=0.01)


@pytest.fixture(scope="module", params=[(15, 15), (9, 11, 9)], ids=str)
def altered(request):
    model = epizoo.create("synthetic", patch_shape=request.param, channels=2, latent_dim=8, filters=8)
    model.compile()
    x = 0.2 + 0.6 * patches(300, *request.param, 2)
    x[:, :2] = 0
    made, where = (value.numpy() for value in model.alter(tf.constant(x)))
    return x, made, where[..., 0] > 0


def test_most_shifts_go_the_way_that_lesions_change_a_modality():
    model = epizoo.create("synthetic", patch_shape=(9, 9), filters=8, directions=[-1, 1])
    model.compile()
    config = type(model).config_for(["T1w", "FLAIR", "SWI"])
    assert config == {"channels": 3, "modalities": ["T1w", "FLAIR", "SWI"], "view": "image"}
    assert epizoo.create("synthetic", patch_shape=(9, 9), filters=8, **config).directions == [-1, 1, 0]
    x = np.full((800, 9, 9, 2), 0.5, np.float32)  # in one tissue without noise only shifts and tints show
    made = model.alter(tf.constant(x))[0].numpy() - x
    darker, brighter = (made < -2e-3).any((1, 2)), (made > 2e-3).any((1, 2))
    assert darker[:, 0].sum() > 3 * brighter[:, 0].sum() > 0
    assert brighter[:, 1].sum() > 3 * darker[:, 1].sum() > 0
    with pytest.raises(InputError, match=r"directions \[1\]: -1, 0 or 1 for each of 2"):
        epizoo.create("synthetic", directions=[1])


def test_half_of_the_patches_stay_as_they_are(altered):
    x, made, where = altered
    axes = tuple(range(1, where.ndim))
    assert where.any(axes).mean() == pytest.approx(0.5, abs=0.12)
    untouched = np.array([np.array_equal(a, b) for a, b in zip(x, made, strict=True)])
    assert not where[untouched].any()
    assert untouched.mean() == pytest.approx(0.5, abs=0.1)


def test_alterations_are_where_they_are_said_to_be(altered):
    x, made, where = altered
    change = np.abs(made - x).max(-1)
    assert change[where].mean() > 10 * change[~where].mean()
    assert not made[:, :2].any()  # background stays
    assert made.min() >= 0
    assert made.max() <= 1


@pytest.mark.parametrize("shape", [(15, 15), (27, 29), (9, 9, 9), (15, 15, 5), (3, 5)], ids=str)
def test_what_is_judged_in_training_is_the_logit_of_the_patch_there(shape):
    model = epizoo.create("synthetic", patch_shape=shape, latent_dim=8, filters=8)
    x = patches(3, *shape, 2)
    middle = tuple(n // 2 for n in model.judged_shape)
    judged = model.segmenter(x)[(slice(None), *middle)]
    assert np.allclose(judged, model.head(model.encode(x)), atol=1e-4)


@pytest.mark.slow
def test_synthetic_finds_alterations():
    y, x = np.mgrid[:15, :15]
    angle, phase = RNG.uniform(0, 2 * np.pi, (2, 64, 1, 1))
    stripes = 0.5 + 0.3 * np.sin(1.5 * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    data = batches(stripes[..., None].astype(np.float32))
    model = epizoo.create("synthetic", patch_shape=(15, 15), channels=1, latent_dim=16, filters=8)
    model.compile(keras.optimizers.Adam(3e-3))
    model.fit(data, steps_per_epoch=200, verbose=0)
    made, where = (v.numpy() for v in model.alter(tf.constant(stripes[..., None].astype(np.float32))))
    found, logit = where[:, 7, 7, 0] > 0, model.head(model.encode(made)).numpy()[:, 0]
    assert roc_auc_score(found, logit) > 0.8
