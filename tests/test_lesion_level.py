"""Hits, ranks and FROC: loops over clusters and thresholds, numbers worked by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epizoo.evaluation import (
    first_hit,
    froc,
    match_clusters,
    mean_rank,
    sensitivity,
)
from tests.scored import SHAPE, ball, blobs


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_matching_equals_a_loop_over_clusters(seed, radius):
    labels = blobs(seed)
    lesion = ball(np.random.default_rng(seed).integers(0, SHAPE), radius)
    hits = match_clusters(labels, lesion)
    for i in range(1, labels.max() + 1):
        cluster = labels == i
        shared, union = (cluster & lesion).sum(), (cluster | lesion).sum()
        assert hits["overlap"][i - 1] == (shared > 0)
        centre = tuple(np.rint(np.argwhere(cluster).mean(axis=0)).astype(int))
        assert hits["strict"][i - 1] == (lesion[centre] or shared / union >= 0.1)


def test_strict_rule_refuses_a_touch_and_takes_a_centre():
    labels, lesion = np.zeros((20, 5, 5), int), np.zeros((20, 5, 5), bool)
    labels[0:10, 2, 2] = 1
    lesion[9:11, 2, 2] = True  # touched at one voxel of eleven: IoU 1/11
    assert match_clusters(labels, lesion)["overlap"].tolist() == [True]
    assert match_clusters(labels, lesion)["strict"].tolist() == [False]
    lesion[:] = False
    lesion[4, 2, 2] = True  # IoU 1/10
    assert match_clusters(labels, lesion)["strict"].tolist() == [True]


def test_figures_of_ranks_worked_by_hand():
    firsts = [first_hit(h) for h in ([0, 1, 1], [1, 0], [0, 0], [], [0, 0, 0, 0, 1])]
    assert firsts == [2, 1, np.inf, np.inf, 5]
    assert [sensitivity(firsts, k) for k in (1, 3, 5)] == [0.2, 0.4, 0.6]
    assert mean_rank(firsts) == pytest.approx(8 / 3)
    assert np.isnan(mean_rank([np.inf]))
    assert np.isnan(sensitivity([], 5))


def test_froc_worked_by_hand():
    # Patient 1: miss, hit, miss. Patient 2: hit, hit (the second costs nothing). Patient 3: miss, miss.
    hits = [np.array([0, 1, 0], bool), np.array([1, 1], bool), np.array([0, 0], bool)]
    curve = froc(hits)
    assert curve.false_positives == pytest.approx([0, 2 / 3, 1, 4 / 3])
    assert curve.sensitivity == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3])
    assert curve.area == pytest.approx((1 / 3 * 1 / 3 + 2 / 3 * 9) / 10)


def froc_by_loop(hits, confidence, limit=10.0):
    levels = sorted({c for patient in confidence for c in patient}, reverse=True)
    points = [(0.0, 0.0)]
    for level in levels:
        false = sum((~h & (c >= level)).sum() for h, c in zip(hits, confidence, strict=True))
        found = sum((h & (c >= level)).any() for h, c in zip(hits, confidence, strict=True))
        points.append((false / len(hits), found / len(hits)))
    grid = np.linspace(0, limit, 20_001)[:-1] + limit / 40_000
    area = np.mean([max(s for f, s in points if f <= x) for x in grid])
    return points, area


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 30))
def test_froc_equals_a_loop_over_thresholds(seed, patients, levels):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 12, patients)
    hits = [rng.random(n) < 0.3 for n in sizes]
    confidence = [rng.integers(0, levels, n).astype(float) for n in sizes]
    curve = froc(hits, confidence)
    points, area = froc_by_loop(hits, confidence)
    np.testing.assert_allclose(curve.false_positives, [p[0] for p in points])
    np.testing.assert_allclose(curve.sensitivity, [p[1] for p in points])
    assert curve.area == pytest.approx(area, abs=1e-3)
