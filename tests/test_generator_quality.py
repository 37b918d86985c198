import numpy as np
import pytest
from scipy import linalg, ndimage

import epizoo
from epizoo.models.generator_quality import (
    GeneratorQuality,
    coverage,
    frechet_distance,
    precision_recall,
    random_features,
)

RNG = np.random.default_rng(0)


def textures(n, *shape, seed=0):
    """Smooth random patches, each at its own brightness."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(n, *shape)), (0, *[1.0] * (len(shape) - 1), 0))
    return (0.5 + 0.4 * fields + 0.1 * rng.normal(size=(n, *[1] * len(shape)))).clip(0, 1).astype(np.float32)


def test_frechet_distance_equals_its_formula():
    a, b = RNG.normal(size=(50, 6)), RNG.normal(size=(40, 6)) @ RNG.normal(size=(6, 6)) + 1
    s, t = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * linalg.sqrtm(s @ t).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(6 * 2**2)


def test_frechet_distance_of_a_point_is_the_spread_about_it():
    a = RNG.normal(size=(50, 6))
    point = np.tile(a.mean(0), (50, 1))
    assert frechet_distance(a, point) == pytest.approx(np.trace(np.cov(a.T)))
    assert np.isnan(frechet_distance(a, np.nan * a))


def test_neighbours_equal_those_of_brute_force():
    real, made, k = RNG.normal(size=(30, 2)), RNG.normal(size=(20, 2)) + 1.5, 3

    def near(a, b):
        """Whether a point of b is as near to each of a as its k-th neighbour in a."""
        return np.array(
            [
                [np.linalg.norm(x - y) <= sorted(np.linalg.norm(x - z) for z in a)[k] for y in b]
                for x in a
            ]
        )  # fmt: skip

    precision, recall = precision_recall(real, made, k)
    assert precision == near(real, made).any(0).mean()
    assert recall == near(made, real).any(0).mean()
    assert coverage(real, made, k) == near(real, made).any(1).mean()
    assert 0.05 < precision < 0.95
    assert 0.05 < recall < 0.95


@pytest.mark.parametrize("shape", [(9, 9, 2), (7, 7, 7, 1)], ids=str)
def test_features_are_the_same_in_every_run(shape):
    first, second = (random_features(shape[:-1], shape[-1]) for _ in range(2))
    x = textures(8, *shape)
    features = np.asarray(first(x))
    assert features.shape == (8, 64)
    assert np.array_equal(features, second(x))
    assert (np.ptp(features, 0) > 0).all()


class Imagining:
    """A model that makes up the patches it was given."""

    patch_shape = made_shape = (9, 9)

    def __init__(self, made):
        self.made = made

    def imagine(self, patches, seed):
        return self.made[seed : seed + len(patches)]


def figures(real, made):
    judge = GeneratorQuality(real)
    judge.set_model(Imagining(made))
    judge.on_train_begin()
    logs = {}
    judge.on_epoch_end(0, logs)
    return logs


@pytest.mark.slow
def test_collapsed_generator_is_seen():
    real, others = textures(400, 9, 9, 1), textures(400, 9, 9, 1, seed=1)
    alike = figures(real, others)
    assert min(alike["val_precision"], alike["val_recall"]) > 0.8
    assert alike["val_coverage"] > 0.93  # 1 - 2^-5 expected
    few = others[:4][RNG.integers(0, 4, 400)]
    collapsed = figures(real, few + RNG.normal(0, 0.005, few.shape).astype(np.float32))
    assert collapsed["val_recall"] < 0.02
    assert collapsed["val_coverage"] < 0.1
    assert collapsed["val_frechet"] > 8 * alike["val_frechet"]


def test_noise_is_no_healthy_patch():
    noise = figures(textures(400, 9, 9, 1), RNG.random((400, 9, 9, 1), dtype=np.float32))
    assert noise["val_precision"] < 0.02
    assert noise["val_coverage"] < 0.1


def test_generator_that_completes_is_held_against_centres_it_did_not_see():
    model = epizoo.create("context_gan", patch_shape=(15, 15), channels=1, latent_dim=4, filters=4)
    judge = GeneratorQuality(textures(40, 15, 15, 1))
    judge.set_model(model)
    judge.on_train_begin()
    assert judge.network.input_shape == (None, 5, 5, 1)
    assert np.array_equal(judge.given, judge.patches[1::2])
    assert len(judge.real) == 20
    logs = {}
    judge.on_epoch_end(0, logs)
    assert np.isfinite(list(logs.values())).all()
