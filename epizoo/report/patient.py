"""The page of one subject: what its map shows, where, and why."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.clusters import Cluster, read_clusters_tsv
from epizoo.detection.tail import LEVEL
from epizoo.evaluation import hit_chance, match_clusters
from epizoo.report import figures
from epizoo.report.tables import ControlScores, healthy_people, millimetres, one_in, p_value, without_empty
from epizoo.report.viewer import viewer
from epizoo.run_folder import RunFolder
from tfds_epilepsy.native import native_positions
from tfds_epilepsy.volumes import Subject, read_nifti, world_to_voxel

CLUSTERS_SHOWN = 3  # clusters whose slices and patches are shown, besides the slices through a lesion
SURROUNDINGS = (15, 15)  # voxels around a peak that are shown where there is no encoder
TRANSPARENT_BELOW = 2.0  # lower scores leave the anatomy uncovered


@dataclass(frozen=True)
class Background:
    """What the pages of a cohort have in common.

    Attributes:
        folder: of the run.
        data: its data set, whose transforms lead back to native space.
        space: template space of the maps.
        modalities: names of the image's channels.
        patch_shape: the encoder's, ``(x, y)`` or ``(x, y, z)``; None where there is no encoder.
        controls: ``(x, y, z, m)`` mean image of training controls, and how many they are; None where unknown.
        scores: of the test set's controls.
        trained: how many controls the highest scores of healthy people were learnt from.
        limit: score at the top of all colour bars.
    """

    folder: RunFolder
    data: str
    space: str
    modalities: Sequence[str]
    patch_shape: Sequence[int] | None
    controls: tuple[NDArray[np.float32], int] | None
    scores: ControlScores
    trained: int
    limit: float


@dataclass(frozen=True)
class Page:
    """A subject's page, ready for its template, and what the cohort's figures take from it.

    Attributes:
        subject, group: whose page it is.
        context: of the template ``subject.html``.
        lesion_scores: scores inside the annotated lesion, in the brain; empty where there is none.
        other_scores: the rest of the brain.
        chances: for each rule, the probability that each cluster hits the lesion when it lies anywhere in the
            brain.
    """

    subject: str
    group: str
    context: dict[str, Any]
    lesion_scores: NDArray[np.float32]
    other_scores: NDArray[np.float32]
    chances: dict[str, NDArray[np.float64]]


def subject_page(subject: Subject, background: Background) -> Page:
    """Read a subject's map and clusters from the run, draw them, and fill the tables.

    Raises:
        InputError: the map or the table of clusters is missing.
    """
    folder, space, name = background.folder, background.space, subject.subject
    score_map, _ = read_nifti(folder.score_map(name, space))
    labels, _ = read_nifti(folder.labels(name, space), dtype=np.int32)
    clusters = read_clusters_tsv(folder.clusters(name, space))
    brain = subject.brain_mask & (score_map != 0)
    lesion = subject.lesion_mask & subject.brain_mask
    peaks = [world_to_voxel(cluster.peak_mm, subject.affine).tolist() for cluster in clusters]
    controls = background.scores.without(name, score_map[score_map != 0])
    columns, rows = _table(background, name, clusters, match_clusters(labels, lesion), controls)
    context = {
        "subject": name,
        "title": f"sub-{name}",
        "description": _description(subject, lesion),
        "finding": _finding(clusters, background.trained),
        "has_lesion": bool(lesion.any()),
        "space": space,
        "limit": f"{background.limit:.0f}",
        "transparent_below": TRANSPARENT_BELOW,
        "projection": source(figures.projection(subject, score_map, peaks, limit=background.limit)),
        "box_width": 9.5 * (len(background.modalities) + 1),
        "columns": columns,
        "text_columns": TEXT_COLUMNS,
        "clusters": rows,
        "boxes": _boxes(background, subject, score_map, labels, lesion, peaks),
        "patches": _patches(background, subject, peaks),
        "viewer": viewer(
            subject,
            score_map,
            clusters[0].peak_mm if clusters else None,
            modalities=background.modalities,
            transparent_below=TRANSPARENT_BELOW,
            limit=background.limit,
        ),
    }
    return Page(
        name,
        subject.group,
        context,
        score_map[brain & lesion],
        score_map[brain & ~lesion],
        hit_chance(labels, lesion, subject.brain_mask) if lesion.any() else {},
    )


def source(image: bytes) -> str:
    """A WebP image as the ``src`` of an ``img``."""
    return "data:image/webp;base64," + base64.b64encode(image).decode()


def _description(subject: Subject, lesion: NDArray[np.bool_]) -> str:
    voxel_mm3 = float(abs(np.linalg.det(subject.affine[:3, :3])))
    parts = [
        subject.group,
        f"age {subject.age:.0f}" if math.isfinite(subject.age) else "",
        {"f": "female", "m": "male"}.get(subject.sex, ""),
        f"site {subject.site}" if subject.site else "",
        f"annotated lesion of {lesion.sum() * voxel_mm3:.0f} mm³" if lesion.any() else "no annotated lesion",
    ]
    return ", ".join(part for part in parts if part)


def _finding(clusters: Sequence[Cluster], trained: int) -> str:
    """What the map shows, in a sentence; empty where it is not known how rare scores are."""
    known = sorted((cluster.p, cluster.rank, cluster) for cluster in clusters if cluster.p is not None)
    if not known:
        return ""
    if known[0][0] > LEVEL:
        return (
            f"Nothing here is rarer than in 1 of {1 / LEVEL:.0f} healthy people: "
            f"{healthy_people(known[0][0], trained)} a score as high as the highest here."
        )
    found = [
        f"{cluster.profile or 'a high score'}, {cluster.where} (rank {rank}; "
        f"{healthy_people(p, trained)} as much anywhere)"
        for p, rank, cluster in known
        if p <= LEVEL
    ]
    return f"Rarer than in 1 of {1 / LEVEL:.0f} healthy people: {'; '.join(found)}."


def _boxes(
    background: Background,
    subject: Subject,
    score_map: NDArray[np.float32],
    labels: NDArray[np.int32],
    lesion: NDArray[np.bool_],
    peaks: Sequence[Sequence[int]],
) -> list[dict[str, str]]:
    def box(centre: Sequence[int], caption: str, cluster: NDArray[np.bool_] | None = None) -> dict[str, str]:
        image = figures.lightbox(
            subject,
            score_map,
            centre,
            background.modalities,
            cluster=cluster,
            transparent_below=TRANSPARENT_BELOW,
            limit=background.limit,
        )
        planes = ", ".join(figures.PLANES)
        shown = " and ".join([*background.modalities, "the score"])
        return {
            "source": source(image),
            "caption": caption,
            "alt": f"sub-{subject.subject}, {planes} slices of {shown}. {caption}",
        }

    boxes = []
    if lesion.any():
        voxels = np.argwhere(lesion)
        nearest = np.sum((voxels - voxels.mean(axis=0)) ** 2, axis=1).argmin()
        boxes.append(box(voxels[nearest].tolist(), "Through the annotated lesion (cyan)."))
    for rank, peak in enumerate(peaks[:CLUSTERS_SHOWN], start=1):
        boxes.append(box(peak, f"Through the peak of cluster {rank} (yellow, dashed).", labels == rank))
    return boxes


def _patches(
    background: Background, subject: Subject, peaks: Sequence[Sequence[int]]
) -> dict[str, str] | None:
    if background.controls is None or not peaks:
        return None
    mean, count = background.controls
    size = background.patch_shape or SURROUNDINGS
    centres = {f"cluster {rank}": peak for rank, peak in enumerate(peaks[:CLUSTERS_SHOWN], start=1)}
    image = figures.patches(subject, mean, centres, background.modalities, size[:2])
    millimetres = size[0] * float(np.linalg.norm(subject.affine[:3, 0]))
    what = (
        "What the encoder saw at the peaks: the patch"
        if background.patch_shape
        else "Around the peaks: a patch"
    )
    caption = (
        f"{what} of {' × '.join(map(str, size))} voxels "
        f"({millimetres:.0f} mm wide, axial), the same place in the mean of {count} training controls, and "
        "the difference (red: brighter, blue: darker than controls; full colour at half the intensity range)."
    )
    return {"source": source(image), "caption": caption}


def _table(
    background: Background,
    subject: str,
    clusters: Sequence[Cluster],
    hits: Mapping[str, NDArray[np.bool_]],
    controls: ControlScores,
) -> tuple[list[str], list[dict[str, Any]]]:
    """Headings and rows of the table of clusters; a figure that is unknown has no column."""
    native = native_positions(background.data, subject, [cluster.peak_mm for cluster in clusters])
    n = len(controls.highest)
    cells = [
        [
            f"{cluster.size_mm3:.0f}",
            f"{cluster.mean:.2f}",
            f"{cluster.peak:.2f}",
            None if cluster.p is None else one_in(cluster.p, background.trained),
            None if cluster.p is None else p_value(cluster.p),
            f"{controls.as_high(cluster.peak)} of {n}" if n else None,
            millimetres(cluster.peak_mm),
            None if native is None else millimetres(native[index]),
            cluster.where,
            cluster.profile or None,
            cluster.signs or None,
            "on it" if hits["strict"][index] else "overlaps" if hits["overlap"][index] else None,
        ]
        for index, cluster in enumerate(clusters)
    ]
    columns, cells = without_empty(CLUSTER_COLUMNS, cells)
    rows = [
        {
            "rank": cluster.rank,
            "peak_mm": ",".join(f"{x:g}" for x in cluster.peak_mm),
            "hit": bool(hits["overlap"][index] or hits["strict"][index]),
            "common": cluster.p is not None and cluster.p > LEVEL,
            "cells": row,
        }
        for index, (cluster, row) in enumerate(zip(clusters, cells, strict=True))
    ]
    return columns, rows


FOUND_COLUMN = "what"
SIGNS_COLUMN = "signs (SD from the controls)"
CLUSTER_COLUMNS = (
    "size (mm³)",
    "mean score",
    "peak score",
    "healthy people with as much anywhere",
    "p of the peak",
    "controls as high",
    "peak x, y, z (mm, template)",
    "peak x, y, z (mm, own T1w)",
    "where",
    FOUND_COLUMN,
    SIGNS_COLUMN,
    "lesion",
)
TEXT_COLUMNS = ("where", FOUND_COLUMN, SIGNS_COLUMN, "lesion")  # columns that are not numbers
