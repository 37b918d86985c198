"""The signs: maps against brute force, scores against numbers worked by hand, directions."""

from dataclasses import replace

import numpy as np
import pytest

from epizoo import maps, models
from epizoo.detection import FittedDetector
from epizoo.detection.codes import ViewCodes
from epizoo.detection.signs import Signs
from epizoo.maps import create_view
from epizoo.maps.junction import junction_width
from epizoo.maps.signs import SURROUND_FWHM
from tests.people import fit, from_template, person
from tests.references import mean_around
from tfds_epilepsy.errors import InputError


def told(modalities):
    """The detector, told of the maps of modalities."""
    return Signs().told(ViewCodes([create_view("signs", modalities)]))


def test_maps_are_those_of_a_loop_over_the_voxels_of_an_anisotropic_grid():
    one, zooms = person(), np.array([1.5, 2.0, 3.0])
    maps = create_view("signs")(one)
    assert maps.shape == (9, 8, 7, 3)
    for at in np.argwhere(one.brain_mask)[::7]:
        x, y, z = at
        for m in range(2):
            surround = mean_around(one.image[..., m], one.brain_mask, zooms, at, SURROUND_FWHM)
            assert maps[x, y, z, m] == pytest.approx(one.image[x, y, z, m] - surround, abs=2e-3)
    width = junction_width(one.image[..., 0], one.brain_mask, one.affine)
    np.testing.assert_array_equal(maps[..., 2], width)
    assert (maps[~one.brain_mask] == 0).all()


def test_the_score_is_the_sum_of_z_in_the_direction_of_each_sign():
    controls = np.array([[[0.0, 1.0, 5.0], [2.0, 3.0, 5.0], [4.0, 5.0, 8.0]]], np.float32)  # sd 2, 2, 1.73
    detector = told(["T1w", "FLAIR"]).fit(controls)
    patient = np.array([[[0.0, 7.0, 3.0]]], np.float32)  # darker T1w, brighter FLAIR, a narrower junction
    z = np.array([-2.0 / 2, 4.0 / 2, -3.0 / np.sqrt(3)]) / np.sqrt(1 + 1 / 3)
    expected = (-z[0] + z[1] + z[2]) / np.sqrt(3)
    np.testing.assert_allclose(detector.score(patient), [[expected]], rtol=1e-6)


@pytest.mark.parametrize(
    ("modalities", "weights"),
    [
        (["T1w"], [-1, 1]),
        (["T1w", "FLAIR", "pet"], [-1, 1, -1, 1]),
        (["T1w", "SWI"], [-1, 0, 1]),
    ],
)
def test_modalities_have_directions_and_what_a_model_adds_counts_alike(modalities, weights):
    signs = told(modalities)
    found = signs.weights(len(weights) + 1)
    expected = np.array([*weights, 1]) / np.sqrt(np.count_nonzero(weights) + 1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(InputError, match="numbers: there are"):
        signs.weights(len(weights) - 1)


def test_without_a_known_direction_or_a_head_it_says_so():
    with pytest.raises(InputError, match="SWI: 'signs' knows how a lesion changes T1w"):
        told(["SWI"])
    with pytest.raises(InputError, match="name the modalities"):
        told(None)
    with pytest.raises(InputError, match="no head"):
        Signs().codes(models.create("siamese", patch_shape=(7, 7), latent_dim=4))


def test_a_score_is_made_of_its_signs(tmp_path):
    model, patient = fit(tmp_path, "signs"), from_template(50)
    explained = model.explain(patient)
    score, parts = explained.score_map, explained.parts
    np.testing.assert_array_equal(score, model.score(patient))
    assert list(parts) == ["darker T1w", "brighter FLAIR", "blurred junction"]
    inside = model.mask & patient.brain_mask
    raw = sum(parts.values())[inside] / np.sqrt(3)
    np.testing.assert_allclose(score[inside], (raw - model.mean[inside]) / model.sd[inside], atol=1e-4)
    rng = np.random.default_rng(0)
    detector = told(["SWI", "pet"]).fit(rng.random((4, 9, 4)))
    names = list(detector.parts(rng.random((4, 1, 4))))
    assert names == ["darker pet", "blurred junction", "model"]  # nothing is known of SWI


def test_brighter_flair_scores_higher_and_darker_lower(tmp_path):
    patient = from_template(50)
    model = fit(tmp_path, "signs")
    where = np.zeros_like(patient.brain_mask)
    where[30:40, 50:60] = patient.brain_mask[30:40, 50:60]

    def score(gain):
        image = patient.image.copy()
        image[where, 1] *= gain
        return model.score(replace(patient, image=image))[where].mean()

    assert score(1.15) > score(1.0) + 0.2 > score(0.85) + 0.4


def test_a_bias_field_is_no_sign(tmp_path):
    patient = from_template(50)
    model = fit(tmp_path, "signs")
    x = np.linspace(-1, 1, patient.image.shape[0])[:, None, None, None]
    biased = model.score(replace(patient, image=(patient.image * (1 + 0.08 * x)).astype(np.float32)))
    plain = model.score(patient)
    assert abs(biased - plain)[patient.brain_mask].mean() < 0.35


def test_a_detector_fitted_on_another_version_of_the_maps_is_refused(tmp_path, monkeypatch):
    """The version that held the gradient in place of the width would load without a word."""
    with monkeypatch.context() as earlier:
        earlier.setattr(maps.signs.Signs, "version", 0)
        folder = fit(tmp_path, Signs()).folder
    with pytest.raises(InputError, match="encoder"):
        FittedDetector.load(folder, None)
