"""Tissue maps of volumes made from the template."""

from dataclasses import replace

import numpy as np
from scipy import stats

from epizoo.maps.tissue import _posterior, template_priors, tissue_probabilities
from tests.people import INTENSITY, SLICES, from_template
from tfds_epilepsy.volumes import load_template


def test_priors_on_another_grid_are_those_of_the_template():
    template = load_template(2)
    cut = template_priors((75, 94, 5), from_template().affine)
    np.testing.assert_allclose(cut[..., 1], template.wm[:, :, SLICES], atol=1e-5)


def test_tissue_is_found_from_the_intensities():
    person = from_template()
    tissue = tissue_probabilities(person)
    np.testing.assert_allclose(tissue[person.brain_mask].sum(1), 1, atol=1e-5)
    assert (tissue[~person.brain_mask] == 0).all()
    means = [np.average(person.image[..., 0], weights=tissue[..., t]) for t in range(3)]
    np.testing.assert_allclose(means, INTENSITY["t1"], atol=0.15)


def test_posteriors_are_by_bayes_rule():
    x, priors = np.array([[0.2], [0.6]]), np.array([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]])
    means, variances = np.array([0.5, 0.8, 0.1]), np.array([0.01, 0.02, 0.03])
    weights = priors * stats.norm(means, np.sqrt(variances)).pdf(x)
    posterior = _posterior(x, priors, means, variances)
    np.testing.assert_allclose(posterior, weights / weights.sum(1, keepdims=True))


def test_tissue_follows_the_volume_and_not_the_template_alone():
    person = from_template()
    image = person.image.copy()
    image[20:26, 40:46, 1:5, 0] = INTENSITY["t1"][0]  # grey matter, whatever the template has there
    tissue = tissue_probabilities(replace(person, image=image))
    assert np.median(tissue[21:25, 41:45, 2:4, 0]) > 0.8
