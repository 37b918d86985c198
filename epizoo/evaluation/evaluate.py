"""From score maps and clusters of a test set to the figures of ``metrics.json``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.clusters import Cluster, find_clusters
from epizoo.evaluation.chance import chance_of_rank, hit_chance, mirrored_hits, more_than_chance
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
from tfds_epilepsy.files import plain
from tfds_epilepsy.volumes import Subject

VERSION = 2  # of the layout of metrics.json
VOXEL_FIGURES = ("auroc", "auroc30", "auprc", "prevalence", "aupro", "dice", "best_dice")
VISIBLE_MM = 15.0  # lesions of this diameter and more are the visible ones


@dataclass(frozen=True)
class Scored:
    """One subject of the test set with what the detector made of it.

    Attributes:
        subject: the record; its lesion mask is the reference (all False: a control, or an unannotated
            patient).
        score_map: ``(x, y, z)``, higher is more abnormal.
        clusters: from ``find_clusters`` with the patient's own threshold.
        labels: ``(x, y, z)`` their label volume.
        strata: what to group patients by besides lesion size and site, for example
            ``{"type": "fcd_iib", "contrast": "subtle"}``.
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
) -> dict[str, Any]:
    """All figures of a test set; one subject is in memory at a time.

    Patients with a lesion mask give sensitivities and voxel figures, controls give false positives. Intervals
    are 95 % over patients (or controls): Wilson's for shares, percentile bootstrap for all else.

    Args:
        scored: controls and patients of the test set, none of whom the encoder, the detector or the threshold
            saw (``epizoo.evaluation.check_no_leak``).
        threshold: absolute, calibrated on controls of the validation set
            (``epizoo.detection.clusters.calibrate_threshold``); without it what needs it is left null.
        resamples: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        A dictionary that is ready for JSON (numbers, text, lists, None where a figure does not exist):

        - ``patients``, ``controls``, ``unannotated``: counts; ``threshold``; ``rules``: what counts as a hit
        - ``voxel``: AUROC, AUROC30, AUPRC, prevalence, AU-PRO, Dice, best Dice: mean over patients
        - ``lesion``: for each rule ``sensitivity`` at ranks 1, 3, 5, 10 (each with ``chance``, ``mirrored``
          and ``p``, the exact probability that chance finds as many), ``mean_rank`` of those found, ``froc``
          and, where there is a threshold, ``at_threshold``
        - ``false_positives``: clusters a control, by the patients' protocol and at the threshold
        - ``strata``: for each grouping and group: n, AUROC, AUPRC, sensitivity at 5 under each rule
        - ``rows``: one dictionary a subject, in the order given; ``hits`` of each of its clusters

    Raises:
        InputError: no subject at all, two of one name, or arrays that disagree in shape.
    """
    rows = [_row(one, threshold) for one in scored]
    return _summary(rows, threshold, resamples, seed)


