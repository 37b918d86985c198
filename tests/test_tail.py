"""How rare the highest score is: the fit against scipy, p against drawn controls."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from epizoo.detection.tail import Tail, _gumbel
from tfds_epilepsy.errors import InputError


@pytest.mark.parametrize("n", [3, 5, 12, 40, 300])
def test_the_fit_is_that_of_scipy(n):
    maxima = np.random.default_rng(n).gumbel(5.0, 0.7, n)
    tail = Tail.fit(maxima)
    assert (tail.location, tail.scale) == pytest.approx(stats.gumbel_r.fit(maxima), rel=1e-4)
    assert tail.controls == n


def test_fits_of_any_unit_and_with_an_outlier_converge():
    maxima = np.array([4.1, 4.3, 4.0, 4.2, 4.4, 60.0])
    for scale in (1e-3, 1.0, 1e4):
        tail = Tail.fit(scale * maxima)
        assert (tail.location, tail.scale) == pytest.approx(stats.gumbel_r.fit(scale * maxima), rel=1e-3)


@pytest.mark.parametrize("controls", [5, 10, 40])
def test_a_healthy_person_has_a_p_of_5_percent_in_5_percent_of_cohorts(controls):
    """The doubt about a fit to a few controls is in p: without it, ten controls gave p <= .05 to 7 %."""
    cohorts = 20000
    rng = np.random.default_rng(1)
    locations, scales = _gumbel(3 + 2 * rng.gumbel(size=(cohorts, controls)))
    healthy = 3 + 2 * rng.gumbel(size=cohorts)
    distances = Tail(0.0, 1.0, controls).p((healthy - locations) / scales)
    for p in (0.05, 0.1):
        spread = np.sqrt(p * (1 - p) / cohorts)
        assert np.mean(distances <= p) == pytest.approx(p, abs=4 * spread + 0.03 * p)  # p itself is simulated


def test_few_controls_say_less():
    p = [float(Tail(5.0, 1.0, controls).p(9.0)) for controls in (3, 5, 10, 40, 501)]
    assert p == sorted(p, reverse=True)
    assert p[-1] == pytest.approx(stats.gumbel_r.sf(9.0, 5.0, 1.0), rel=1e-3)  # no doubt is left


@given(
    st.sampled_from([3, 8, 20]).flatmap(lambda n: st.lists(st.floats(-1e3, 1e3), min_size=n, max_size=n)),
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20),
)
@settings(max_examples=40, deadline=None)
def test_a_higher_score_is_never_more_probable(maxima, scores):
    p = Tail.fit(maxima).p(np.sort(scores))
    assert ((p > 0) & (p <= 1)).all()
    assert (np.diff(p) <= 0).all()


@pytest.mark.parametrize("controls", [3, 10, 75, 800])
def test_the_level_is_the_score_of_a_p(controls):
    tail = Tail(4.0, 0.5, controls)
    for p in (0.9, 0.5, 0.1, 0.05, 0.001):
        assert float(tail.p(tail.level(p))) == pytest.approx(p, rel=1e-6)
    assert tail.level(0.05) > tail.level(0.1)


def test_p_in_a_graph_is_p():
    tail = Tail(4.0, 0.5, 7)
    scores = np.concatenate([[-np.inf, np.inf], np.linspace(-10, 100, 301)]).astype(np.float32)
    got = tail.p_in_graph(tf.constant(scores.reshape(3, 101))).numpy()
    np.testing.assert_allclose(got, tail.p(scores).reshape(3, 101), rtol=1e-6)


def test_controls_that_are_all_alike_have_a_tail():
    tail = Tail.fit([4.0, 4.0, 4.0, 4.0])
    assert tail.location == pytest.approx(4.0, abs=1e-5)
    assert tail.scale == pytest.approx(1e-6)
    assert float(tail.p(4.1)) < 0.01 < 0.99 < float(tail.p(3.9))


@pytest.mark.parametrize(
    "maxima", [[], [4.0, 5.0], [4.0, 5.0, np.nan], [4.0, 5.0, np.inf], [[1.0, 2.0, 3.0]]]
)
def test_too_few_or_broken_maxima_are_refused(maxima):
    with pytest.raises(InputError, match=r"at least 3 controls, finite"):
        Tail.fit(maxima)


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, np.nan])
def test_a_level_of_no_probability_is_refused(p):
    with pytest.raises(InputError, match="between 0 and 1"):
        Tail(4.0, 0.5, 10).level(p)
