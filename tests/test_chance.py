"""Chance: each cluster moved everywhere, the binomial, the mirrored lesion."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from epizoo.evaluation import (
    chance_of_rank,
    hit_chance,
    match_clusters,
    mirrored_hits,
    more_than_chance,
)
from tests.scored import SHAPE, ball, blobs


def chance_by_loop(labels, lesion, mask):
    """Move every cluster to every voxel of the brain."""
    result = {"overlap": [], "strict": []}
    for i in range(1, labels.max() + 1):
        cluster = np.argwhere(labels == i)
        centre = np.rint(cluster.mean(axis=0)).astype(int)
        counts = {"overlap": 0, "strict": 0}
        for place in np.argwhere(mask):
            moved = cluster - centre + place
            moved_in = moved[((moved >= 0) & (moved < lesion.shape)).all(axis=1)]
            shared = lesion[tuple(moved_in.T)].sum()
            iou = shared / (len(cluster) + lesion.sum() - shared)
            counts["overlap"] += shared > 0
            counts["strict"] += bool(lesion[tuple(place)]) or iou >= 0.1
        for rule, count in counts.items():
            result[rule].append(count / mask.sum())
    return result


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3))
def test_chance_equals_moving_each_cluster_everywhere(seed, radius):
    shape = (11, 9, 8)
    rng = np.random.default_rng(seed)
    labels, lesion = blobs(seed, shape), ball(rng.integers(0, shape), radius, shape)
    mask = ball((5, 4, 4), 4.5, shape)
    got, expected = hit_chance(labels, lesion & mask, mask), chance_by_loop(labels, lesion & mask, mask)
    for rule in ("overlap", "strict"):
        np.testing.assert_allclose(got[rule], expected[rule], atol=1e-12)


def test_chance_of_several_clusters_and_its_p_value():
    assert chance_of_rank([0.5, 0.5, 0.5], 2) == 0.75
    assert chance_of_rank([], 5) == 0
    # Equal chances: the Poisson binomial is the binomial.
    assert more_than_chance(3, [0.2] * 5) == pytest.approx(stats.binom.sf(2, 5, 0.2))
    assert more_than_chance(14, [0.02] * 20) == pytest.approx(stats.binom.sf(13, 20, 0.02), rel=1e-9, abs=0)
    assert more_than_chance(0, [0.2] * 5) == 1
    # Two patients of chances .1 and .5: both found .05, one at least .55.
    assert more_than_chance(2, [0.1, 0.5]) == pytest.approx(0.05)
    assert more_than_chance(1, [0.1, 0.5]) == pytest.approx(0.55)
    assert np.isnan(more_than_chance(0, []))


def test_mirrored_lesion_is_on_the_other_side():
    labels, lesion = np.zeros(SHAPE, int), np.zeros(SHAPE, bool)
    labels[2, 3, 4], labels[18, 3, 4] = 1, 2
    lesion[2, 3, 4] = True
    assert match_clusters(labels, lesion)["overlap"].tolist() == [True, False]
    assert mirrored_hits(labels, lesion)["overlap"].tolist() == [False, True]
