"""The chance level of lesion detection: what clusters would hit if they lay anywhere in the brain.

Large clusters and large lesions meet by accident. Each cluster is moved, shape kept, so that its centre falls
on every voxel of the brain mask in turn; the share of places where it hits is its exact chance, with no
random draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, signal, stats

from epizoo.evaluation.lesion_level import MIN_IOU, match_clusters


def hit_chance(
    labels: NDArray[np.integer], lesion: NDArray[np.bool_], mask: NDArray[np.bool_]
) -> dict[str, NDArray[np.float64]]:
    """Compute the probability that each cluster hits the lesion when it is placed at random in the brain.

    Every voxel of ``mask`` is as likely to receive the centre of the cluster (its centroid, rounded).

    Example:
        >>> mask = np.ones((10, 10, 10), bool)
        >>> labels, lesion = np.zeros(mask.shape, int), np.zeros(mask.shape, bool)
        >>> labels[5, 5, 5], lesion[:5] = 1, True
        >>> {rule: chance.tolist() for rule, chance in hit_chance(labels, lesion, mask).items()}
        {'overlap': [0.5], 'strict': [0.5]}

    Args:
        labels: ``(x, y, z)``, 1..n by rank and 0 elsewhere.
        lesion: ``(x, y, z)`` bool.
        mask: ``(x, y, z)`` bool brain mask, not empty.

    Returns:
        For each rule (``overlap``, ``strict``) ``(n,)`` probabilities, first rank first.
    """
    boxes = ndimage.find_objects(labels.astype(np.int32))
    overlap, strict = np.zeros(len(boxes)), np.zeros(len(boxes))
    places = int(np.count_nonzero(mask))
    if not lesion.any() or places == 0:
        return {"overlap": overlap, "strict": strict}
    lesion_box = ndimage.find_objects(lesion.astype(np.int32))[0]
    part, lesion_size = lesion[lesion_box], int(np.count_nonzero(lesion))
    lesion_start = np.array([s.start for s in lesion_box])

    for i, box in enumerate(boxes):
        cluster = labels[box] == i + 1
        size = int(np.count_nonzero(cluster))
        correlation = signal.fftconvolve(
            part.astype(np.float32), cluster[::-1, ::-1, ::-1].astype(np.float32)
        )
        shared = np.rint(correlation).astype(np.int64)
        # shared[k]: voxels in common when the centre of the cluster lies at k + origin.
        start = np.array([s.start for s in box])
        centre = np.rint((np.argwhere(cluster) + start).mean(axis=0)).astype(int) - start
        origin = lesion_start - np.array(cluster.shape) + 1 + centre
        at = np.indices(shared.shape).reshape(3, -1) + origin[:, None]
        on_grid = np.all((at >= 0) & (at < np.array(mask.shape)[:, None]), axis=0)
        at, shared = at[:, on_grid], shared.ravel()[on_grid]
        in_brain = mask[tuple(at)]
        at, shared = at[:, in_brain], shared[in_brain]
        hit = shared > 0
        close = shared / (size + lesion_size - shared) >= MIN_IOU
        overlap[i] = np.count_nonzero(hit) / places
        # A centre inside the lesion hits even where the (hollow) cluster itself misses it.
        inside = lesion[tuple(at)]
        strict[i] = np.count_nonzero(close | inside) / places
    return {"overlap": overlap, "strict": strict}


def chance_of_rank(chances: ArrayLike, rank: int) -> float:
    """The probability that at least one of the first ``rank`` clusters, placed independently, hits.

    Example:
        >>> float(chance_of_rank([0.5, 0.5, 0.1], 2))  # 1 - 0.5 * 0.5
        0.75
    """
    return float(1 - np.prod(1 - np.asarray(chances, dtype=float)[:rank]))


def more_than_chance(found: int, chances: ArrayLike) -> float:
    """Compute the exact one-sided p of finding so many patients by chance.

    Chance finds each patient with a probability of its own. The null distribution is the Poisson binomial.

    Example:
        >>> float(more_than_chance(2, [0.1, 0.5]))  # both of two: 0.1 * 0.5
        0.05

    Args:
        found: number of patients whose lesion was found.
        chances: ``(n,)`` the chance of each patient (``chance_of_rank``).

    Returns:
        The probability of ``found`` patients or more; NaN without patients.
    """
    chances = np.asarray(chances, dtype=float)
    if chances.size == 0:
        return float("nan")
    if found <= 0:
        return 1.0
    # The tail itself: the survival function is one less the rest, which leaves nothing of a small p.
    tail = stats.poisson_binom.pmf(np.arange(found, chances.size + 1), chances)
    return float(min(1.0, tail.sum()))


def mirrored_hits(labels: NDArray[np.integer], lesion: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """Tell which clusters hit the mirror image of the lesion, on the other side of a symmetric template.

    The same anatomy without the lesion: what is found there is found by chance, or because of the place.

    Example:
        >>> labels, lesion = np.zeros((6, 4, 4), int), np.zeros((6, 4, 4), bool)
        >>> labels[5, 1, 1], lesion[0, 1, 1] = 1, True
        >>> {rule: hits.tolist() for rule, hits in mirrored_hits(labels, lesion).items()}
        {'overlap': [True], 'strict': [True]}

    Args:
        labels: ``(x, y, z)``, 1..n by rank and 0 elsewhere; the first axis runs from side to side.
        lesion: ``(x, y, z)`` bool.

    Returns:
        As ``match_clusters``.
    """
    return match_clusters(labels, lesion[::-1])