def pool(folds: Sequence[Mapping[str, Any]], *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """The figures of all folds of a cross-validation as one test set.

    Args:
        folds: what ``evaluate`` returned for each, or ``metrics.json`` of each run; no subject is in two.
        resamples, seed: of the bootstrap.

    Returns:
        The same dictionary; ``threshold`` is the folds' mean, while every figure at a threshold counts
        each subject at the threshold of its own fold.

    Raises:
        InputError: a subject in several folds.
    """
    rows = [_counted(row) for fold in folds for row in fold["rows"]]
    thresholds = [fold["threshold"] for fold in folds]
    threshold = None if None in thresholds else float(np.mean(thresholds))
    return _summary(rows, threshold, resamples, seed)


def _counted(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as it was before JSON, which has no infinity: the rank of a lesion that was not found."""
    back = dict(row)
    for rule in RULES if row["annotated"] else ():
        found = {
            name: math.inf if row[rule][name] is None else row[rule][name]
            for name in ("rank", "mirrored_rank")
        }
        back[rule] = {**row[rule], **found}
    return back


def _summary(
    rows: list[dict[str, Any]], threshold: float | None, resamples: int, seed: int
) -> dict[str, Any]:
    if not rows:
        raise InputError("no subject to evaluate: the test set is empty.")
    names = [row["subject"] for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"evaluated more than once: {', '.join(twice)}.")

    patients = [row for row in rows if row["annotated"]]
    controls = [row for row in rows if row["group"] == "control" and not row["annotated"]]

    def mean(group: list[dict[str, Any]], name: str) -> dict[str, Any]:
        values = [math.nan if row[name] is None else row[name] for row in group]
        return _interval(bootstrap_mean(values, resamples=resamples, seed=seed))

    result = {
        "version": VERSION,
        "patients": len(patients),
        "controls": len(controls),
        "unannotated": len(rows) - len(patients) - len(controls),
        "threshold": threshold,
        "rules": RULES,
        "voxel": {name: mean(patients, name) for name in VOXEL_FIGURES},
        "lesion": {rule: _lesion_figures(patients, rule, threshold, resamples, seed) for rule in RULES},
        "false_positives": {
            "clusters": mean(controls, "clusters"),
            "clusters_at_threshold": mean(controls, "clusters_at_threshold"),
            "controls_with_none_at_threshold": _interval(
                proportion([row["clusters_at_threshold"] == 0 for row in controls if threshold is not None])
            ),
        },
        "strata": _strata(patients, mean),
        "rows": rows,
    }
    return plain(result)


def _row(one: Scored, threshold: float | None) -> dict[str, Any]:
    subject, mask = one.subject, one.subject.brain_mask.astype(bool)
    lesion = subject.lesion_mask.astype(bool) & mask
    if not one.score_map.shape == one.labels.shape == mask.shape:
        raise InputError(
            f"sub-{subject.subject}: score map {one.score_map.shape}, labels {one.labels.shape} and "
            f"brain mask {mask.shape} must have one shape."
        )
    row: dict[str, Any] = {
        "subject": subject.subject,
        "group": subject.group,
        "site": subject.site,
        "annotated": bool(lesion.any()),
        "clusters": len(one.clusters),
        "max_score": float(one.score_map[mask].max()),
        "clusters_at_threshold": None,
    }
    absolute = None
    if threshold is not None:
        found, absolute = find_clusters(one.score_map, subject.affine, mask, threshold=threshold)
        row["clusters_at_threshold"] = len(found)
    if not row["annotated"]:
        return row

    voxel_mm3 = float(abs(np.linalg.det(subject.affine[:3, :3])))
    volume = float(np.count_nonzero(lesion)) * voxel_mm3
    row["lesion_mm3"] = volume
    row["lesion_diameter_mm"] = (6 * volume / math.pi) ** (1 / 3)
    size = "visible" if row["lesion_diameter_mm"] >= VISIBLE_MM else "subtle"
    row["strata"] = {"size": size, "site": subject.site, **one.strata}
    row |= asdict(voxel_metrics(one.score_map, lesion, mask, threshold))

    hits, mirrored = match_clusters(one.labels, lesion), mirrored_hits(one.labels, lesion)
    chances = hit_chance(one.labels, lesion, mask)
    for rule in RULES:
        row[rule] = {
            "hits": hits[rule].astype(bool),
            "rank": first_hit(hits[rule]),
            "mirrored_rank": first_hit(mirrored[rule]),
            "chance": {str(rank): chance_of_rank(chances[rule], rank) for rank in RANKS},
        }
        if absolute is not None:
            at_threshold = match_clusters(absolute, lesion)[rule]
            row[rule]["found_at_threshold"] = bool(at_threshold.any())
            row[rule]["false_at_threshold"] = int(np.count_nonzero(~at_threshold))
    return row


def _lesion_figures(
    patients: list[dict[str, Any]],
    rule: str,
    threshold: float | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    hits = [np.asarray(row[rule]["hits"], bool) for row in patients]
    ranks = np.array([row[rule]["rank"] for row in patients])
    mirrored = np.array([row[rule]["mirrored_rank"] for row in patients])
    sensitivity = {}
    for rank in RANKS:
        chances = np.array([row[rule]["chance"][str(rank)] for row in patients])
        sensitivity[str(rank)] = _interval(proportion(ranks <= rank)) | {
            "chance": float(chances.mean()) if chances.size else None,
            "mirrored": float(np.mean(mirrored <= rank)) if mirrored.size else None,
            "p": more_than_chance(int(np.sum(ranks <= rank)), chances),
        }
    curve = froc(hits)
    area = bootstrap(
        len(hits),
        lambda samples: np.array([froc([hits[i] for i in sample]).area for sample in samples]),
        resamples=resamples,
        seed=seed,
    )
    figures = {
        "sensitivity": sensitivity,
        "mean_rank": _interval(
            bootstrap(
                len(ranks),
                lambda samples: np.array([mean_rank(ranks[sample]) for sample in samples]),
                resamples=resamples,
                seed=seed,
            )
        ),
        "froc": {
            "false_positives": curve.false_positives,
            "sensitivity": curve.sensitivity,
            "area": _interval(area),
            "max_false_positives": MAX_FP,
        },
        "at_threshold": None,
    }
    if threshold is not None:
        found = [row[rule]["found_at_threshold"] for row in patients]
        false = [row[rule]["false_at_threshold"] for row in patients]
        figures["at_threshold"] = {
            "sensitivity": _interval(proportion(found)),
            "false_positives": _interval(bootstrap_mean(false, resamples=resamples, seed=seed)),
        }
    return figures


def _strata(patients: list[dict[str, Any]], mean: Any) -> dict[str, Any]:
    names = sorted({name for row in patients for name in row["strata"]})
    strata: dict[str, Any] = {}
    for name in names:
        groups = sorted({row["strata"].get(name, "") for row in patients})
        if groups == [""]:
            continue
        strata[name] = {}
        for group in groups:
            members = [row for row in patients if row["strata"].get(name, "") == group]
            strata[name][group or "unknown"] = {
                "n": len(members),
                "auroc": mean(members, "auroc"),
                "auprc": mean(members, "auprc"),
                **{
                    f"sensitivity_at_5_{rule}": _interval(
                        proportion([row[rule]["rank"] <= 5 for row in members])
                    )
                    for rule in RULES
                },
            }
    return strata


def _interval(interval: Interval) -> dict[str, Any]:
    return asdict(interval)
