"""Lesion level, chance, statistics and the whole evaluation: brute force, draws, numbers worked by hand."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from epizoo.detection.clusters import find_clusters
from epizoo.evaluation import (
    Scored,
    bootstrap_mean,
    chance_of_rank,
    check_no_leak,
    compare,
    evaluate,
    first_hit,
    froc,
    hit_chance,
    holm,
    match_clusters,
    mean_rank,
    mirrored_hits,
    more_than_chance,
    pool,
    proportion,
    sensitivity,
    split_hash,
)
from tests.scored import AFFINE, SHAPE, ball, scored
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import write_json
from tfds_epilepsy.volumes import Subject


def blobs(seed: int, shape=SHAPE, n: int = 3) -> np.ndarray:
    """A label volume of n connected clusters."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.0)
    return find_clusters(noise, AFFINE, np.ones(shape, bool), max_clusters=n, min_size_mm3=200)[1]


# --- hits


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


# --- chance


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


# --- statistics


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


# --- the whole


def cohort(contrast: float, patients: int = 8):
    rng = np.random.default_rng(7)
    for i in range(patients):
        lesion = ball(np.array([10, 8, 5]) + rng.integers(-4, 5, 3), 1.8)
        kind = "fcd_iia" if i % 2 else "fcd_iib"
        yield scored(f"p{i}", i, lesion=lesion, contrast=contrast, site="ab"[i % 2], strata={"type": kind})
    for i in range(4):
        yield scored(f"c{i}", 100 + i)


def test_a_strong_lesion_is_found_first_and_above_chance():
    metrics = evaluate(cohort(contrast=5), threshold=3.0, resamples=200)
    assert (metrics["patients"], metrics["controls"], metrics["unannotated"]) == (8, 4, 0)
    assert metrics["voxel"]["auroc"]["value"] > 0.99
    for rule in ("overlap", "strict"):
        figures = metrics["lesion"][rule]
        first = figures["sensitivity"]["1"]
        assert (first["value"], first["high"], first["n"]) == (1, 1, 8)
        assert first["low"] < 1
        assert first["chance"] < 0.5
        assert first["p"] < 1e-3
        assert figures["mean_rank"]["value"] == 1
        assert figures["froc"]["area"]["value"] == 1
        assert figures["at_threshold"]["sensitivity"]["value"] == 1
        assert figures["at_threshold"]["false_positives"]["value"] == 0
    assert metrics["false_positives"]["clusters"]["value"] > 0
    assert metrics["false_positives"]["clusters_at_threshold"]["value"] == 0
    assert metrics["false_positives"]["controls_with_none_at_threshold"]["value"] == 1


def test_maps_that_ignore_the_lesion_stay_at_chance():
    metrics = evaluate(cohort(contrast=0, patients=40), resamples=200)
    auroc = metrics["voxel"]["auroc"]
    assert auroc["low"] < 0.5 < auroc["high"]
    for rule in ("overlap", "strict"):
        for figure in metrics["lesion"][rule]["sensitivity"].values():
            assert figure["low"] <= figure["chance"] <= figure["high"]
            assert figure["p"] > 0.01


def test_strata_hold_each_patient_once():
    metrics = evaluate(cohort(contrast=5), resamples=100)
    assert set(metrics["strata"]) == {"type", "site", "size"}
    for groups in metrics["strata"].values():
        assert sum(group["n"] for group in groups.values()) == 8
    assert metrics["strata"]["type"]["fcd_iib"]["n"] == 4
    assert set(metrics["strata"]["size"]) <= {"under 15 mm", "15 mm or more"}
    for row in metrics["rows"][:8]:
        diameter = (6 * row["lesion_mm3"] / np.pi) ** (1 / 3)
        assert row["strata"]["size"] == ("under 15 mm" if diameter < 15 else "15 mm or more")
    assert metrics["strata"]["site"]["a"]["sensitivity_at_5_overlap"]["value"] == 1


