"""Every detector against an independent implementation, and what all have in common."""

import copy
import json
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.covariance import OAS
from sklearn.svm import OneClassSVM

from epizoo.detection.adjusted import Adjusted
from epizoo.detection.classical import ZScore
from epizoo.detection.detector import DETECTORS, Detector, create_detector
from epizoo.detection.gaussian import LocalGaussian
from epizoo.detection.knn import LocalKNN
from tests.codes import KINDS, codes
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
    assert DETECTORS.get(detector.name) is type(detector)


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


@pytest.mark.parametrize("value", [1e17, -1e30, 1e300])
def test_codes_of_1e30_have_no_infinite_scores(detector, value):
    controls = codes(0, 6, 20, 4)
    detector.fit(controls)
    assert np.isfinite(detector.score(np.full((6, 2, 4), np.copysign(1e16, value)))).all()
    with pytest.raises(InputError, match="beyond 1e\\+16"):
        detector.score(np.full((6, 2, 4), value))


def test_a_code_far_from_controls_that_hardly_vary_is_scored():
    controls = codes(0, 6, 20, 4) * np.float32(1e-18)
    for scale in ("standard", "whiten"):
        scores = Adjusted("knn", scale=scale).fit(controls).score(np.ones((6, 2, 4)))
        assert np.isfinite(scores).all()


def test_controls_of_1e_30_give_no_nan(detector):
    scale = np.float32(1e-30)
    scores = detector.fit(codes(0, 6, 20, 4) * scale).score(codes(1, 6, 3, 4) * scale)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("threads", [0, -1])
@pytest.mark.parametrize("name", ["ocsvm", "gaussian", "knn"])
def test_threads_as_in_n_jobs_are_refused_before_fitting(name, threads):
    with pytest.raises(InputError, match="None for all cores"):
        create_detector(name, threads=threads)


def test_a_detector_outlives_pickle_and_deepcopy(detector):
    train, query = codes(0, 6, 20, 4), codes(1, 6, 3, 4)
    scores = detector.fit(train).score(query)
    for again in (pickle.loads(pickle.dumps(detector)), copy.deepcopy(detector)):
        np.testing.assert_array_equal(again.score(query), scores)


def test_a_detector_fitted_again_has_forgotten_the_first_controls(detector):
    train, query = codes(0, 6, 20, 4), codes(1, 6, 3, 4)
    scores = create_detector(detector.name).fit(train).score(query)
    np.testing.assert_array_equal(detector.fit(codes(2, 5, 9, 3)).fit(train).score(query), scores)


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


def test_a_fit_holds_no_more_than_it_says(detector):
    if detector.sampled:
        return  # learnt from a sample, before the slabs
    drawn = np.random.default_rng(0).normal(size=(2000, 40, 16)).astype(np.float32)
    folds = np.arange(40) % 10
    fresh = Adjusted(scale="whiten") if detector.name == "adjusted" else detector
    fresh.fit(drawn[:2])  # compiles
    fresh.cross_scores(drawn[:2], folds)
    tracemalloc.start()
    fresh.cross_scores(drawn, folds)
    fresh.fit(drawn)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= detector.working * drawn.nbytes


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
        # The mean is kept in float32: far from zero that alone moves the distance.
        steepest = np.sqrt(np.linalg.norm(reference.precision_, 2))
        rounding = np.spacing(np.abs(train[voxel]).max()) * np.sqrt(d) * steepest
        np.testing.assert_allclose(scores[voxel], expected, rtol=2e-3, atol=2e-3 + rounding)


@settings(max_examples=20, deadline=None)
@given(**SIZES, k=st.integers(1, 9))
def test_knn_is_the_mean_distance_to_the_nearest(seed, n, d, kind, k):
    train = codes(seed, 2, n, d, kind)
    query = np.concatenate([train[:, :3], codes(seed + 1, 2, 3, d, kind)], axis=1)
    scores = LocalKNN(k).fit(train).score(query)
    for voxel in range(2):
        distances = np.sort(cdist(query[voxel].astype(np.float64), train[voxel].astype(np.float64)))
        expected = distances[:, : min(k, n)].mean(1)
        np.testing.assert_allclose(scores[voxel], expected, rtol=1e-4, atol=1e-4)


def test_zscore_by_hand():
    """Controls 1, 2, 3: mean 2, sd 1, times sqrt(4/3) for a new subject; the second feature is nearer."""
    train = np.array([[[1, 0], [2, 0.5], [3, 1]]], np.float32)
    scores = ZScore().fit(train).score(np.array([[[5, 0.5], [-1, 0.5]]], np.float32))
    np.testing.assert_allclose(scores, 3 / np.sqrt(4 / 3) * np.ones((1, 2)), rtol=1e-6)


# === Adjusted ===


