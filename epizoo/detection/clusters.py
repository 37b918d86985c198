"""Ranked clusters of a score map: the candidates that a person looks at.

The protocol is that of El Azami et al. 2016 and Alaverdyan et al. 2020: the map is thresholded so that at
most ten clusters remain, voxels that touch at a face, an edge or a corner belong together, and size and mean
score weigh equally in the rank. Such a threshold adapts to the patient, so every map, a control's too, yields
clusters; ``calibrate_threshold`` gives the absolute one at which false positives on controls are counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import write_json, write_text
from tfds_epilepsy.regions import region_names
from tfds_epilepsy.volumes import voxel_to_world

CONNECTIVITY = np.ones((3, 3, 3), dtype=int)  # 26 neighbours
MIN_SIZE_MM3 = 160.0  # 20 voxels at 2 mm; the subtlest FCD, 8 mm across, has 270 mm^3
# No threshold admits more than this share of the brain: below it clusters merge into one that is everywhere.
MAX_FRACTION = 0.05


@dataclass(frozen=True)
class Cluster:
    """A connected set of suspicious voxels.

    Example:
        >>> score_map = np.zeros((20, 20, 20))
        >>> score_map[5:9, 5:9, 5:9] = 4
        >>> (cluster,), labels = find_clusters(score_map, np.diag([2, 2, 2, 1]), threshold=3)
        >>> cluster.voxels, cluster.centroid_mm, cluster.hemisphere
        (64, (13.0, 13.0, 13.0), 'right')

    Attributes:
        rank: 1 is the most suspicious; the value of the cluster's voxels in the label volume.
        score: what the rank comes from, in [0, 1]: size and mean score, each scaled to [0, 1] over the
            clusters of this map, averaged. It compares clusters of one map, not of two patients.
        size_mm3: volume in cubic millimetres.
        voxels: number of voxels.
        mean: mean of the score map over the cluster.
        peak: highest score.
        peak_mm: world position of the peak (template space, RAS+).
        centroid_mm: world position of the unweighted centre.
        hemisphere: ``left`` (centroid at x < 0) or ``right``.
        region: where the centroid lies, to a centimetre (``tfds_epilepsy.regions.region_names``).
        signs: what the score is made of, where the detector can say: ``brighter FLAIR 3.2, darker T1w 1.1``.
        profile: what was found, in the words of the profile that is rarest there; empty without profiles.
        p: the probability that a healthy person has as high a peak anywhere (``epizoo.detection.tail``);
            None where that is not known.
    """

    rank: int
    score: float
    size_mm3: float
    voxels: int
    mean: float
    peak: float
    peak_mm: tuple[float, float, float]
    centroid_mm: tuple[float, float, float]
    hemisphere: str
    region: str = ""
    signs: str = ""
    profile: str = ""
    p: float | None = None

    @property
    def where(self) -> str:
        """``left frontal``; the side alone where the region is not known."""
        return f"{self.hemisphere} {self.region}".strip()


def find_clusters(
    score_map: NDArray[np.floating],
    affine: ArrayLike,
    mask: NDArray[np.bool_] | None = None,
    *,
    threshold: float | None = None,
    max_clusters: int = 10,
    min_size_mm3: float = MIN_SIZE_MM3,
) -> tuple[list[Cluster], NDArray[np.int32]]:
    """The most suspicious clusters of a score map, first rank first.

    Without ``threshold`` the map is flooded from its highest score downwards, and the flood stops at the last
    score before cluster ``max_clusters + 1`` of the minimal size appears (exactly, at no grid of thresholds),
    or at ``MAX_FRACTION`` of the mask. With ``threshold`` every cluster of voxels at or above it is returned.

    The rank orders the average of size and mean score, each scaled to [0, 1] from the smallest to the largest
    of the map's clusters, so that neither unit nor offset of the map matters. Ties go to the higher mean,
    then to the higher peak, then to the peak that comes first in the array.

    Example:
        >>> score_map = np.zeros((20, 20, 20))
        >>> score_map[5:9, 5:9, 5:9] = 4
        >>> clusters, labels = find_clusters(score_map, np.diag([2, 2, 2, 1]), threshold=3)
        >>> [(cluster.rank, cluster.size_mm3, cluster.peak) for cluster in clusters]
        [(1, 512.0, 4.0)]

    Args:
        score_map: ``(x, y, z)``, higher is more abnormal.
        affine: ``(4, 4)``, voxel to world millimetres.
        mask: ``(x, y, z)`` bool, where clusters may lie; by default where the map is not 0.
        threshold: an absolute threshold (see ``calibrate_threshold``) in place of the patient's own.
        max_clusters: most clusters that the patient's own threshold may leave.
        min_size_mm3: smaller clusters are dropped.

    Returns:
        The clusters and their label volume ``(x, y, z)`` int32: each cluster's rank, 0 elsewhere.

    Raises:
        InputError: shapes that disagree, NaN or infinity in the map, a ``max_clusters`` below 1.
    """
    mask = _checked(score_map, mask)
    if max_clusters < 1:
        raise InputError(f"max_clusters is {max_clusters}; it must be at least 1.")
    voxel_mm3 = _voxel_volume(affine)
    min_voxels = _min_voxels(min_size_mm3, voxel_mm3)
    if threshold is None:
        levels, counts = cluster_counts(score_map, mask, min_voxels)
        excess = np.flatnonzero(counts > max_clusters)
        stop = excess[0] if excess.size else len(levels)
        if len(levels) == 0:
            return [], np.zeros(score_map.shape, np.int32)
        # A map of few values may pass the limit at its first level: then the best are kept.
        threshold = float(levels[max(stop - 1, 0)])
        keep = max_clusters
    else:
        keep = np.iinfo(np.int32).max

    labels, n = ndimage.label((score_map >= threshold) & mask, structure=CONNECTIVITY)
    sizes = np.bincount(labels.ravel(), minlength=n + 1)
    found = [label for label in range(1, n + 1) if sizes[label] >= min_voxels]
    if not found:
        return [], np.zeros(score_map.shape, np.int32)

    boxes = ndimage.find_objects(labels)
    size = sizes[found]
    means, peaks, peak_at, centroids = [], [], [], []
    for label in found:
        box = boxes[label - 1]
        start = np.array([s.start for s in box])
        inside = labels[box] == label
        values = score_map[box][inside].astype(np.float64)
        indices = np.argwhere(inside) + start
        means.append(values.mean())
        peaks.append(values.max())
        peak_at.append(indices[values.argmax()])
        centroids.append(indices.mean(axis=0))
    mean, peak = np.array(means), np.array(peaks)
    score = (_unit(size) + _unit(mean)) / 2
    first = np.ravel_multi_index(tuple(np.transpose(peak_at)), score_map.shape)
    order = np.lexsort((first, -peak, -mean, -score))[:keep]

    peak_mm, centroid_mm = voxel_to_world(peak_at, affine), voxel_to_world(centroids, affine)
    regions = region_names(centroid_mm)
    clusters = [
        Cluster(
            rank=rank,
            score=float(score[i]),
            size_mm3=float(size[i] * voxel_mm3),
            voxels=int(size[i]),
            mean=float(mean[i]),
            peak=float(peak[i]),
            peak_mm=_triple(peak_mm[i]),
            centroid_mm=_triple(centroid_mm[i]),
            hemisphere="left" if centroid_mm[i, 0] < 0 else "right",
            region=regions[i],
        )
        for rank, i in enumerate(order, start=1)
    ]
    ranks = np.zeros(n + 1, np.int32)
    ranks[np.array(found)[order]] = np.arange(1, len(order) + 1)
    return clusters, ranks[labels]


def calibrate_threshold(
    maps: Iterable[tuple[NDArray[np.floating], NDArray[np.bool_]]],
    affine: ArrayLike,
    *,
    fp_per_control: float = 1.0,
    min_size_mm3: float = MIN_SIZE_MM3,
) -> float:
    """The lowest threshold at which controls show at most ``fp_per_control`` clusters each, on average.

    Exact: the number of clusters is followed through every score of every map, from the highest down, and the
    threshold stops before the mean first passes the limit. The controls must be ones that the detector did
    not see, and none of the test set.

    Args:
        maps: ``(score_map, mask)`` of each control, read one at a time.
        affine: ``(4, 4)`` of their grid.
        fp_per_control: clusters of at least ``min_size_mm3`` allowed a control.
        min_size_mm3: smaller clusters do not count.

    Raises:
        InputError: no control, or a negative ``fp_per_control``.
    """
    if fp_per_control < 0:
        raise InputError(f"fp_per_control is {fp_per_control}; it counts clusters and cannot be negative.")
    min_voxels = _min_voxels(min_size_mm3, _voxel_volume(affine))
    levels, steps, highest, n = [], [], -np.inf, 0
    for score_map, mask in maps:
        level, count = cluster_counts(score_map, _checked(score_map, mask), min_voxels)
        levels.append(level)
        steps.append(np.diff(count, prepend=0))
        highest = max(highest, float(score_map[mask].max(initial=-np.inf)))
        n += 1
    if n == 0:
        raise InputError("no control to calibrate the threshold on: give held-out controls (validation).")
    level, at = np.unique(np.concatenate(levels), return_inverse=True)
    mean = (
        np.bincount(at, np.concatenate(steps), len(level))[::-1].cumsum() / n
    )  # from the highest level down
    level = level[::-1]
    excess = np.flatnonzero(mean > fp_per_control)
    stop = excess[0] if excess.size else len(level)
    if stop == 0:  # nothing that a control shows is allowed: just above the highest control score
        return float(np.nextafter(np.float32(highest), np.float32(np.inf)))  # maps are float32
    return float(level[stop - 1])


def cluster_counts(
    score_map: NDArray[np.floating],
    mask: NDArray[np.bool_],
    min_voxels: int,
    max_fraction: float = MAX_FRACTION,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """How many clusters of at least ``min_voxels`` voxels each threshold leaves, for every threshold.

    One pass of union-find over the voxels in descending order of score (the component tree of Salembier et
    al. 1998, reduced to its counts).

    Args:
        score_map: ``(x, y, z)``.
        mask: ``(x, y, z)`` bool.
        min_voxels: smaller clusters are not counted.
        max_fraction: share of the mask at which the pass ends; tied voxels that do not all fit are left out.

    Returns:
        The distinct scores in descending order, and the number of clusters in ``score >= level`` for each.
    """
    at = np.flatnonzero(mask)
    values = score_map.ravel()[at].astype(np.float64)
    keep = int(len(at) * max_fraction)
    if keep == 0:
        return np.empty(0), np.empty(0, np.int64)
    order = np.argsort(-values, kind="stable")
    if keep < len(at):  # whole groups of ties only
        last = values[order[keep]]
        order = order[:keep]
        order = order[values[order] > last]
    values = values[order]
    counts = _flood(at[order].astype(np.int64), score_map.shape, max(min_voxels, 1))
    ends = np.flatnonzero(np.diff(values, append=-np.inf) != 0)
    return values[ends], counts[ends]


def write_clusters_tsv(path: str | Path, clusters: list[Cluster]) -> Path:
    """Write clusters as a BIDS TSV with a JSON sidecar that describes each column, both atomically."""
    path = Path(path)
    rows = [_row(cluster) for cluster in clusters]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).replace({"signs": {"": "n/a"}, "profile": {"": "n/a"}})
    write_json(path.with_suffix(".json"), COLUMNS)
    content = table.to_csv(sep="\t", index=False, float_format="%.6g", lineterminator="\n", na_rep="n/a")
    write_text(path, content)
    return path


def read_clusters_tsv(path: str | Path) -> list[Cluster]:
    """Read what ``write_clusters_tsv`` wrote (six significant digits).

    Raises:
        InputError: no such file, or columns are missing.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    table = pd.read_csv(path, sep="\t")
    words = ("region", "signs", "profile")
    later = (*words, "p")  # tables of earlier versions do not have them
    missing = [name for name in COLUMNS if name not in (*table.columns, *later)]
    if missing:
        raise InputError(f"{path}: columns {', '.join(missing)} are missing; it is no table of clusters.")
    return [
        Cluster(
            rank=int(row["rank"]),
            score=float(row["score"]),
            size_mm3=float(row["size_mm3"]),
            voxels=int(row["voxels"]),
            mean=float(row["mean"]),
            peak=float(row["peak"]),
            peak_mm=_triple([row[f"peak_{axis}"] for axis in "xyz"]),
            centroid_mm=_triple([row[f"centroid_{axis}"] for axis in "xyz"]),
            hemisphere=str(row["hemisphere"]),
            p=None if math.isnan(row.get("p", math.nan)) else float(row["p"]),
            **{name: row[name] for name in words if isinstance(row.get(name), str)},
        )
        for row in table.to_dict("records")
    ]


