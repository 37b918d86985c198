"""The HTML report of an evaluated run, self-contained: no network, no other file."""

from __future__ import annotations

import base64
import csv
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import nibabel as nib
import numpy as np

from epizoo.detection.clusters import Cluster, read_clusters_tsv
from epizoo.report import figures
from epizoo.run_folder import RunFolder, read_json
from tfds_epilepsy.volumes import Subject, read_nifti

BOXES = 3  # clusters a patient whose slices are shown, besides the lesion's


def build_report(folder: RunFolder, read: Callable[[Sequence[str]], Iterable[Subject]]) -> Path:
    """Write ``report.html`` of a run from its folder.

    Args:
        folder: an evaluated run.
        read: yields the test subjects of the given names.

    Returns:
        The path of the page.

    Raises:
        InputError: ``metrics.json`` or another file of the run is missing.
    """
    metrics, config, metadata = (read_json(p) for p in (folder.metrics, folder.config, folder.metadata))
    patients = [row for row in metrics["rows"] if row["group"] == "patient"]
    rows = {row["subject"]: row for row in patients}
    pages = [_page(folder, subject, rows[subject.subject], metadata) for subject in read(list(rows))]
    history = _read_history(folder.history)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("epizoo", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html").render(
        title=f"{config['model']} + {config['detector']} on {Path(config['data']).name}"
        if config["model"] != "none"
        else f"{config['detector']} on {Path(config['data']).name}",
        subtitle=f"{len(metadata['splits']['train'])} training controls; tested on {metrics['patients']} "
        f"annotated patients and {metrics['controls']} controls that no step had seen.",
        summary=_summary(metrics),
        summary_figures=_summary_figures(metrics),
        patient_columns=[
            "lesion (mm³)",
            "AUROC",
            "AUPRC",
            "prevalence",
            "rank (any overlap)",
            "rank (strict)",
            "highest score",
        ],
        patients=[_overview(row) for row in patients],
        pages=pages,
        training=_source(figures.training_curves(history)) if history else None,
        identity=_identity(config, metadata),
    )
    partial = folder.report.with_name(f".partial-{os.getpid()}-report.html")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, folder.report)
    return folder.report


def _page(
    folder: RunFolder, subject: Subject, row: dict[str, Any], metadata: dict[str, Any]
) -> dict[str, Any]:
    space = metadata["space"]
    score_map, _ = read_nifti(folder.score_map(subject.subject, space))
    labels, _ = read_nifti(folder.labels(subject.subject, space), dtype=np.int32)
    clusters = read_clusters_tsv(folder.clusters(subject.subject, space))
    to_voxel = np.linalg.inv(subject.affine)

    def voxel(millimetres: Sequence[float]) -> list[int]:
        return [int(v) for v in np.rint(nib.affines.apply_affine(to_voxel, millimetres))]

    def box(centre: Sequence[int], caption: str, rank: int | None = None) -> dict[str, str]:
        cluster = None if rank is None else labels == rank
        image = figures.lightbox(subject, score_map, centre, metadata["modalities"], cluster=cluster)
        return {"source": _source(image), "caption": caption}

    boxes = []
    lesion = subject.lesion_mask
    if lesion.any():
        middle = np.argwhere(lesion).mean(axis=0)
        centre = min(np.argwhere(lesion), key=lambda v: float(np.sum((v - middle) ** 2)))
        boxes.append(box([int(v) for v in centre], "Through the annotated lesion (cyan)."))
    boxes += [
        box(voxel(c.peak_mm), f"Through the peak of cluster {c.rank} (yellow).", c.rank)
        for c in clusters[:BOXES]
    ]
    details = [f"age {subject.age:.0f}" if math.isfinite(subject.age) else "", subject.sex, subject.site]
    return {
        "subject": subject.subject,
        "description": ", ".join(d for d in details if d),
        "projection": _source(figures.projection(subject, score_map, [voxel(c.peak_mm) for c in clusters])),
        "has_lesion": bool(lesion.any()),
        "clusters": [_cluster(c, bool((lesion & (labels == c.rank)).any())) for c in clusters],
        "boxes": boxes,
    }


