"""Maps of several profiles on one scale: against counts over drawn brains."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from epizoo.detection.rarity import HISTOGRAM, rarest, rarest_in_graph, rarity
from epizoo.detection.tail import Tail

BRAINS, VOXELS = 40, 5000


def brains(seed, scale=1.0, degrees=None):
    rng = np.random.default_rng(seed)
    drawn = (
        rng.normal(size=(BRAINS, VOXELS)) if degrees is None else rng.standard_t(degrees, (BRAINS, VOXELS))
    )
    return scale * drawn


def known(z):
    """Survival and tail of brains ``(n, v)``, and what they make."""
    reached = (z[None] >= HISTOGRAM[::50, None, None]).sum((1, 2))
    survival = np.interp(HISTOGRAM, HISTOGRAM[::50], (reached + 1) / (z.size + 1))
    tail = Tail.fit(z.max(1))
    return survival, tail, rarity(survival, tail)


def test_rarity_counts_the_places_that_are_as_high():
    """Minus the log of how many there are in a brain, where there are some, and of how few, above."""
    z = brains(0)
    _, tail, table = known(z)
    for edge in (1.0, 1.5, 2.0, 2.5, 3.0):
        places = (z >= edge).sum() / BRAINS
        assert np.interp(edge, HISTOGRAM, table) == pytest.approx(-np.log(places), abs=0.5)
    assert np.interp(tail.location, HISTOGRAM, table) == pytest.approx(0, abs=0.01)
    for edge in (tail.location + tail.scale, tail.location + 2 * tail.scale):
        places = VOXELS * stats.norm.sf(edge)
        assert np.interp(edge, HISTOGRAM, table) == pytest.approx(-np.log(places), abs=0.4)


@pytest.mark.parametrize("seed", range(4))
def test_rarity_ascends_strictly(seed):
    for z in (brains(seed), brains(seed, 0.1), brains(seed, 3.0), brains(seed, degrees=3)):
        assert (np.diff(known(z)[2]) > 0).all()


def test_what_no_control_has_shown_ascends_too():
    survival = np.where(HISTOGRAM < 1, 1.0, 1e-6)  # every voxel of every control is 1
    assert (np.diff(rarity(survival, Tail.fit([1.0, 1.0, 1.0]))) > 0).all()


def test_a_profile_alone_keeps_its_z():
    _, _, table = known(brains(0))
    z = np.concatenate([np.linspace(-15, 60, 500), [np.nan]])[:, None]
    for share in (1.0, 0.2):
        highest, aligned = rarest(z, table[None], [share])
        np.testing.assert_allclose(highest[:-1], z[:-1, 0], rtol=1e-5, atol=1e-5)
        assert highest[-1] == -np.inf
        np.testing.assert_array_equal(aligned[:, 0], highest)


def test_a_profile_of_another_scale_counts_by_its_rarity():
    """One that is three times as high in healthy people must be three times as high."""
    tables = np.stack([known(brains(0))[2], known(3 * brains(0))[2]])
    z = np.array([[0.0, 6.0], [1.0, 9.0], [2.5, 6.0], [4.5, 13.5], [5.0, np.nan], [np.nan, 9.0]])
    highest, aligned = rarest(z, tables, [1, 1])
    np.testing.assert_allclose(highest, [2, 3, 2.5, 4.5, 5, 3], atol=0.12)
    np.testing.assert_array_equal(aligned[4:, [1, 0]].diagonal(), [-np.inf, -np.inf])
    assert highest.dtype == aligned.dtype == np.float32


def test_half_the_share_must_be_twice_as_rare():
    _, tail, table = known(brains(0))
    z = np.array([[-20.0, tail.location + 2.0]])
    whole = rarest(z, np.stack([table, table]), [1, 1])[0][0]
    half = rarest(z, np.stack([table, table]), [1, 0.5])[0][0]
    assert whole == pytest.approx(tail.location + 2, abs=1e-3)
    times = np.exp(np.interp(whole, HISTOGRAM, table) - np.interp(half, HISTOGRAM, table))
    assert times == pytest.approx(2, rel=1e-3)
    both = rarest(z, np.stack([table, table]), [0.3, 0.15])[0][0]  # what counts is their ratio
    assert both == pytest.approx(half, abs=1e-5)


def test_the_highest_keeps_its_order_whatever_the_profile():
    tables = np.stack([known(brains(0))[2], known(brains(1, 2.0, degrees=4))[2]])
    lower = np.sort(np.random.default_rng(2).normal(0, 4, (200, 2)), axis=0)
    highest, _ = rarest(lower, tables, [1, 0.2])
    assert (np.diff(highest) >= 0).all()


def test_the_form_in_a_graph_gives_the_same():
    tables = np.stack([known(brains(0))[2], known(brains(1, 2.0, degrees=4))[2]])
    z = np.random.default_rng(3).normal(0, 6, (7, 11, 5, 2)).astype(np.float32)
    z[np.random.default_rng(4).random(z.shape) < 0.2] = np.nan
    z[0, 0, 0], z[0, 0, 1] = [200, -200], [-200, 200]
    expected, _ = rarest(z, tables, [1, 0.2])
    assert np.isinf(expected).any()
    np.testing.assert_allclose(
        rarest_in_graph(tf.constant(z), tf.constant(tables), [1, 0.2]), expected, rtol=1e-5
    )