def _position(name: str, axis: str, direction: str) -> dict[str, str]:
    return {
        "Description": f"{name} of the cluster along {axis}, template space, {direction} positive",
        "Units": "mm",
    }


COLUMNS: dict[str, dict[str, object]] = {
    "rank": {"Description": "1 is the most suspicious; the value of the cluster in the label image"},
    "score": {"Description": "Average of size and mean, each scaled to [0, 1] over the clusters of this map"},
    "size_mm3": {"Description": "Volume of the cluster", "Units": "mm^3"},
    "voxels": {"Description": "Number of voxels of the cluster"},
    "mean": {"Description": "Mean of the abnormality map over the cluster, higher is more abnormal"},
    "peak": {"Description": "Highest value of the abnormality map in the cluster"},
    **{
        f"{key}_{axis}": dict(_position(name, axis, direction))
        for key, name in (("peak", "Highest voxel"), ("centroid", "Centre"))
        for axis, direction in (("x", "right"), ("y", "anterior"), ("z", "superior"))
    },
    "hemisphere": {
        "Description": "Side of the centre",
        "Levels": {"left": "x < 0", "right": "x >= 0"},
    },
    "region": {"Description": "Part of the brain that the centre lies in, true to a centimetre"},
    "signs": {
        "Description": "What the score is made of, where the detector can say: means over the cluster, "
        "the largest first, in standard deviations from the controls"
    },
    "profile": {"Description": "What was found: the kind of change that is rarest at the peak"},
    "p": {
        "Description": "Probability that a healthy person has as high a peak anywhere in the brain "
        "(family-wise), from the highest scores of the training controls"
    },
}