def _cluster(cluster: Cluster, hit: bool) -> dict[str, Any]:
    return {
        "rank": cluster.rank,
        "size": f"{cluster.size_mm3:.0f}",
        "mean": f"{cluster.mean:.2f}",
        "peak": f"{cluster.peak:.2f}",
        "centroid": ", ".join(f"{v:.0f}" for v in cluster.centroid_mm),
        "hemisphere": cluster.hemisphere,
        "hit": hit,
    }


def _overview(row: dict[str, Any]) -> dict[str, Any]:
    def rank(rule: str) -> str:
        if not row["annotated"]:
            return "–"
        found = row[rule]["rank"]
        return "not found" if found is None else f"{found:.0f}"

    cells = [
        _number(row.get("lesion_mm3"), 0),
        *(_number(row.get(name), digits) for name, digits in (("auroc", 3), ("auprc", 3), ("prevalence", 4))),
        rank("overlap"),
        rank("strict"),
        _number(row["max_score"], 1),
    ]
    return {"subject": row["subject"], "link": f"#sub-{row['subject']}", "cells": cells}


def _summary(metrics: dict[str, Any]) -> list[dict[str, str]]:
    def row(
        name: str, figure: dict[str, Any], digits: int = 2, chance: float | None = None
    ) -> dict[str, str]:
        low, high = figure["low"], figure["high"]
        return {
            "name": name,
            "value": _number(figure["value"], digits),
            "interval": "–" if low is None else f"{low:.{digits}f} to {high:.{digits}f}",
            "chance": "" if chance is None else f"{chance:.{digits}f}",
        }

    lesion, voxel, false = metrics["lesion"], metrics["voxel"], metrics["false_positives"]
    rows = []
    for rule, words in (("overlap", "any overlap"), ("strict", "strict")):
        for rank, figure in lesion[rule]["sensitivity"].items():
            rows.append(
                row(f"lesions among the first {rank} clusters ({words})", figure, 2, figure["chance"])
            )
    rows.append(row("area under the FROC, to 10 false positives", lesion["overlap"]["froc"]["area"]))
    rows.append(row("voxel AUROC, mean over patients", voxel["auroc"], 3, 0.5))
    rows.append(row("voxel AUPRC, mean over patients", voxel["auprc"], 3, voxel["prevalence"]["value"]))
    rows.append(row("clusters a held-out control, patients' protocol", false["clusters"]))
    rows.append(row("clusters a held-out control, calibrated threshold", false["clusters_at_threshold"]))
    return rows


def _summary_figures(metrics: dict[str, Any]) -> list[dict[str, str]]:
    froc = metrics["lesion"]["overlap"]["froc"]
    highest = {
        name: [row["max_score"] for row in metrics["rows"] if row["group"] == group]
        for name, group in (("patients", "patient"), ("controls", "control"))
    }
    return [
        {"source": _source(image), "caption": caption}
        for image, caption in (
            (figures.froc_curve(froc["false_positives"], froc["sensitivity"]), "FROC, any overlap."),
            (
                figures.grouped_scores(highest, "highest score of the map"),
                "Highest score of each map; the bar is the median.",
            ),
        )
    ]


def _identity(config: dict[str, Any], metadata: dict[str, Any]) -> list[tuple[str, str]]:
    steps = ", ".join(f"{name} {step['seconds']:.0f} s" for name, step in metadata["steps"].items())
    return [
        *((name, str(value)) for name, value in config.items()),
        ("data hash", metadata["data_hash"]),
        ("split hash", metadata["split_hash"]),
        ("machine", metadata["machine"]),
        ("time", steps),
        ("versions", ", ".join(f"{name} {version}" for name, version in metadata["versions"].items())),
    ]


def _read_history(path: Path) -> dict[str, list[float]]:
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _source(image: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(image).decode()