def test_an_effect_of_age_is_regressed_out():
    """The codes follow age; a control of 80 years among those of 20 to 60 is normal for its age."""
    rng = np.random.default_rng(0)
    age = rng.uniform(20, 60, 40)
    noise = rng.normal(size=(6, 40, 4))
    train = (noise + 0.2 * age[:, None]).astype(np.float32)
    query = (rng.normal(size=(6, 1, 4)) + 0.2 * 80).astype(np.float32)
    plain = LocalGaussian().fit(train).score(query)
    adjusted = create_detector("adjusted", detector="gaussian", covariates=["age"]).fit(train, age=age)
    assert (adjusted.score(query, age=np.array([80.0])) < 0.7 * plain).all()

    design = np.column_stack([np.ones(40), age])
    residual = train[2] - design @ np.linalg.lstsq(design, train[2], rcond=None)[0]
    expected = (
        LocalGaussian()
        .fit(residual[None])
        .score((query[2] - [1, 80.0] @ np.linalg.lstsq(design, train[2], rcond=None)[0])[None])
    )
    np.testing.assert_allclose(adjusted.score(query, age=np.array([80.0]))[2:3], expected, rtol=1e-3)


def test_unknown_constant_or_too_many_covariates_change_nothing():
    train, query = codes(0, 5, 20, 4), codes(1, 5, 3, 4)
    centred = LocalGaussian().fit(train).score(query)
    detector = create_detector("adjusted", detector="gaussian", covariates=["age", "sex"])
    for age in (np.full(20, np.nan), np.full(20, 40.0)):
        scores = detector.fit(train, age=age, sex=np.zeros(20)).score(query, age=np.full(3, 50.0))
        np.testing.assert_allclose(scores, centred, rtol=1e-3)
    few = detector.fit(train[:, :5], age=np.arange(5.0), sex=np.arange(5.0) % 2).score(query)
    np.testing.assert_allclose(few, LocalGaussian().fit(train[:, :5]).score(query), rtol=1e-3)


def test_cross_scores_regress_in_each_fold_anew():
    train, folds, age = codes(0, 4, 20, 3), np.arange(20) % 4, np.linspace(20, 60, 20)
    detector = create_detector("adjusted", detector="gaussian", covariates=["age"], scale="standard")
    scores = detector.cross_scores(train, folds, age=age)
    held = folds == 2
    expected = detector.fit(train[:, ~held], age=age[~held]).score(train[:, held], age=age[held])
    np.testing.assert_allclose(scores[:, held], expected, rtol=1e-5)


@pytest.mark.parametrize("scale", ["standard", "whiten"])
def test_scaling_makes_the_scores_independent_of_the_units_of_the_features(scale):
    train, query = codes(0, 5, 40, 4), codes(1, 5, 6, 4)
    units = np.array([1, 20, 0.1, 1], np.float32)
    detector = create_detector("adjusted", detector="knn", scale=scale)
    scores, other = (detector.fit(train * u).score(query * u) for u in (np.float32(1), units))
    if scale == "standard":
        np.testing.assert_allclose(scores, other, rtol=1e-3)
    white = LocalGaussian().fit(train).whiten(query)
    np.testing.assert_allclose(
        np.linalg.norm(white, axis=2), LocalGaussian().fit(train).score(query), rtol=1e-5
    )


def test_bad_adjustments_are_refused():
    with pytest.raises(InputError, match="scale='robust'"):
        create_detector("adjusted", scale="robust")
    with pytest.raises(InputError, match="weight"):
        create_detector("adjusted", covariates=["weight"])


# === One for the brain ===


def test_a_pooled_svm_is_that_of_sklearn_on_all_codes():
    train, query = codes(0, 6, 10, 5), codes(1, 6, 4, 5)
    detector = create_detector("pooled", nu=0.1, samples=60)
    svm = OneClassSVM(nu=0.1, tol=1e-9).fit(train.reshape(-1, 5).astype(np.float64))
    expected = -svm.decision_function(query.reshape(-1, 5).astype(np.float64)).reshape(6, 4)
    np.testing.assert_allclose(detector.fit(train).score(query), expected, atol=1e-4)


def test_a_pooled_svm_keeps_what_it_learnt_from_the_whole_brain():
    sample, folds = codes(0, 50, 10, 5), np.arange(10) % 3
    slab = codes(1, 4, 10, 5) + 1
    detector = create_detector("pooled", samples=500).prepare(sample, folds)
    crossed = detector.cross_scores(slab, folds)
    fold = create_detector("pooled", samples=500).fit(sample[:, folds != 1])
    np.testing.assert_allclose(crossed[:, folds == 1], fold.score(slab[:, folds == 1]), atol=1e-5)
    whole = create_detector("pooled", samples=500).fit(sample)
    np.testing.assert_array_equal(detector.fit(slab).score(slab), whole.score(slab))


def test_a_patients_own_svm_finds_what_is_rare_in_it():
    sample = codes(0, 400, 2, 5)
    sample[:, 1] += 7  # the second subject differs everywhere: nothing in it is rare
    detector = create_detector("patient", nu=0.1).prepare(sample)
    svm = OneClassSVM(nu=0.1, tol=1e-9).fit(sample[:, 1].astype(np.float64))
    query = codes(1, 6, 2, 5)
    scores = detector.score(query)
    np.testing.assert_allclose(scores[:, 1], -svm.decision_function(query[:, 1].astype(float)), atol=1e-4)
    assert scores[:, 1].min() > scores[:, 0].max()
