"""Clusters: the flood against a plain loop of labelling, ranks by hand, thresholds on controls, TSV."""

from __future__ import annotations

import json
from dataclasses import astuple, replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from epizoo.detection.clusters import (
    CONNECTIVITY,
    calibrate_threshold,
    cluster_counts,
    find_clusters,
    read_clusters_tsv,
    write_clusters_tsv,
)
from epizoo.detection.explained import Explained
from tfds_epilepsy.errors import InputError

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def field(seed: int, shape: tuple[int, int, int] = (21, 18, 15)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, 1.2).astype(np.float32)


def count_by_labelling(score_map: np.ndarray, mask: np.ndarray, level: float, min_voxels: int) -> int:
    labels, _ = ndimage.label((score_map >= level) & mask, structure=CONNECTIVITY)
    return int(np.count_nonzero(np.bincount(labels.ravel())[1:] >= min_voxels))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 6)),
    min_voxels=st.integers(1, 6),
    values=st.integers(2, 30),  # few values: many ties
)
def test_counts_equal_labelling_at_every_threshold(seed, shape, min_voxels, values):
    rng = np.random.default_rng(seed)
    score_map = rng.integers(0, values, shape).astype(np.float32)
    mask = rng.random(shape) < 0.8
    levels, counts = cluster_counts(score_map, mask, min_voxels, max_fraction=1.0)
    assert list(levels) == sorted(set(score_map[mask].tolist()), reverse=True)
    expected = [count_by_labelling(score_map, mask, level, min_voxels) for level in levels]
    assert list(counts) == expected


def test_threshold_is_the_last_before_an_eleventh_cluster():
    score_map, mask = field(1, (40, 40, 30)), np.ones((40, 40, 30), bool)
    clusters, labels = find_clusters(score_map, AFFINE, mask, min_size_mm3=40)
    assert len(clusters) == 10
    threshold = score_map[labels > 0].min()
    below = np.sort(score_map[score_map < threshold])[::-1]
    assert count_by_labelling(score_map, mask, threshold, 5) == 10
    # The next levels down: the eleventh comes before another threshold would be chosen.
    following = [count_by_labelling(score_map, mask, level, 5) for level in below[:400]]
    first_excess = next(i for i, n in enumerate(following) if n > 10)
    assert all(n <= 10 for n in following[:first_excess])
    higher = np.unique(score_map[score_map >= threshold])
    assert all(count_by_labelling(score_map, mask, level, 5) <= 10 for level in higher[-60:])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), max_clusters=st.integers(1, 12), min_voxels=st.integers(1, 8))
def test_labels_are_ranked_connected_components(seed, max_clusters, min_voxels):
    score_map = field(seed)
    mask = np.random.default_rng(seed).random(score_map.shape) < 0.9
    clusters, labels = find_clusters(
        score_map, AFFINE, mask, max_clusters=max_clusters, min_size_mm3=8 * min_voxels
    )
    assert [c.rank for c in clusters] == list(range(1, len(clusters) + 1))
    assert len(clusters) <= max_clusters
    assert set(np.unique(labels)) == {0, *range(1, len(clusters) + 1)}
    assert not labels[~mask].any()
    scores = [c.score for c in clusters]
    assert scores == sorted(scores, reverse=True)
    for cluster in clusters:
        inside = labels == cluster.rank
        assert ndimage.label(inside, structure=CONNECTIVITY)[1] == 1
        assert cluster.voxels == inside.sum() >= min_voxels
        assert cluster.size_mm3 == 8 * cluster.voxels
        assert cluster.mean == pytest.approx(score_map[inside].mean(dtype=np.float64))
        assert cluster.peak == score_map[inside].max()
        assert cluster.centroid_mm == pytest.approx(2 * np.argwhere(inside).mean(axis=0))


def test_rank_weighs_size_and_mean_equally_worked_by_hand():
    score_map = np.zeros((20, 5, 5), np.float32)
    score_map[0:2, 0, 0] = 9  # size 2 -> 0, mean 9 -> 1:       0.5
    score_map[4:10, 0, 0] = 5  # size 6 -> 1, mean 5 -> 0:       0.5, lower mean: after the first
    score_map[12:17, 0, 0] = 8  # size 5 -> 0.75, mean 8 -> 0.75: 0.75
    clusters, labels = find_clusters(
        score_map, AFFINE, np.ones(score_map.shape, bool), threshold=1, min_size_mm3=8
    )
    assert [(c.voxels, c.mean, c.score) for c in clusters] == [(5, 8, 0.75), (2, 9, 0.5), (6, 5, 0.5)]
    assert labels[12, 0, 0] == 1
    assert labels[0, 0, 0] == 2
    assert labels[4, 0, 0] == 3


