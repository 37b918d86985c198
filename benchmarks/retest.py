"""The same people scanned again: do finished runs find the same places?

    python -m benchmarks.retest RUN [RUN ...]

Finished runs on the phantom. Each of its test patients is scanned a second time (``phantom.subject(...,
scan=1)``: other noise, bias and registration error, the same brain). Measured of the first five clusters: the
Dice overlap of their voxels, the share of those of the first scan that the second has too (one voxel in
common), and whether the lesion is found in both, one or none. For three well-known tools a Dice of .28 to .38
between scans is published (docs/literature.md).
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from benchmarks.contrast import fitted, score
from epizoo.evaluation import bootstrap_mean, dice
from tfds_epilepsy import phantom

FIRST = 5


def main(*runs: str) -> None:
    config = phantom.PhantomConfig()
    patients = [label for label in phantom.cohort(config)["test"] if label.startswith("patient")]
    for run in runs:
        name, normative = fitted(run)
        dices, shares, found = [], [], []
        for label in patients:
            both = [score(normative, phantom.subject(config, label, scan=scan)) for scan in (0, 1)]
            first, second = (first_clusters(scored.labels) for scored in both)
            dices.append(dice(first > 0, second > 0))
            shares.append(agreement(first, second))
            lesion = both[0].subject.lesion_mask
            found.append(sum(bool((labels > 0)[lesion].any()) for labels in (first, second)))
        counts = np.bincount(found, minlength=3)
        print(
            f"{name:20} Dice {bootstrap_mean(dices):.2f}, first {FIRST} again {bootstrap_mean(shares):.2f}, "
            f"lesion found in both scans {counts[2]}, in one {counts[1]}, in none {counts[0]}",
            flush=True,
        )


def first_clusters(labels: NDArray[np.integer]) -> NDArray[np.integer]:
    """The label volume of the first five clusters alone."""
    return np.where(labels <= FIRST, labels, 0)


def agreement(first: NDArray[np.integer], second: NDArray[np.integer]) -> float:
    """Share of the clusters of one label volume that share a voxel with one of another."""
    ranks = np.unique(first[first > 0])
    return float(np.mean([bool(second[first == rank].any()) for rank in ranks])) if len(ranks) else 1.0


if __name__ == "__main__":
    main(*sys.argv[1:])