def _row(cluster: Cluster) -> dict[str, object]:
    row = {name: getattr(cluster, name) for name in COLUMNS if hasattr(cluster, name)}
    for key in ("peak", "centroid"):
        position = getattr(cluster, f"{key}_mm")
        row |= {f"{key}_{axis}": value for axis, value in zip("xyz", position, strict=True)}
    return row


def _checked(score_map: NDArray[np.floating], mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    if score_map.ndim != 3:
        raise InputError(f"the score map has shape {score_map.shape}; (x, y, z) is needed.")
    if mask is None:
        mask = score_map != 0
    if mask.shape != score_map.shape:
        raise InputError(f"the score map has shape {score_map.shape}, its mask {mask.shape}.")
    mask = mask.astype(bool)
    bad = int(np.count_nonzero(~np.isfinite(score_map[mask])))
    if bad:
        raise InputError(f"{bad} voxels of the score map are NaN or infinite inside the mask.")
    return mask


def _voxel_volume(affine: ArrayLike) -> float:
    return round(float(abs(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3]))), 9)


def _min_voxels(min_size_mm3: float, voxel_mm3: float) -> int:
    return max(1, int(np.ceil(min_size_mm3 / voxel_mm3 - 1e-9)))


def _unit(values: NDArray[Any]) -> NDArray[np.float64]:
    """Scaled to [0, 1]; 1 where all are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.ones(len(values))


def _triple(position: ArrayLike) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in np.asarray(position))
    return x, y, z


@numba.njit(cache=True)
def _flood(order: NDArray[np.int64], shape: tuple[int, int, int], min_voxels: int) -> NDArray[np.int64]:
    """Clusters of at least ``min_voxels`` after each voxel of ``order`` (flat indices) has joined."""
    nx, ny, nz = shape
    place = np.full(nx * ny * nz, -1, np.int64)  # of a voxel in order, -1 where it has not joined
    parent = np.arange(len(order))
    size = np.ones(len(order), np.int64)
    counts = np.empty(len(order), np.int64)
    count = 0
    for i in range(len(order)):
        voxel = order[i]
        place[voxel] = i
        if min_voxels == 1:
            count += 1
        x, y, z = voxel // (ny * nz), voxel // nz % ny, voxel % nz
        for a in range(max(x - 1, 0), min(x + 2, nx)):
            for b in range(max(y - 1, 0), min(y + 2, ny)):
                for c in range(max(z - 1, 0), min(z + 2, nz)):
                    other = place[(a * ny + b) * nz + c]
                    if other < 0:
                        continue
                    root, mine = other, i
                    while parent[root] != root:
                        parent[root] = parent[parent[root]]
                        root = parent[root]
                    while parent[mine] != mine:
                        parent[mine] = parent[parent[mine]]
                        mine = parent[mine]
                    if root == mine:
                        continue
                    if size[root] < size[mine]:
                        root, mine = mine, root
                    before = (size[root] >= min_voxels) + (size[mine] >= min_voxels)
                    parent[mine] = root
                    size[root] += size[mine]
                    count += (size[root] >= min_voxels) - before
        counts[i] = count
    return counts
