"""What a score map is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.clusters import Cluster
from epizoo.detection.detector import Detector
from epizoo.detection.profiles.profile import Profile
from epizoo.detection.tail import Tail
from epizoo.maps.smoothing import smooth, smooth_in_graph

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class Explained:
    """The score map of a subject, and what its scores are made of.

    Attributes:
        score_map: ``(x, y, z)`` float32; higher is more abnormal, 0 outside the brain.
        parts: ``(x, y, z)`` each, by name: what the scores are made of (``Detector.parts``) or due to
            (``Codes.parts``), not smoothed; empty where the detector cannot say.
        kinds: ``(x, y, z)`` for each profile of a detector that has some, on the scale of the score map,
            which is the highest of them; minus infinity where the profile is not looked for.
    """

    score_map: NDArray[np.float32]
    parts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    kinds: Mapping[Profile, NDArray[np.float32]] = field(default_factory=dict)

    def annotate(
        self, clusters: Iterable[Cluster], labels: NDArray[np.integer], tail: Tail | None
    ) -> list[Cluster]:
        """Clusters that say what was found, of what it is made, and how rare it is among healthy people.

        Args:
            clusters: of the score map.
            labels: ``(x, y, z)``, the rank of each voxel's cluster.
            tail: of the highest scores of healthy people; None where it is not known.
        """
        return [self._annotated(cluster, labels == cluster.rank, tail) for cluster in clusters]

    def _annotated(self, cluster: Cluster, inside: NDArray[np.bool_], tail: Tail | None) -> Cluster:
        means = {name: float(part[inside].mean()) for name, part in self.parts.items()}
        profile = ""
        if self.kinds:
            peak = np.unravel_index(np.where(inside, self.score_map, -np.inf).argmax(), inside.shape)
            kind = max(self.kinds, key=lambda kind: self.kinds[kind][peak])
            signs = kind.signs(list(means))
            means, profile = {word: way * means[name] for name, (word, way) in signs.items()}, kind.words
        ordered = sorted(means.items(), key=lambda item: -item[1])
        return replace(
            cluster,
            signs=", ".join(f"{name} {round(mean, 1) + 0.0:.1f}" for name, mean in ordered),
            profile=profile,
            p=cluster.p if tail is None else float(tail.p(cluster.peak)),
        )


def maps_of(
    detector: Detector,
    evidence: NDArray[np.float32],
    inside: NDArray[np.bool_],
    affine: NDArray[np.floating],
    fwhm: float,
) -> NDArray[np.float32]:
    """The map of each profile of a detector, or the smoothed score of one that has none.

    Args:
        detector: told what it reads.
        evidence: ``(x, y, z, k)``, of ``Detector.evidence``.
        inside: ``(x, y, z)``, where it is known.
        affine: ``(4, 4)``.
        fwhm: of a detector without profiles, millimetres.

    Returns:
        ``(x, y, z, p)``; NaN where a profile is not looked for.
    """
    if detector.kinds:
        maps = [profile(evidence, detector.numbers, inside, affine) for profile in detector.kinds]
        return np.stack(maps, -1)
    return smooth(evidence, inside, affine, fwhm) if fwhm else evidence


def maps_in_graph(
    detector: Detector, evidence: tf.Tensor, inside: tf.Tensor, affine: NDArray[np.floating], fwhm: float
) -> tf.Tensor:
    """``maps_of`` in TensorFlow operations."""
    import tensorflow as tf

    if detector.kinds:
        maps = [kind.in_graph(evidence, detector.numbers, inside, affine) for kind in detector.kinds]
        return tf.stack(maps, -1)
    return smooth_in_graph(evidence, inside, affine, fwhm) if fwhm else evidence