def test_corner_neighbours_are_one_cluster():
    score_map = np.zeros((4, 4, 4), np.float32)
    score_map[1, 1, 1] = score_map[2, 2, 2] = 1
    clusters, _ = find_clusters(score_map, AFFINE, np.ones((4, 4, 4), bool), threshold=0.5, min_size_mm3=8)
    assert [c.voxels for c in clusters] == [2]


def test_positions_are_world_millimetres_and_left_is_negative_x():
    affine = np.array([[3.0, 0, 0, -30], [0, 2, 0, -10], [0, 0, 1, 5], [0, 0, 0, 1]])
    score_map = np.zeros((21, 9, 7), np.float32)
    score_map[2:4, 4, 3] = 1, 2
    score_map[17:19, 4, 3] = 1, 2
    clusters, _ = find_clusters(
        score_map, affine, np.ones(score_map.shape, bool), threshold=1, min_size_mm3=12
    )
    left, right = clusters  # alike but for the position: the first in the array comes first
    assert (left.hemisphere, right.hemisphere) == ("left", "right")
    assert left.peak_mm == (-21, -2, 8)
    assert left.centroid_mm == (-22.5, -2, 8)
    assert left.size_mm3 == 12


def test_rank_ignores_unit_and_offset_of_the_map():
    score_map, mask = field(3), np.ones((21, 18, 15), bool)
    _, labels = find_clusters(score_map, AFFINE, mask, min_size_mm3=24)
    _, scaled = find_clusters(score_map.astype(np.float64) * 7 - 100, AFFINE, mask, min_size_mm3=24)
    np.testing.assert_array_equal(labels, scaled)


def test_constant_and_empty_maps_hold_no_cluster():
    ones = np.ones((6, 6, 6), np.float32)
    for score_map, mask in ((ones, ones > 0), (ones, ones < 0), (0 * ones, None)):
        clusters, labels = find_clusters(score_map, AFFINE, mask)
        assert clusters == []
        assert labels.shape == (6, 6, 6)
        assert not labels.any()


def test_binary_map_of_many_blobs_keeps_the_largest():
    score_map = np.zeros((64, 20, 20), np.float32)
    for i in range(12):
        score_map[5 * i : 5 * i + 2, :2, : 1 + i] = 1
    clusters, _ = find_clusters(score_map, AFFINE, np.ones(score_map.shape, bool), min_size_mm3=8)
    assert [c.voxels for c in clusters] == [4 * n for n in range(12, 2, -1)]


def test_default_mask_is_where_the_map_is_not_zero():
    score_map = field(5)
    mask = np.random.default_rng(5).random(score_map.shape) < 0.9
    given_mask = find_clusters(score_map, AFFINE, mask, min_size_mm3=24)
    by_map = find_clusters(np.where(mask, score_map, 0), AFFINE, min_size_mm3=24)
    assert given_mask[0] == by_map[0]


@pytest.mark.parametrize(
    ("score_map", "mask", "message"),
    [
        (np.zeros((3, 3), np.float32), None, "shape"),
        (np.zeros((3, 3, 3), np.float32), np.ones((3, 3, 4), bool), r"\(3, 3, 4\)"),
        (np.full((3, 3, 3), np.nan, np.float32), np.ones((3, 3, 3), bool), "27 voxels"),
    ],
)
def test_unusable_maps_are_refused(score_map, mask, message):
    with pytest.raises(InputError, match=message):
        find_clusters(score_map, AFFINE, mask)


def test_nan_outside_the_mask_is_harmless():
    score_map = field(2)
    mask = np.ones(score_map.shape, bool)
    mask[0] = False
    score_map[0] = np.nan
    clusters, _ = find_clusters(score_map, AFFINE, mask, min_size_mm3=24)
    assert clusters
    assert np.isfinite([c.mean for c in clusters]).all()


