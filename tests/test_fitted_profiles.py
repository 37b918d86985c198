"""A fitted detector of several profiles: calibration, fusion, what it says of a place."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from epizoo.detection import FittedDetector, create_detector, find_clusters
from epizoo.detection.profiles.heterotopia import Heterotopia
from epizoo.detection.rarity import HISTOGRAM, rarest
from epizoo.maps.smoothing import smooth
from tests.people import INTENSITY, fit, from_template
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.tissue import template_priors

CONTROLS = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("fit") / "profiles", "profiles", n=CONTROLS)


def with_fluid(subject):
    """Fluid in the place of the tissue in a ball of 8 mm in white matter, far from ventricles, and where."""
    white = template_priors(subject.brain_mask.shape, subject.affine)[..., 1] > 0.9
    white &= ~Heterotopia().region(subject.brain_mask.shape, subject.affine)
    centre = np.unravel_index(ndimage.distance_transform_edt(white).argmax(), white.shape)
    offsets = np.moveaxis(np.indices(white.shape), 0, -1) - np.array(centre)
    ball = (np.linalg.norm(2.0 * offsets, axis=-1) < 8) & subject.brain_mask
    image = subject.image.copy()
    image[ball] = [levels[2] for levels in INTENSITY.values()]
    return replace(subject, group="patient", image=image), ball


def test_the_map_of_a_profile_is_held_against_its_neighbourhood_among_the_controls(tmp_path):
    """One profile, from the evidence to z, by hand at a voxel."""
    detector = create_detector("profiles", profiles=["loss"])
    one = fit(tmp_path / "loss", detector, n=CONTROLS, folds=CONTROLS)
    profile, names = one.detector.kinds[0], one.detector.numbers
    people = [from_template(number) for number in range(CONTROLS)]
    codes = np.stack([one.codes.volume(person)[one.mask] for person in people], 1)
    maps = []
    for number in range(CONTROLS):
        others = np.delete(codes, number, axis=1)
        sd = np.maximum(others.std(1, ddof=1) * np.sqrt(1 + 1 / (CONTROLS - 1)), 1e-3)
        z = np.zeros((*one.mask.shape, len(names)), np.float32)
        z[one.mask] = (codes[:, number] - others.mean(1)) / sd
        maps.append(profile(z, names, one.mask, one.affine))
    variance = np.where(one.mask, np.var(maps, axis=0, ddof=1), 0)
    sd = np.sqrt(smooth(variance.astype(np.float32), one.mask, one.affine, 24.0) * (1 + 1 / CONTROLS))
    patient, _ = with_fluid(from_template(50))
    z = np.zeros((*one.mask.shape, len(names)), np.float32)
    own_sd = np.maximum(codes.std(1, ddof=1) * np.sqrt(1 + 1 / CONTROLS), 1e-3)
    z[one.mask] = (one.codes.volume(patient)[one.mask] - codes.mean(1)) / own_sd
    inside = one.mask & patient.brain_mask
    raw = profile(z, names, inside, one.affine)
    expected = (raw - np.mean(maps, axis=0)) / sd
    found = one.score(patient)
    np.testing.assert_allclose(found[inside], expected[inside], rtol=2e-3, atol=2e-3)


def test_the_score_is_the_rarest_profile_and_each_is_kept(model):
    patient, _ = with_fluid(from_template(50))
    explained = model.explain(patient)
    inside = model.mask & patient.brain_mask
    maps = np.stack(list(explained.kinds.values()))
    assert [kind.name for kind in explained.kinds] == ["dysplasia", "mesial_temporal", "loss", "heterotopia"]
    np.testing.assert_array_equal(explained.score_map[inside], maps.max(0)[inside])
    assert (explained.score_map[~inside] == 0).all()
    again = FittedDetector.load(model.folder, None)
    np.testing.assert_array_equal(again.score(patient), explained.score_map)
    assert again.tail == model.tail


def test_lost_tissue_is_found_by_its_profile_and_the_cluster_says_so(model):
    patient, ball = with_fluid(from_template(50))
    explained = model.explain(patient)
    profile, found = next((kind, found) for kind, found in explained.kinds.items() if kind.name == "loss")
    assert found[ball].mean() > 2 + found[explained.score_map != 0].mean()
    alone = replace(explained, score_map=np.where(np.isfinite(found), found, 0), kinds={profile: found})
    clusters, labels = find_clusters(alone.score_map, patient.affine, patient.brain_mask)
    first = alone.annotate(clusters, labels, model.tail)[0]
    assert ball[labels == 1].any()
    assert first.profile == "fluid in the place of tissue"
    assert first.signs.startswith("more fluid ")
    assert "," not in first.signs  # what other profiles read is none of its signs
    assert first.p == pytest.approx(float(model.tail.p(first.peak)))
    both = explained.annotate(*find_clusters(explained.score_map, patient.affine, patient.brain_mask), None)
    assert {cluster.p for cluster in both} == {None}


def test_a_noisy_scan_of_a_healthy_person_is_no_rarer_than_a_clean_one(model):
    clean = from_template(51)
    noise = 0.06 * np.random.default_rng(0).normal(size=clean.image.shape)
    noisy = replace(clean, image=np.where(clean.brain_mask[..., None], clean.image + noise, 0).clip(0, 1))
    assert min(float(model.tail.p(model.score(one).max())) for one in (clean, noisy)) > 0.05


def test_new_healthy_people_exceed_the_tail_about_as_often_as_it_says(tmp_path):
    """Of one profile, on noise of one smoothness: 24 people against the maxima of 10 controls."""
    one = fit(tmp_path / "one", create_detector("profiles", profiles=["dysplasia"]), n=10)
    p = np.array([float(one.tail.p(one.score(from_template(number)).max())) for number in range(100, 124)])
    assert 0.2 < (p < 0.5).mean() < 0.8
    assert (p < 0.1).mean() < 0.25


def test_profiles_have_smoothing_of_their_own_and_names_that_are_known(tmp_path):
    with pytest.raises(InputError, match=r"fwhm=6\.0: the profiles of 'profiles' smooth their maps"):
        fit(tmp_path / "a", "profiles", fwhm=6.0)
    with pytest.raises(InputError, match="unknown profile 'tuber': choose one of dysplasia, mesial_temporal"):
        create_detector("profiles", profiles=["tuber"])
    with pytest.raises(InputError, match="each once"):
        create_detector("profiles", profiles=["loss", "loss"])
    with pytest.raises(InputError, match="no profile of dysplasia reads them"):
        fit(tmp_path / "b", create_detector("profiles", profiles=["dysplasia"]), modalities=None)


def test_a_share_is_what_a_profile_pays():
    z = np.array([[5.0, 5.0], [5.0, 6.0], [np.nan, 6.0]])
    rarities = np.stack([HISTOGRAM, HISTOGRAM])
    score, aligned = rarest(z, rarities, [1.0, np.exp(-2)])
    np.testing.assert_allclose(score, [5, 5, 4], atol=1e-3)
    np.testing.assert_allclose(aligned[:, 1], [3, 4, 4], atol=1e-3)