def test_result_is_json_without_nan_and_the_same_each_time(tmp_path):
    metrics = evaluate(cohort(contrast=1), resamples=100)
    path = write_json(tmp_path / "metrics.json", metrics)
    assert json.loads(path.read_text()) == metrics == evaluate(cohort(contrast=1), resamples=100)
    assert metrics["lesion"]["overlap"]["at_threshold"] is None
    assert metrics["voxel"]["dice"]["value"] is None
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_controls_alone_give_false_positives_and_no_sensitivity():
    metrics = evaluate([scored("c0", 1), scored("c1", 2)], threshold=0.0, resamples=50)
    assert metrics["patients"] == 0
    assert metrics["lesion"]["overlap"]["sensitivity"]["5"]["value"] is None
    assert metrics["false_positives"]["clusters"]["n"] == 2
    json.dumps(metrics, allow_nan=False)


def test_folds_pool_to_what_one_test_set_gives():
    everyone = list(cohort(contrast=2))
    whole = evaluate(everyone, threshold=3.0, resamples=50)
    parts = [json.loads(json.dumps(evaluate(everyone[i::2], threshold=3.0, resamples=50))) for i in (0, 1)]
    pooled = pool(parts, resamples=50)
    for name, figure in whole["voxel"].items():
        assert pooled["voxel"][name]["value"] == pytest.approx(figure["value"])
    for rule in ("overlap", "strict"):
        one, other = whole["lesion"][rule], pooled["lesion"][rule]
        for rank, figure in one["sensitivity"].items():
            assert other["sensitivity"][rank] == pytest.approx(figure)
        assert one["froc"]["area"]["value"] == pytest.approx(other["froc"]["area"]["value"])
        assert one["froc"]["false_positives"] == other["froc"]["false_positives"]
    for name, figure in whole["false_positives"].items():
        assert pooled["false_positives"][name]["value"] == pytest.approx(figure["value"])
    with pytest.raises(InputError, match="more than once"):
        pool([parts[0], parts[0]])


def test_a_mean_rank_that_no_patient_has_has_no_interval():
    metrics = evaluate(cohort(contrast=-5), resamples=50)
    figure = metrics["lesion"]["strict"]["mean_rank"]
    assert (figure["value"], figure["low"], figure["high"], figure["n"]) == (None, None, None, 8)


def test_a_patient_without_a_lesion_mask_is_counted_apart():
    one = scored("p9", 3)
    unannotated = Scored(
        Subject(**(vars(one.subject) | {"group": "patient"})), one.score_map, one.clusters, one.labels
    )
    metrics = evaluate([unannotated], resamples=50)
    assert (metrics["patients"], metrics["controls"], metrics["unannotated"]) == (0, 0, 1)


def test_subjects_stream_one_at_a_time():
    alive = []

    def stream():
        for one in cohort(contrast=2, patients=6):
            alive.append(weakref.ref(one.score_map))
            yield one
            del one
            assert sum(ref() is not None for ref in alive) <= 2

    evaluate(stream(), resamples=50)
    assert len(alive) == 10


def test_unusable_test_sets_are_refused():
    with pytest.raises(InputError, match="empty"):
        evaluate([])
    with pytest.raises(InputError, match="more than once: c0"):
        evaluate([scored("c0", 1), scored("c0", 2)])
    one = scored("c0", 1)
    with pytest.raises(InputError, match="sub-c0"):
        evaluate([Scored(one.subject, one.score_map[1:], one.clusters, one.labels)])


def test_example_of_the_documentation_runs(tmp_path, monkeypatch):
    text = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    subjects = {one.subject.subject: one for one in cohort(contrast=3, patients=3)}

    class Normative:
        subjects: ClassVar = ["t0"]

        def score(self, subject):
            return subjects[subject.subject].score_map

    monkeypatch.chdir(tmp_path)
    names = {
        "normative": Normative(),
        "affine": AFFINE,
        "test_subjects": list(subjects),
        "test": [one.subject for one in subjects.values()],
        "validation_controls": [one.subject for name, one in subjects.items() if name.startswith("c")],
    }
    exec(code, names)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["patients"], metrics["controls"]) == (3, 4)
    assert metrics["threshold"] == names["threshold"]
    assert metrics["false_positives"]["clusters_at_threshold"]["value"] <= 1