@pytest.mark.parametrize("fp_per_control", [0, 0.5, 1, 3])
def test_calibrated_threshold_is_the_lowest_that_controls_allow(fp_per_control):
    mask = np.ones((21, 18, 15), bool)
    controls = [(field(seed), mask) for seed in range(4)]
    threshold = calibrate_threshold(iter(controls), AFFINE, fp_per_control=fp_per_control, min_size_mm3=40)

    def mean_count(level):
        return np.mean(
            [len(find_clusters(m, AFFINE, k, threshold=level, min_size_mm3=40)[0]) for m, k in controls]
        )

    assert mean_count(threshold) <= fp_per_control
    levels = np.unique(np.concatenate([m[k] for m, k in controls]))
    assert all(mean_count(level) <= fp_per_control for level in levels[levels > threshold][::40])
    if fp_per_control:
        assert mean_count(levels[levels < threshold][-1]) > fp_per_control
    else:
        assert threshold > max(m.max() for m, _ in controls) or mean_count(threshold) == 0


def test_calibration_needs_controls():
    with pytest.raises(InputError, match="no control"):
        calibrate_threshold([], AFFINE)
    with pytest.raises(InputError, match="negative"):
        calibrate_threshold([], AFFINE, fp_per_control=-1)


def test_table_round_trip_with_a_description_of_each_column(tmp_path):
    clusters, _ = find_clusters(field(7), AFFINE, np.ones((21, 18, 15), bool), min_size_mm3=24)
    clusters[0] = replace(clusters[0], signs="brighter FLAIR 3.2, darker T1w -0.1", profile="loss", p=0.034)
    path = write_clusters_tsv(tmp_path / "sub-1" / "sub-1_desc-clusters.tsv", clusters)
    again = read_clusters_tsv(path)
    assert len(again) == len(clusters) > 2
    for a, b in zip(clusters, again, strict=True):
        for left, right in zip(astuple(a), astuple(b), strict=True):
            assert right == (
                left if left is None or isinstance(left, str) else pytest.approx(left, rel=1e-5, abs=1e-5)
            )
    columns = path.read_text().splitlines()[0].split("\t")
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert list(sidecar) == columns
    assert all(entry["Description"] for entry in sidecar.values())
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "sub-1_desc-clusters.json",
        "sub-1_desc-clusters.tsv",
    ]


def test_a_table_without_region_and_signs_is_read(tmp_path):
    clusters, _ = find_clusters(field(7), AFFINE, np.ones((21, 18, 15), bool), min_size_mm3=24)
    path = write_clusters_tsv(tmp_path / "clusters.tsv", clusters)
    pd.read_csv(path, sep="\t").drop(columns=["region", "signs", "profile", "p"]).to_csv(
        path, sep="\t", index=False
    )
    assert {(c.region, c.signs) for c in read_clusters_tsv(path)} == {("", "")}


def test_clusters_say_what_their_score_is_made_of():
    score_map = np.zeros((9, 9, 9), np.float32)
    score_map[1:3, 1:3, 1:3], score_map[6:8, 6:8, 6:8] = 3, 2
    clusters, labels = find_clusters(
        score_map, AFFINE, np.ones(score_map.shape, bool), threshold=1, min_size_mm3=8
    )
    bright, dark = np.where(labels == 1, 4.0, -0.01), np.where(labels == 1, -1.0, 2.0)
    bright[1, 1, 1] = 12.0  # mean of eight voxels: 5
    explained = Explained(score_map, {"brighter FLAIR": bright, "darker T1w": dark})
    first, second = explained.annotate(clusters, labels, None)
    assert first.signs == "brighter FLAIR 5.0, darker T1w -1.0"
    assert second.signs == "darker T1w 2.0, brighter FLAIR 0.0"
    assert [c.signs for c in Explained(score_map).annotate(clusters, labels, None)] == ["", ""]


def test_empty_table_round_trip_and_foreign_table_refused(tmp_path):
    assert read_clusters_tsv(write_clusters_tsv(tmp_path / "none.tsv", [])) == []
    (tmp_path / "other.tsv").write_text("rank\tsize\n1\t2\n")
    with pytest.raises(InputError, match="size_mm3"):
        read_clusters_tsv(tmp_path / "other.tsv")
    with pytest.raises(InputError, match="no such file"):
        read_clusters_tsv(tmp_path / "absent.tsv")
