"""Tissue: the template's priors, the mixture that maps are made of, and the one that lesions are put in."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from epizoo.maps import tissue
from epizoo.maps.tissue import Tissue, _posterior, tissue_probabilities
from tests.people import INTENSITY, SLICES, from_template
from tfds_epilepsy import phantom
from tfds_epilepsy.tissue import estimate_tissue, template_priors
from tfds_epilepsy.volumes import load_template


@pytest.fixture(scope="module")
def scan():
    return phantom.subject(phantom.PhantomConfig(), "control004")


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


@pytest.mark.parametrize(
    ("options", "voxels"),
    [({}, 200_000), ({}, 5_000), ({"tissues": ["csf", "gm"], "fwhm": 6.0}, 200_000)],
)
def test_the_form_in_a_graph_gives_the_same_maps(monkeypatch, options, voxels):
    monkeypatch.setattr(tissue, "EM_VOXELS", voxels)
    person = from_template()
    view = Tissue(["T1w", "FLAIR"], **options)
    graph = view.graph(person.brain_mask.shape, person.affine)
    got = graph(tf.constant(person.image), tf.constant(person.brain_mask)).numpy()
    np.testing.assert_allclose(got, view(person), atol=1e-5)
    assert got.shape[-1] == len(view.names)


def test_tissue_of_a_t1w_agrees_with_what_made_it(scan):
    tissue = estimate_tissue(scan.image[..., 0], scan.brain_mask, scan.affine)
    truth = phantom._anatomy(phantom.PhantomConfig(), "control004").tissue
    for share, true in zip(tissue, truth, strict=True):
        coarse = phantom._coarsen(true, 2)
        dice = 2 * np.minimum(share, coarse).sum() / (share + coarse).sum()
        assert dice > 0.6  # soft Dice of probabilities, not of labels


def test_without_priors_the_mixture_still_orders_the_tissues():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, (14, 15, 16))
    volume = np.array([60.0, 100.0, 20.0])[classes] + rng.normal(scale=4, size=classes.shape)
    tissue = estimate_tissue(volume, np.ones(volume.shape, bool), np.diag([3.0, 3, 3, 1]))
    assert (tissue.argmax(0) == classes).mean() > 0.98


def test_both_mixtures_give_the_numbers_that_they_always_gave(scan):
    """Scores of baselines and the places of lesions depend on them: means of gm, wm and csf in the brain."""
    thin = from_template()  # not on the template's grid
    for subject, probabilities, estimate in (
        (
            thin,
            [0.48145410418510437, 0.32192152738571167, 0.19662120938301086],
            [0.4199897050857544, 0.38527852296829224, 0.19474659860134125],
        ),
        (
            scan,
            [0.5076279640197754, 0.3492782711982727, 0.14315849542617798],
            [0.5171293020248413, 0.34675857424736023, 0.136189267039299],
        ),
    ):
        mask = subject.brain_mask
        maps = tissue_probabilities(subject)[mask].mean(0)
        np.testing.assert_allclose(maps, probabilities, rtol=1e-6)
        tissue = estimate_tissue(subject.image[..., 0], mask, subject.affine)[:, mask].mean(1)
        np.testing.assert_allclose(tissue, estimate, rtol=1e-6)
