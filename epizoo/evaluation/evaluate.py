"""From score maps and clusters of a test set to its figures (``epizoo.evaluation.figures.Metrics``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from epizoo.detection.clusters import Cluster, find_clusters
from epizoo.evaluation.chance import chance_of_rank, hit_chance, mirrored_hits, more_than_chance
from epizoo.evaluation.figures import (
    AnnotatedRow,
    AtThreshold,
    FalsePositives,
    FrocFigures,
    LesionFigures,
    LesionHits,
    Metrics,
    Sensitivity,
    StratumFigures,
    SubjectRow,
    VoxelFigures,
)
from epizoo.evaluation.lesion_level import (
    MAX_FP,
    RANKS,
    RULES,
    first_hit,
    froc,
    match_clusters,
    mean_rank,
)
from epizoo.evaluation.metrics import voxel_metrics
from epizoo.evaluation.statistics import RESAMPLES, Interval, bootstrap, bootstrap_mean, proportion
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import Subject

LARGE_MM = 15.0  # lesions count as large from this diameter of a ball of their volume


@dataclass(frozen=True)
class Scored:
    """One subject of the test set, with its score map and the clusters in it.

    Example:
        >>> from epizoo.detection import find_clusters
        >>> score_map = done.score_map("p1")
        >>> one = Scored(patient, score_map, *find_clusters(score_map, patient.affine, patient.brain_mask))
        >>> evaluate([one], resamples=10).patients
        1

    Attributes:
        subject: its lesion mask is the reference; the mask of a control, or of a patient whose lesion nobody
            has annotated, is empty.
        score_map: ``(x, y, z)``, higher is more abnormal.
        clusters: from ``find_clusters`` without ``threshold``.
        labels: ``(x, y, z)``, the label volume of these clusters.
        strata: what to group patients by besides lesion size and site, for example
            ``{"type": "fcd_2b", "contrast": "0.5"}``.
    """

    subject: Subject
    score_map: NDArray[np.floating]
    clusters: list[Cluster]
    labels: NDArray[np.integer]
    strata: Mapping[str, str] = field(default_factory=dict)


def evaluate(
    scored: Iterable[Scored],
    *,
    threshold: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    reference: str = "lesion",
) -> Metrics:
    """Compute all figures of a test set.

    Patients with a lesion mask give sensitivities and voxel figures, controls give false positives. Intervals
    are 95 % over patients (or controls): Wilson's for shares, percentile bootstrap for everything else. The
    subjects may be a generator: one at a time is in memory.

    Example:
        >>> scored = [Scored(patient, done.score_map("p1"), done.clusters("p1"), done.labels("p1"))]
        >>> metrics = evaluate(scored, threshold=3.0, resamples=10)
        >>> metrics.annotated[0].lesion["overlap"].rank
        2.0

    Args:
        scored: controls and patients of the test set. The encoder, the detector and the threshold must not
            have seen any of them (``epizoo.evaluation.check_no_leak``).
        threshold: of the score, such as that of p = .1 (``Tail.level``), or calibrated on validation controls
            (``epizoo.detection.clusters.calibrate_threshold``); without one, figures at a threshold do not
            exist.
        resamples: bootstrap samples.
        seed: of the bootstrap.
        reference: what the masks mark, ``lesion`` or ``resection``.

    Raises:
        InputError: no subject at all, two of one name, or arrays that disagree in shape.
    """
    rows = [_row(one, threshold) for one in scored]
    return summarise(rows, threshold=threshold, resamples=resamples, seed=seed, reference=reference)


def pool(folds: Sequence[Metrics], *, resamples: int = RESAMPLES, seed: int = 0) -> Metrics:
    """Compute the figures of all folds of a cross-validation as of one test set.

    Example:
        >>> from dataclasses import replace
        >>> renamed = [replace(row, subject=f"{row.subject}b") for row in done.metrics.rows]
        >>> other = replace(done.metrics, rows=renamed)
        >>> pool([done.metrics, other], resamples=10).patients
        2

    Args:
        folds: the figures of each fold; no subject is in two.
        resamples: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        Figures whose ``threshold`` is the mean of the folds'. Figures at a threshold count each subject at
        the threshold of its own fold.

    Raises:
        InputError: a subject in several folds.
    """
    rows = [row for fold in folds for row in fold.rows]
    thresholds = [fold.threshold for fold in folds if fold.threshold is not None]
    threshold = float(np.mean(thresholds)) if len(thresholds) == len(folds) else None
    return summarise(rows, threshold=threshold, resamples=resamples, seed=seed, reference=folds[0].reference)


def summarise(
    rows: Sequence[SubjectRow],
    *,
    threshold: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    reference: str = "lesion",
) -> Metrics:
    """Compute the figures of a test set from those of its subjects.

    Example:
        >>> summarise(done.metrics.rows, resamples=10).controls
        1

    Args:
        rows: one per subject.
        threshold: of the score, at which clusters were counted for the rows; None if none was.
        resamples: bootstrap samples.
        seed: of the bootstrap.
        reference: what the masks mark, ``lesion`` or ``resection``.

    Raises:
        InputError: no subject at all, or two of one name.
    """
    if not rows:
        raise InputError("no subject to evaluate: the test set is empty.")
    names = [row.subject for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"evaluated more than once: {', '.join(twice)}.")

    patients = [row for row in rows if isinstance(row, AnnotatedRow)]
    controls = [row for row in rows if row.group == "control" and not isinstance(row, AnnotatedRow)]

    def mean(values: ArrayLike) -> Interval:
        return bootstrap_mean(values, resamples=resamples, seed=seed)

    counted = [row.clusters_at_threshold for row in controls if row.clusters_at_threshold is not None]
    none = [count == 0 for count in counted if threshold is not None]
    return Metrics(
        patients=len(patients),
        controls=len(controls),
        unannotated=len(rows) - len(patients) - len(controls),
        threshold=threshold,
        voxel=VoxelFigures(
            **{
                one.name: mean([getattr(row.voxel, one.name) for row in patients])
                for one in fields(VoxelFigures)
            }
        ),
        lesion={
            rule: _lesion_figures([row.lesion[rule] for row in patients], threshold, resamples, seed)
            for rule in RULES
        },
        false_positives=FalsePositives(
            clusters=mean([row.clusters for row in controls]),
            clusters_at_threshold=mean(counted),
            controls_with_none_at_threshold=proportion(none),
        ),
        strata=_strata(patients, mean),
        rows=tuple(rows),
        reference=reference,
    )


def _row(one: Scored, threshold: float | None) -> SubjectRow:
    subject, mask = one.subject, one.subject.brain_mask.astype(bool)
    lesion = subject.lesion_mask.astype(bool) & mask
    if not one.score_map.shape == one.labels.shape == mask.shape:
        raise InputError(
            f"sub-{subject.subject}: score map {one.score_map.shape}, labels {one.labels.shape} and "
            f"brain mask {mask.shape} must have one shape."
        )
    count, at_threshold = None, None
    if threshold is not None:
        found, at_threshold = find_clusters(one.score_map, subject.affine, mask, threshold=threshold)
        count = len(found)
    row = SubjectRow(
        subject=subject.subject,
        group=subject.group,
        site=subject.site,
        clusters=len(one.clusters),
        max_score=float(one.score_map[mask].max()),
        clusters_at_threshold=count,
    )
    if not lesion.any():
        return row
    voxel_mm3 = float(abs(np.linalg.det(subject.affine[:3, :3])))
    volume = float(np.count_nonzero(lesion)) * voxel_mm3
    diameter = (6 * volume / math.pi) ** (1 / 3)
    size = f"{LARGE_MM:g} mm or more" if diameter >= LARGE_MM else f"under {LARGE_MM:g} mm"
    return AnnotatedRow(
        **vars(row),
        lesion_mm3=volume,
        lesion_diameter_mm=diameter,
        strata={"size": size, "site": subject.site, **one.strata},
        voxel=voxel_metrics(one.score_map, lesion, mask, threshold),
        lesion=_hits(one.labels, at_threshold, lesion, mask),
    )


def _hits(
    labels: NDArray[np.integer],
    at_threshold: NDArray[np.integer] | None,
    lesion: NDArray[np.bool_],
    mask: NDArray[np.bool_],
) -> dict[str, LesionHits]:
    """The hits under each rule.

    Args:
        labels: ``(x, y, z)``, clusters when the threshold follows the map.
        at_threshold: ``(x, y, z)``, clusters at the level; None without one.
        lesion: ``(x, y, z)`` bool.
        mask: ``(x, y, z)`` bool brain mask.
    """
    hits, mirrored = match_clusters(labels, lesion), mirrored_hits(labels, lesion)
    chances = hit_chance(labels, lesion, mask)
    absolute = None if at_threshold is None else match_clusters(at_threshold, lesion)
    return {
        rule: LesionHits(
            hits=tuple(hits[rule].astype(bool).tolist()),
            rank=first_hit(hits[rule]),
            mirrored_rank=first_hit(mirrored[rule]),
            chance={rank: chance_of_rank(chances[rule], rank) for rank in RANKS},
            found_at_threshold=None if absolute is None else bool(absolute[rule].any()),
            false_at_threshold=None if absolute is None else int(np.count_nonzero(~absolute[rule])),
        )
        for rule in RULES
    }


def _lesion_figures(
    patients: Sequence[LesionHits], threshold: float | None, resamples: int, seed: int
) -> LesionFigures:
    """The figures under one rule, from the hits of each patient."""
    hits = [np.asarray(one.hits, bool) for one in patients]
    ranks = np.array([one.rank for one in patients])
    mirrored = np.array([one.mirrored_rank for one in patients])
    sensitivity = {}
    for rank in RANKS:
        chances = np.array([one.chance[rank] for one in patients])
        sensitivity[rank] = Sensitivity(
            proportion(ranks <= rank),
            chance=float(chances.mean()) if chances.size else math.nan,
            mirrored=float(np.mean(mirrored <= rank)) if mirrored.size else math.nan,
            p=more_than_chance(int(np.sum(ranks <= rank)), chances),
        )
    curve = froc(hits)
    area = bootstrap(
        len(hits),
        lambda samples: np.array([froc([hits[i] for i in sample]).area for sample in samples]),
        resamples=resamples,
        seed=seed,
    )
    at_threshold = None
    if threshold is not None:
        false = [one.false_at_threshold for one in patients if one.false_at_threshold is not None]
        at_threshold = AtThreshold(
            sensitivity=proportion([bool(one.found_at_threshold) for one in patients]),
            false_positives=bootstrap_mean(false, resamples=resamples, seed=seed),
        )
    return LesionFigures(
        sensitivity=sensitivity,
        mean_rank=bootstrap(
            len(ranks),
            lambda samples: np.array([mean_rank(ranks[sample]) for sample in samples]),
            resamples=resamples,
            seed=seed,
        ),
        froc=FrocFigures(
            false_positives=tuple(curve.false_positives.tolist()),
            sensitivity=tuple(curve.sensitivity.tolist()),
            area=area,
            max_false_positives=MAX_FP,
        ),
        at_threshold=at_threshold,
    )


def _strata(
    patients: Sequence[AnnotatedRow], mean: Callable[[ArrayLike], Interval]
) -> dict[str, dict[str, StratumFigures]]:
    strata: dict[str, dict[str, StratumFigures]] = {}
    for name in sorted({name for row in patients for name in row.strata}):
        groups = sorted({row.strata.get(name, "") for row in patients})
        if groups == [""]:
            continue
        strata[name] = {}
        for group in groups:
            members = [row for row in patients if row.strata.get(name, "") == group]
            strata[name][group or "unknown"] = StratumFigures(
                n=len(members),
                auroc=mean([row.voxel.auroc for row in members]),
                auprc=mean([row.voxel.auprc for row in members]),
                sensitivity_at_5={
                    rule: proportion([row.lesion[rule].rank <= 5 for row in members]) for rule in RULES
                },
            )
    return strata
