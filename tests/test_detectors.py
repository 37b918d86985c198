"""Every detector against an independent implementation, and what all have in common."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import OAS
from sklearn.neighbors import NearestNeighbors

from epizoo.detection.classical import ZScore
from epizoo.detection.detector import DETECTORS, Detector, create_detector
from epizoo.detection.gaussian import LocalGaussian
from epizoo.detection.knn import LocalKNN
from tests.test_ocsvm import KINDS, codes
from tfds_epilepsy.errors import InputError

SIZES = {
    "seed": st.integers(0, 2**32 - 1),
    "n": st.integers(2, 60),
    "d": st.integers(1, 70),
    "kind": st.sampled_from([kind for kind in KINDS if kind not in ("identical", "all equal")]),
}


# === All detectors ===


@pytest.fixture(params=DETECTORS)
def detector(request):
    return create_detector(request.param)


def local(detector):
    """Whether it learns each voxel by itself; the others are held to their own tests."""
    return not detector.sampled


def test_the_registry_gives_its_names(detector):
    assert DETECTORS[detector.name].endswith(type(detector).__name__)


def test_far_codes_score_higher_than_controls(detector):
    if detector.name == "patient":
        return
    controls = codes(0, 20, 30, 5)
    scores = detector.fit(controls).score(np.concatenate([controls, controls[:, :1] + 20], axis=1))
    assert scores.dtype == np.float32
    assert (scores[:, -1] > scores[:, :-1].max(1)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 15])
def test_degenerate_controls_give_finite_scores(detector, kind, n):
    scores = detector.fit(codes(0, 6, n, 4, kind)).score(codes(1, 6, 3, 4))
    assert np.isfinite(scores).all()
    if n > 1:
        crossed = detector.cross_scores(codes(0, 6, n, 4, kind), np.arange(n) % 3)
        assert np.isfinite(crossed).all()


def test_the_state_restores_the_detector(detector):
    train, query = codes(0, 30, 25, 12, "low rank"), codes(1, 30, 4, 12)
    scores = detector.fit(train).score(query)
    config = json.loads(json.dumps(detector.get_config()))
    state = {name: np.array(array) for name, array in detector.state().items()}
    assert all(array.dtype != object for array in state.values())
    again = type(detector).from_state(state, **config).score(query)
    np.testing.assert_allclose(again, scores, rtol=1e-2, atol=1e-3)


def test_voxels_do_not_see_each_other(detector):
    train, query = codes(0, 30, 25, 6), codes(1, 30, 4, 6)
    if not local(detector):
        return
    alone = create_detector(detector.name).fit(train[11:12]).score(query[11:12])
    np.testing.assert_array_equal(detector.fit(train).score(query)[11:12], alone)


def test_threads_do_not_change_the_scores(detector):
    train, query = codes(0, 40, 25, 6), codes(1, 40, 4, 6)
    options = [{"threads": n} if "threads" in detector.option_names() else {} for n in (1, 3)]
    one, many = (create_detector(detector.name, **option).fit(train) for option in options)
    np.testing.assert_array_equal(one.score(query), many.score(query))


def test_cross_scores_come_from_detectors_that_did_not_see_the_fold(detector):
    train, folds = codes(0, 10, 22, 7, "low rank"), np.arange(22) % 4
    expected = Detector.cross_scores(detector, train, folds)
    if detector.name == "ocsvm":  # on the scale of all controls
        expected *= 22 / np.array([np.count_nonzero(folds != fold) for fold in folds])
    np.testing.assert_allclose(detector.cross_scores(train, folds), expected, rtol=1e-3, atol=5e-4)


def test_broken_latents_are_refused(detector):
    with pytest.raises(InputError, match="NaN or infinite"):
        detector.fit(np.full((3, 4, 2), np.inf))
    with pytest.raises(InputError, match=r"\(3, 4\)"):
        detector.fit(np.zeros((3, 4)))
    if local(detector):
        with pytest.raises(InputError, match="fitted at 5"):
            detector.fit(codes(0, 5, 6, 2)).score(codes(0, 4, 6, 2))


def test_unknown_names_and_options_are_refused():
    with pytest.raises(InputError, match="unknown detector 'svm': choose one of ocsvm"):
        create_detector("svm")
    with pytest.raises(InputError, match="no option sigma: its options are nu, gamma"):
        create_detector("ocsvm", sigma=1)


# === Each against a reference ===


@settings(max_examples=40, deadline=None)
@given(**SIZES)
def test_gaussian_is_the_mahalanobis_distance_of_sklearns_oas(seed, n, d, kind):
    train = codes(seed, 2, n, d, kind)
    query = np.concatenate([train[:, :3], codes(seed + 1, 2, 3, d, kind)], axis=1)
    scores = LocalGaussian().fit(train).score(query)
    for voxel in range(2):
        if not np.ptp(train[voxel], axis=0).any():  # scikit-learn's precision of a zero covariance is zero
            continue
        reference = OAS().fit(train[voxel].astype(np.float64))
        expected = np.sqrt(reference.mahalanobis(query[voxel].astype(np.float64)))
        np.testing.assert_allclose(scores[voxel], expected, rtol=2e-3, atol=2e-3)


@settings(max_examples=40, deadline=None)
@given(**SIZES, k=st.integers(1, 9))
def test_knn_is_the_mean_distance_to_the_nearest(seed, n, d, kind, k):
    train = codes(seed, 2, n, d, kind)
    query = np.concatenate([train[:, :3], codes(seed + 1, 2, 3, d, kind)], axis=1)
    scores = LocalKNN(k).fit(train).score(query)
    for voxel in range(2):
        neighbours = NearestNeighbors(n_neighbors=min(k, n)).fit(train[voxel].astype(np.float64))
        expected = neighbours.kneighbors(query[voxel].astype(np.float64))[0].mean(1)
        np.testing.assert_allclose(scores[voxel], expected, rtol=1e-4, atol=1e-4)


def test_zscore_by_hand():
    """Controls 1, 2, 3: mean 2, sd 1, times sqrt(4/3) for a new subject; the second feature is nearer."""
    train = np.array([[[1, 0], [2, 0.5], [3, 1]]], np.float32)
    scores = ZScore().fit(train).score(np.array([[[5, 0.5], [-1, 0.5]]], np.float32))
    np.testing.assert_allclose(scores, 3 / np.sqrt(4 / 3) * np.ones((1, 2)), rtol=1e-6)
