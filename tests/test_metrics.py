"""Voxel metrics against scikit-learn, brute force and numbers worked by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from epizoo.evaluation.metrics import auroc, average_precision, dice, voxel_metrics
from tfds_epilepsy.errors import InputError


@st.composite
def scored_volumes(draw):
    seed, levels = draw(st.integers(0, 100_000)), draw(st.sampled_from([2, 5, 40, 10_000]))
    shape = draw(st.tuples(*[st.integers(2, 7)] * 3))
    rng = np.random.default_rng(seed)
    lesion = rng.random(shape) < draw(st.sampled_from([0.03, 0.2, 0.7]))
    scores = np.floor(levels * rng.random(shape) + lesion * rng.random(shape) * levels).astype(np.float32)
    return scores / levels, lesion, rng.random(shape) < 0.8


def usable(lesion, mask):
    return 0 < lesion[mask].sum() < mask.sum()


@settings(max_examples=60, deadline=None)
@given(scored_volumes())
def test_areas_equal_scikit_learn(volume):
    scores, lesion, mask = volume
    if not usable(lesion, mask):
        return
    got = voxel_metrics(scores, lesion, mask)
    y, s = lesion[mask], scores[mask]
    assert got.auroc == pytest.approx(roc_auc_score(y, s), abs=1e-12)
    assert got.auprc == pytest.approx(average_precision_score(y, s), abs=1e-12)
    assert got.prevalence == y.mean()
    # scikit-learn standardises the partial area after McClish: 0.5 (1 + (area - low) / (high - low)).
    low, high = 0.3**2 / 2, 0.3
    standardised = (1 + (got.auroc30 * 0.3 - low) / (high - low)) / 2
    assert standardised == pytest.approx(roc_auc_score(y, s, max_fpr=0.3), abs=1e-12)
    best = max(f1_score(y, s >= t) for t in np.unique(s))
    assert got.best_dice == pytest.approx(best, abs=1e-12)


def pro_by_brute_force(scores, lesion, mask, limit):
    """Per-region overlap, one threshold and one region at a time."""
    regions, n = ndimage.label(lesion & mask, structure=np.ones((3, 3, 3)))
    healthy = mask & ~lesion
    xs, ys = [0.0], [0.0]
    for threshold in np.unique(scores[mask])[::-1]:
        found = scores >= threshold
        xs.append(found[healthy].mean())
        ys.append(np.mean([found[regions == r].mean() for r in range(1, n + 1)]))
    area = 0.0
    for x0, x1, y0, y1 in zip(xs, xs[1:], ys, ys[1:], strict=False):
        if x0 >= limit or x1 == x0:
            continue
        stop = min(x1, limit)
        y_stop = y0 + (y1 - y0) * (stop - x0) / (x1 - x0)
        area += (stop - x0) * (y0 + y_stop) / 2
    return area / limit


@settings(max_examples=40, deadline=None)
@given(scored_volumes())
def test_aupro_equals_brute_force(volume):
    scores, lesion, mask = volume
    if usable(lesion, mask):
        got = voxel_metrics(scores, lesion, mask)
        assert got.aupro == pytest.approx(pro_by_brute_force(scores, lesion, mask, 0.3), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(scored_volumes(), st.integers(0, 1000))
def test_only_the_order_of_scores_matters_not_that_of_voxels(volume, seed):
    scores, lesion, mask = volume
    if not usable(lesion, mask):
        return
    s, y = scores[mask], lesion[mask]
    shuffle = np.random.default_rng(seed).permutation(len(s))
    monotone = np.exp(s.astype(np.float64)) * 3 - 100
    for figure in (auroc, average_precision):
        assert figure(s, y) == pytest.approx(figure(s[shuffle], y[shuffle]), abs=1e-12)
        assert figure(s, y) == pytest.approx(figure(monotone, y), abs=1e-12)
    assert auroc(s, y) + auroc(-s, y) == pytest.approx(1, abs=1e-12)


def test_worked_by_hand():
    # Scores 6 5 4 3 3 1, lesion 1 0 1 1 0 0: the tied pair at 3 enters at once.
    scores = np.array([6, 5, 4, 3, 3, 1], np.float32).reshape(6, 1, 1)
    lesion = np.array([1, 0, 1, 1, 0, 0], bool).reshape(6, 1, 1)
    got = voxel_metrics(scores, lesion, np.ones((6, 1, 1), bool), threshold=4)
    # ROC: (0,1/3) (1/3,1/3) (1/3,2/3) (2/3,1) (1,1): 1/9 + 5/18 + 1/3 = 13/18
    assert got.auroc == pytest.approx(13 / 18)
    # Up to .3 the curve is flat at 1/3.
    assert got.auroc30 == pytest.approx(1 / 3)
    # Recall steps of 1/3 at precisions 1, 2/3, 3/5.
    assert got.auprc == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # Regions {0} and {2, 3}: up to FPR .3 only the first is found.
    assert got.aupro == pytest.approx(1 / 2)
    # At 4: found {0, 1, 2}, two of three lesion voxels: 2 * 2 / (3 + 3).
    assert got.dice == pytest.approx(2 / 3)
    # At 3: five found, all three lesion voxels: 6 / 8.
    assert got.best_dice == pytest.approx(3 / 4)
    assert got.prevalence == 0.5


def test_perfect_constant_and_reversed_maps():
    lesion = np.zeros((10, 10, 10), bool)
    lesion[2:4, 2:4, 2:4] = True
    mask = np.ones(lesion.shape, bool)
    perfect = voxel_metrics(lesion.astype(np.float32), lesion, mask, threshold=0.5)
    assert (perfect.auroc, perfect.auroc30, perfect.auprc, perfect.aupro, perfect.dice) == (1, 1, 1, 1, 1)
    constant = voxel_metrics(np.zeros(lesion.shape, np.float32), lesion, mask)
    assert constant.auroc == pytest.approx(0.5)
    assert constant.auroc30 == constant.aupro == pytest.approx(0.15)
    assert constant.auprc == constant.prevalence == 0.008
    assert np.isnan(constant.dice)
    reversed_map = voxel_metrics(-lesion.astype(np.float32), lesion, mask)
    assert reversed_map.auroc == reversed_map.aupro == 0


def test_many_small_regions_weigh_as_much_as_one_large():
    lesion = np.zeros((30, 10, 10), bool)
    lesion[:9] = True  # 900 voxels
    lesion[20, 5, 5] = True  # one voxel
    scores = np.zeros(lesion.shape, np.float32)
    scores[20, 5, 5] = 1
    got = voxel_metrics(scores, lesion, np.ones(lesion.shape, bool))
    # From (0, 1/2) the curve rises straight to (1, 1): at .3 it is .65.
    assert got.aupro == pytest.approx((0.5 + 0.65) / 2)
    assert got.auroc30 == pytest.approx(0.15, abs=2e-3)


@pytest.mark.parametrize("value", [False, True])
def test_empty_and_full_lesions_have_no_figures(value):
    scores = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    lesion, mask = np.full((2, 2, 2), value), np.ones((2, 2, 2), bool)
    got = voxel_metrics(scores, lesion, mask, threshold=3)
    assert np.isnan([got.auroc, got.auroc30, got.auprc, got.aupro, got.dice, got.prevalence]).all()
    assert np.isnan(auroc(scores, lesion))
    assert np.isnan(average_precision(scores, lesion))


def test_nothing_outside_the_mask_is_read():
    scores = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    lesion, mask = scores > 20, np.ones((3, 3, 3), bool)
    mask[0] = False
    other = np.where(mask, scores, np.nan)
    assert voxel_metrics(other, lesion | ~mask, mask, 22) == voxel_metrics(scores, lesion, mask, 22)


def test_dice_of_masks():
    a = np.array([1, 1, 0, 0], bool)
    assert dice(a, a) == 1
    assert dice(a, ~a) == 0
    assert dice(a, np.array([1, 0, 0, 0], bool)) == pytest.approx(2 / 3)
    assert np.isnan(dice(a & ~a, a & ~a))


def test_unusable_input_is_refused():
    ones = np.ones((2, 2, 2))
    lesion = np.zeros((2, 2, 2), bool)
    lesion[0, 0, 0] = True
    with pytest.raises(InputError, match=r"\(2, 2, 3\)"):
        voxel_metrics(ones, np.zeros((2, 2, 3), bool), ones > 0)
    with pytest.raises(InputError, match="8 scores are NaN"):
        voxel_metrics(ones * np.nan, lesion, ones > 0)


def test_a_million_voxels_take_seconds_at_most():
    rng = np.random.default_rng(0)
    shape = (120, 110, 100)
    scores, lesion = rng.normal(size=shape).astype(np.float32), np.zeros(shape, bool)
    lesion[30:40, 30:40, 30:40] = True
    start = time.process_time()
    got = voxel_metrics(scores, lesion, np.ones(shape, bool), threshold=2)
    assert time.process_time() - start < 10
    assert got.auroc == pytest.approx(roc_auc_score(lesion.ravel(), scores.ravel()), abs=1e-12)
