"""Deviation maps: against a loop over the voxels, a control against the others; the model that reads them."""

from dataclasses import replace

import numpy as np
import pytest

import epizoo
from epizoo.detection import FittedDetector, fit_detector
from epizoo.detection.codes import codes_of
from epizoo.maps.deviations import FARTHEST, PRIOR_FREEDOM, PRIOR_FWHM, Deviations
from epizoo.maps.signs import sign_maps
from epizoo.registry import MODELS
from tests.people import person
from tests.references import mean_around
from tfds_epilepsy.errors import InputError

ZOOMS = np.array([1.5, 2.0, 3.0])


def people(n, modalities=2):
    return [replace(person(seed, modalities=modalities), subject=f"{seed:02d}") for seed in range(n)]


def held_against(one, controls):
    """Deviation maps by a loop over the voxels, from the definition."""
    brains = np.stack([c.brain_mask for c in controls])
    signs = np.stack([sign_maps(c.image, c.brain_mask, c.affine) for c in controls])
    own = sign_maps(one.image, one.brain_mask, one.affine)
    count, known = brains.sum(0), (brains.sum(0) >= 3) & (2 * brains.sum(0) >= len(controls))
    variance, z = np.zeros(own.shape), np.zeros(own.shape)
    for at in map(tuple, np.argwhere(known)):
        variance[at] = signs[(brains[(slice(None), *at)], *at)].var(0, ddof=1)
    for at in map(tuple, np.argwhere(known & one.brain_mask)):
        n = count[at]
        for k in range(own.shape[-1]):
            prior = mean_around(variance[..., k], known, ZOOMS, np.array(at), PRIOR_FWHM)
            moderated = ((n - 1) * variance[at][k] + PRIOR_FREEDOM * prior) / (n - 1 + PRIOR_FREEDOM)
            mean = signs[(brains[(slice(None), *at)], *at)][:, k].mean()
            z[at][k] = (own[at][k] - mean) / max(np.sqrt(moderated * (1 + 1 / n)), 1e-3)
    return z.clip(-FARTHEST, FARTHEST)


def test_maps_are_those_of_a_loop_over_the_voxels_of_an_anisotropic_grid():
    *controls, one = people(9)
    made = Deviations().adapt(controls)(one)
    expected = held_against(one, controls)
    assert made.shape == (9, 8, 7, 3)
    assert made.dtype == np.float32
    assert np.abs(expected).max() > 2
    np.testing.assert_allclose(made, expected, atol=2e-2)
    assert not made[~one.brain_mask].any()


def test_a_control_is_held_against_the_others_whatever_it_is_called():
    controls = people(9)
    deviations = Deviations().adapt(controls)
    signs = np.stack([sign_maps(c.image, c.brain_mask, c.affine) for c in controls])
    others = [k for k in range(9) if k != 4]
    mean, _ = deviations.moments(signs[4], replace(controls[4], subject="x"))
    usual, _ = deviations.moments(signs[4], people(10)[9])
    weights = np.stack([controls[k].brain_mask for k in others])[..., None]
    seen = controls[4].brain_mask & (weights.sum(0)[..., 0] >= 3) & deviations.mask_
    expected = (signs[others] * weights).sum(0) / np.maximum(weights.sum(0), 1)
    np.testing.assert_allclose(mean[seen], expected[seen], atol=1e-5)
    assert not np.allclose(usual[seen], mean[seen], atol=1e-2)
    own = deviations(controls[4])
    copy = deviations(replace(controls[4], image=controls[4].image + np.float32(1e-7)))  # nobody known
    assert np.abs(own[seen]).mean() > 1.1 * np.abs(copy[seen]).mean()


def test_nothing_of_a_control_is_in_what_it_is_held_against():
    """The deviations of one of six controls are those of a stranger to the five others."""
    controls = [replace(person(seed), brain_mask=person(0).brain_mask) for seed in range(6)]
    among, alone = Deviations().adapt(controls), Deviations().adapt(controls[:-1])
    expected = alone(controls[-1])
    np.testing.assert_allclose(among(controls[-1]), expected, atol=2e-4 * np.abs(expected).max())


def test_controls_deviate_as_new_healthy_people_do():
    """Draws at each voxel: both have a deviation near 1, those that were seen no smaller one."""
    controls = people(40)
    deviations = Deviations().adapt(controls[:25])
    seen, new = (
        np.concatenate([deviations(c)[deviations.mask_ & c.brain_mask, :2] for c in some]).std(0)
        for some in (controls[:15], controls[25:])
    )
    np.testing.assert_allclose(seen / new, 1, atol=0.06)
    np.testing.assert_allclose(new, 1, atol=0.12)


def test_too_few_controls_and_other_grids_are_refused():
    with pytest.raises(InputError, match="2 controls: deviations need at least 3"):
        Deviations().adapt(people(2))
    with pytest.raises(InputError, match=r"sub-01: grid \(9, 8, 6\)"):
        Deviations().adapt([person(), replace(person(1, shape=(9, 8, 6)), subject="01")])
    with pytest.raises(InputError, match="1 modalities on a grid"):
        Deviations().adapt(people(4))(person(modalities=1))


# === The model that reads them ===


def model(**config):
    return epizoo.create("deviation", patch_shape=(9, 9, 9), channels=3, latent_dim=4, filters=4, **config)


