"""Intervals and comparisons: scipy, numbers worked by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from epizoo.evaluation import (
    bootstrap_mean,
    check_no_leak,
    compare,
    holm,
    proportion,
    split_hash,
)
from tfds_epilepsy.errors import InputError


def test_bootstrap_agrees_with_scipy_and_leaves_out_nan():
    values = np.random.default_rng(0).gamma(2, size=40)
    got = bootstrap_mean(np.append(values, np.nan), resamples=20_000)
    ours = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1)
    assert (got.value, got.n) == (values.mean(), 40)
    assert got.low == pytest.approx(ours.confidence_interval.low, abs=0.02)
    assert got.high == pytest.approx(ours.confidence_interval.high, abs=0.02)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert np.isnan(bootstrap_mean([]).value)


def test_share_of_all_patients_keeps_an_interval():
    # Wilson, 20 of 20: the lower limit is n / (n + z^2).
    interval = proportion([True] * 20)
    assert interval.value == interval.high == 1
    assert interval.low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-6)


def test_holm_worked_by_hand():
    # Sorted .01 .02 .03 .04, times 4 3 2 1: .04 .06 .06 .04, made monotone.
    assert holm([0.03, 0.01, np.nan, 0.04, 0.02]) == pytest.approx(
        [0.06, 0.04, np.nan, 0.06, 0.06], nan_ok=True
    )
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_the_order(p):
    adjusted = holm(p)
    assert (adjusted >= np.array(p) - 1e-12).all()
    assert (adjusted <= np.minimum(1, np.array(p) * len(p)) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


def test_methods_are_compared_patient_by_patient():
    rng = np.random.default_rng(0)
    base = {f"p{i}": x for i, x in enumerate(rng.random(20))}
    better = {k: v + 0.1 + 0.02 * rng.random() for k, v in base.items() if k != "p3"} | {"stranger": 9.0}
    same = dict(base)
    first, second = compare({"base": base, "better": better, "same": same}, "base")
    assert (first.method, first.difference.n) == ("better", 19)
    assert 0.1 < first.difference.low < first.difference.value < first.difference.high < 0.12
    assert first.p == pytest.approx(2 / 2**19)  # every sign alike
    assert first.p_holm == pytest.approx(2 * first.p)
    assert (second.difference.value, second.p, second.p_holm) == (0, 1, 1)
    with pytest.raises(InputError, match="no method 'other'"):
        compare({"base": base}, "other")


def test_found_or_not_is_compared_by_mcnemar():
    a = {str(i): float(i < 9) for i in range(10)}
    b = {str(i): float(i < 2 or i == 9) for i in range(10)}
    (row,) = compare({"a": a, "b": b}, "b")
    assert row.p == pytest.approx(stats.binomtest(7, 8).pvalue)
    assert row.difference.value == pytest.approx(0.6)


def test_split_hash_ignores_order_and_notices_a_move():
    one = split_hash({"train": ["a", "b"], "test": ["c"]})
    assert one == split_hash({"test": ["c"], "train": ["b", "a"]})
    assert one != split_hash({"train": ["a"], "test": ["b", "c"]})
    assert len(one) == 16


def test_a_detector_that_saw_test_subjects_is_refused():
    check_no_leak(["a", "b"], ["c"])
    with pytest.raises(InputError, match="2 of the subjects to be evaluated: b, c"):
        check_no_leak(["a", "b", "c"], ["d", "c", "b"])
