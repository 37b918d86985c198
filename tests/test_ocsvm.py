"""The batched one-class SVM against scikit-learn's, a voxel at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import OneClassSVM

from epizoo.detection.detector import Detector
from epizoo.detection.ocsvm import LocalOneClassSVM
from tests.codes import KINDS, codes
from tfds_epilepsy.errors import InputError


def reference(train, query, nu, gamma="scale"):
    """Minus scikit-learn's decision values at one voxel, at a tight tolerance."""
    svm = OneClassSVM(nu=nu, gamma=gamma, tol=1e-9).fit(train.astype(np.float64))
    return -svm.decision_function(query.astype(np.float64))


def assert_equal_to_sklearn(train, query, nu, gamma="scale"):
    scores = LocalOneClassSVM(nu=nu, gamma=gamma).fit(train).score(query)
    for voxel in range(len(train)):
        expected = reference(train[voxel], query[voxel], nu, gamma)
        np.testing.assert_allclose(scores[voxel], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nu", [0.03, 0.5, 0.97])
def test_decision_values_are_those_of_sklearn(kind, nu):
    train = codes(0, 3, 40, 7, kind)
    query = np.concatenate([train, codes(1, 3, 5, 7, kind), codes(2, 3, 5, 7)], axis=1)
    assert_equal_to_sklearn(train, query, nu)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 90),
    d=st.integers(1, 70),
    nu=st.sampled_from([0.01, 0.03, 0.1, 0.3]),
    kind=st.sampled_from(KINDS),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
)
def test_decision_values_are_those_of_sklearn_for_any_size_and_scale(seed, n, d, nu, kind, scale):
    train = codes(seed, 2, n, d, kind) * np.float32(scale)
    query = np.concatenate([train[:, :4], codes(seed + 1, 2, 4, d) * np.float32(scale)], axis=1)
    assert_equal_to_sklearn(train, query, nu)


def test_two_hundred_controls_agree():
    assert_equal_to_sklearn(codes(0, 2, 200, 64), codes(1, 2, 20, 64), nu=0.03)


def test_two_controls_agree():
    assert_equal_to_sklearn(codes(0, 20, 2, 5), codes(1, 20, 6, 5), nu=0.03)


def test_one_control_has_a_flat_offset_of_nu():
    """One alpha of nu and K = 1, so that rho = nu and a far point scores nu."""
    one = np.array([[[1.0, 2.0]]], np.float32)
    far = np.array([[[1e3, 2e3], [1.0, 2.0]]], np.float32)
    np.testing.assert_allclose(LocalOneClassSVM(nu=0.03).fit(one).score(far), [[0.03, 0.0]], atol=1e-6)


def test_a_fixed_gamma_agrees():
    assert_equal_to_sklearn(codes(0, 3, 30, 5), codes(1, 3, 9, 5), nu=0.1, gamma=0.7)


def test_far_codes_score_rho_the_highest_value():
    detector = LocalOneClassSVM().fit(codes(0, 4, 30, 6))
    far = detector.score(np.full((4, 1, 6), 1e3, np.float32))
    np.testing.assert_array_equal(far[:, 0], detector.rho_)


def test_results_do_not_depend_on_threads_or_on_neighbouring_voxels():
    train, query = codes(0, 50, 20, 6, "low rank"), codes(1, 50, 3, 6)
    folds = np.arange(20) % 4
    one = LocalOneClassSVM(threads=1).fit(train)
    many = LocalOneClassSVM(threads=3).fit(train)
    np.testing.assert_array_equal(one.score(query), many.score(query))
    np.testing.assert_array_equal(one.cross_scores(train, folds), many.cross_scores(train, folds))
    alone = LocalOneClassSVM().fit(train[17:18])
    np.testing.assert_array_equal(alone.score(query[17:18]), one.score(query)[17:18])


@pytest.mark.parametrize("kind", ["normal", "low rank", "identical", "all equal"])
def test_cross_scores_are_those_of_detectors_fitted_without_the_fold(kind):
    train = codes(0, 5, 23, 9, kind)
    folds = np.arange(23) % 5
    detector = LocalOneClassSVM(nu=0.1)
    expected = Detector.cross_scores(detector, train, folds)
    expected *= 23 / np.array([np.count_nonzero(folds != fold) for fold in folds])
    np.testing.assert_allclose(detector.cross_scores(train, folds), expected, atol=5e-4)


def test_a_packed_detector_scores_within_the_stated_bound():
    train, query = codes(0, 20, 75, 64, "low rank"), codes(1, 20, 5, 64)
    detector = LocalOneClassSVM().fit(train)
    state = detector.state()
    assert state["packed"].dtype == np.uint16
    again = LocalOneClassSVM.from_state(state, **detector.get_config())
    spread = (train.max((1, 2)) - train.min((1, 2))) / train.std((1, 2))
    bound = 0.86 * 0.03 * 75 * spread / 131070
    difference = np.abs(again.score(query) - detector.score(query)).max(1)
    assert difference.max() > 0
    assert (difference <= bound + 1e-6).all()


def test_identical_controls_survive_packing():
    detector = LocalOneClassSVM().fit(codes(0, 3, 9, 4, "all equal"))
    again = LocalOneClassSVM.from_state(detector.state())
    query = codes(1, 3, 5, 4)
    np.testing.assert_allclose(again.score(query), detector.score(query), atol=1e-6)


def test_bad_options_and_latents_are_refused():
    with pytest.raises(InputError, match="nu=1"):
        LocalOneClassSVM(nu=1)
    with pytest.raises(InputError, match="gamma='auto'"):
        LocalOneClassSVM(gamma="auto")
    with pytest.raises(InputError, match=r"\(3, 4\)"):
        LocalOneClassSVM().fit(np.zeros((3, 4)))
    with pytest.raises(InputError, match="NaN or infinite"):
        LocalOneClassSVM().fit(np.full((3, 4, 2), np.nan))
    with pytest.raises(InputError, match="fitted at 5"):
        LocalOneClassSVM().fit(codes(0, 5, 6, 2)).score(codes(0, 4, 6, 2))