def test_the_model_reads_deviation_maps_and_says_so_where_it_is_not_adapted():
    one = model()
    with pytest.raises(InputError, match=r"call adapt\(controls\) first"):
        one.view(person())
    one.view.adapt(people(5))
    expected = Deviations().adapt(people(5))(person(7))
    np.testing.assert_array_equal(one.view(person(7)), expected)
    expected = {"channels": 3, "modalities": ["T1w", "FLAIR"], "view": "deviations"}
    assert type(one).config_for(["T1w", "FLAIR"]) == expected


@pytest.mark.parametrize("name", ["siamese", "bigan", "context_gan"])
def test_any_model_of_images_can_read_deviation_maps_in_the_unit_interval(name):
    config = MODELS.get(name).config_for(["T1w", "FLAIR"], "deviations")
    assert config == {"channels": 3, "modalities": ["T1w", "FLAIR"], "view": "deviations"}
    one = epizoo.create(name, patch_shape=(9, 9), **config)
    one.view.adapt(people(5))
    seen, z = one.view(person(7)), Deviations().adapt(people(5))(person(7))
    inside = (z != 0).any(-1)
    np.testing.assert_allclose(seen[inside], np.clip(0.5 + z[inside] / 10, 0.001, 1), atol=1e-6)
    assert not seen[~inside].any()
    assert one.get_config()["view"] == {"name": "deviations", "spread": 5.0}


def test_models_that_cannot_read_what_they_are_told_say_so():
    with pytest.raises(InputError, match="view 'deviations': Synthetic reads image alone"):
        MODELS.get("synthetic").config_for(["T1w"], "deviations")
    with pytest.raises(InputError, match="view 'image': Deviation reads deviations alone"):
        epizoo.create("deviation", view="image")
    with pytest.raises(InputError, match="unknown view 'folds': choose one of image, deviations"):
        epizoo.create("siamese", view="folds")
    with pytest.raises(InputError, match=r"channels 2: view 'deviations' of T1w, FLAIR has 3 maps"):
        epizoo.create("siamese", view="deviations", modalities=["T1w", "FLAIR"])


@pytest.mark.parametrize("model", [model, lambda: epizoo.create("siamese", channels=3, view="deviations")])
def test_deviations_are_saved_with_the_model(tmp_path, model):
    one = model()
    one.view.adapt(people(5))
    one.compile()
    one.save(tmp_path / "model.keras")
    again = epizoo.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.view(person(1)), one.view(person(1)))
    assert codes_of(again).fingerprint == codes_of(one).fingerprint
    other = model()
    other.set_weights(one.get_weights())
    other.view.adapt(people(6))
    assert codes_of(other).fingerprint != codes_of(one).fingerprint


def test_a_detector_scores_scans_of_a_model_that_reads_deviations(tmp_path):
    one, controls = model(modalities=["T1w", "FLAIR"]), people(6)
    with pytest.raises(InputError, match=r"call adapt\(controls\) first"):
        fit_detector(one, lambda: controls, tmp_path / "early", "head", folds=3)
    one.view.adapt(controls)
    fitted = fit_detector(one, lambda: controls, tmp_path / "detector", "head", folds=3)
    scored = fitted.score(person(9))
    again = FittedDetector.load(tmp_path / "detector", one).score(person(9))
    np.testing.assert_array_equal(scored, again)
    padded = np.pad(one.view(person(9)), [(4, 4)] * 3 + [(0, 0)])
    at = tuple(np.argwhere(fitted.mask & person(9).brain_mask)[30])
    patch = padded[tuple(slice(a, a + 9) for a in at)][None]
    logit = float(one.head(one.encode(patch))[0, 0])
    assert scored[at] == pytest.approx((logit - fitted.mean[at]) / fitted.sd[at], abs=1e-3)
    parts = fitted.explain(person(9)).parts
    assert list(parts) == ["darker T1w", "brighter FLAIR", "blurred junction"]
    np.testing.assert_allclose(parts["darker T1w"][at], -one.view(person(9))[at][0])


def test_the_signs_of_a_model_that_reads_deviations_are_these_and_its_logit(tmp_path):
    one, controls, patient = model(modalities=["T1w", "FLAIR"]), people(6), person(9)
    one.view.adapt(controls)
    fitted = fit_detector(one, lambda: controls, tmp_path / "detector", "signs", folds=3)
    at = tuple(np.argwhere(fitted.mask & patient.brain_mask)[30])

    def features(subject):
        view = one.view(subject)
        patch = np.pad(view, [(4, 4)] * 3 + [(0, 0)])[tuple(slice(a, a + 9) for a in at)]
        return [*view[at], float(one.head(one.encode(patch[None]))[0, 0])]

    there = np.array([features(c) for c in controls])
    sd = there.std(0, ddof=1) * np.sqrt(1 + 1 / 6)
    z = (features(patient) - there.mean(0)) / sd
    raw = (-z[0] + z[1] + z[2] + z[3]) / 2
    explained = fitted.explain(patient)
    score, parts = explained.score_map, explained.parts
    assert score[at] == pytest.approx((raw - fitted.mean[at]) / fitted.sd[at], rel=1e-3, abs=1e-3)
    assert list(parts) == ["darker T1w", "brighter FLAIR", "blurred junction", "model"]
    np.testing.assert_allclose([parts[name][at] for name in parts], [-z[0], *z[1:]], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(FittedDetector.load(tmp_path / "detector", one).score(patient), score)
