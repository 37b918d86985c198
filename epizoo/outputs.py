"""Score maps and clusters as files: what is written of a scored subject, in a BIDS derivative."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from epizoo.detection.tail import LEVEL
from epizoo.finished_run import DETECTOR, open_run
from epizoo.method import Scorer
from epizoo.run_folder import RunFolder
from epizoo.run_metadata import SPLITS
from tfds_epilepsy import bids
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import (
    LOCK,
    PARTIAL,
    check_writable,
    hold,
    plain,
    read_json,
    replacing,
    write_json,
    write_text,
)
from tfds_epilepsy.progress import track
from tfds_epilepsy.volumes import Subject, write_nifti

if TYPE_CHECKING:
    from epizoo.detection.clusters import Cluster

MAPS = "epizoo score maps"  # begins the name of a folder of them


def score_cohort(
    run_dir: str | Path,
    data: str | Path,
    out_dir: str | Path,
    *,
    native: bool = False,
    reading: Mapping[str, Any] | None = None,
    data_dir: Path | None = None,
    console: Console | None = None,
) -> None:
    """Score every subject of other data with a finished run's encoder and detector.

    A subject whose maps are there already, of this run and this scan, is skipped, so a killed scoring goes
    on; maps of a scan that has changed since are made anew.

    Args:
        run_dir: a run that was trained and fitted.
        data: a template-space derivative on the run's grid, or a config's name.
        out_dir: where ``sub-*/anat/*`` go: a folder that is new, empty, or holds maps of this run.
        native: also write each map, its labels and the table of clusters in the subject's own T1w space
            (``space-T1w``); ``data`` is then a derivative that ``epizoo preprocess`` made.
        reading: ``space``, ``group_column``, ``groups`` of a folder, as in ``tfds_epilepsy.load``.
        data_dir: where prepared data sets live.

    Raises:
        InputError: the run is not fitted; data of other modalities, on another grid, or without transforms;
            a folder that holds something else. Then nothing is written.
    """
    import tfds_epilepsy

    run, out = open_run(run_dir, needs=[DETECTOR]), RunFolder(Path(out_dir))
    check_folder(out.path)
    scorer = run.detector
    check_maker(out, scorer)
    builder = tfds_epilepsy.load(data, data_dir, modalities=run.modalities, **(reading or {}))
    of_splits = {split: tfds_epilepsy.subjects(builder, split) for split in SPLITS}
    if native:
        _check_native(data, [subject for subjects in of_splits.values() for subject in subjects])
    source = Source(run.space, builder.fingerprint, Path(data) if native else None)
    with closing(hold(out.path)):
        describe(out.path, f"{MAPS} {out.path.absolute().name}", str(data))
        for split, subjects in of_splits.items():
            read = tfds_epilepsy.read(builder, split)
            for subject in track(read, f"score {split}", len(subjects), console=console):
                if not is_current(scorer, subject, out, source):
                    score_subject(scorer, subject, out, source)


@dataclass(frozen=True)
class Source:
    """Where scored subjects come from.

    Attributes:
        space: template space of their maps.
        data_hash: of the data set.
        native: the derivative of ``epizoo preprocess`` that leads back to each subject's own T1w space, for
            maps that are wanted there too.
    """

    space: str
    data_hash: str
    native: Path | None = None


def score_subject(scorer: Scorer, subject: Subject, folder: RunFolder, source: Source) -> None:
    """Write the score map of one subject, its clusters and their labels; the table of clusters comes last.

    What the folder held of the subject before goes first.
    """
    from epizoo.detection.clusters import find_clusters, write_clusters_tsv

    name = subject.subject
    folder.forget(name)
    explained = scorer.explain(subject)
    score_map = explained.score_map
    clusters, labels = find_clusters(score_map, subject.affine, subject.brain_mask)
    clusters = explained.annotate(clusters, labels, scorer.tail)
    write_nifti(folder.score_map(name, source.space), score_map, subject.affine)
    write_nifti(folder.labels(name, source.space), labels, subject.affine, dtype=np.int16)
    spaces = {source.space: source.space}
    if source.native is not None:
        from tfds_epilepsy.preprocessing import to_native

        spaces["T1w"] = "the voxels of the subject's own T1w"
        for volume, path, whole in (
            (score_map, folder.score_map(name, "T1w"), False),
            (labels, folder.labels(name, "T1w"), True),
        ):
            with replacing(path) as partial:
                to_native(volume, source.native, name, labels=whole).to_filename(partial)
    for space, reference in spaces.items():
        write_json(
            sidecar(folder.score_map(name, space)),
            {
                "Description": "Abnormality of each voxel; higher is more abnormal",
                "Units": _units(scorer),
                "SpatialReference": reference,
                **_rarity(scorer),
                **_made_by(scorer),
                "DataHash": source.data_hash,
                "ScanHash": scan_hash(subject),
            },
        )
        write_json(
            sidecar(folder.labels(name, space)),
            {
                "Description": "Rank of the cluster that a voxel belongs to, 1 the most suspicious; 0: none",
                "SpatialReference": reference,
                "Manual": False,
            },
        )
    if source.native is not None:
        write_clusters_tsv(folder.clusters(name, "T1w"), _in_native_space(clusters, source.native, name))
    write_clusters_tsv(folder.clusters(name, source.space), clusters)


def _in_native_space(clusters: Sequence[Cluster], derivative: Path, subject: str) -> list[Cluster]:
    """The same clusters, their positions in the scanner's millimetres of the subject's own T1w."""
    from tfds_epilepsy.native import native_positions

    points = [point for cluster in clusters for point in (cluster.peak_mm, cluster.centroid_mm)]
    moved = native_positions(derivative, subject, points)
    if moved is None:  # no points; transforms were looked for before any work
        return []
    places = [(float(x), float(y), float(z)) for x, y, z in moved]
    return [
        replace(cluster, peak_mm=peak, centroid_mm=centroid)
        for cluster, peak, centroid in zip(clusters, places[::2], places[1::2], strict=True)
    ]


def is_current(scorer: Scorer, subject: Subject, folder: RunFolder, source: Source) -> bool:
    """Whether the folder holds all that ``score_subject`` would write, of this scan and this scorer."""
    spaces = [source.space] if source.native is None else [source.space, "T1w"]
    for space in spaces:
        if not folder.clusters(subject.subject, space).is_file():
            return False
        stored = _stored(sidecar(folder.score_map(subject.subject, space)))
        if not _is_of(stored, scorer):
            return False
        same = ("ScanHash", scan_hash(subject)) if "ScanHash" in stored else ("DataHash", source.data_hash)
        if stored.get(same[0]) != same[1]:
            return False
    return True


def scan_hash(subject: Subject) -> str:
    """Of all that a score map is made from: image, brain mask, affine."""
    digest = hashlib.sha256()
    for array in (subject.image, subject.brain_mask, subject.affine):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def sidecar(path: Path) -> Path:
    """The JSON beside a NIfTI."""
    return path.with_name(path.name.removesuffix(".nii.gz") + ".json")


# What a run holds besides BIDS derivatives; statistical maps and tables of clusters are not in BIDS yet.
BIDSIGNORE = """\
*.html
*.csv
*.keras
/config.json
/metadata.json
/metrics.json
detector
detector/**
pictures
pictures/**
*_statmap.*
*_desc-clusters.tsv
*_desc-clusters.json
work
work/**
"""
README = """\
Score maps and clusters by epizoo: where a brain differs from those of healthy controls. For research only;
nothing here is a diagnosis. `*_desc-abnormality_statmap.nii.gz` holds standard deviations above the controls
at each voxel, `*_desc-clusters.tsv` the ranked clusters, `*_desc-clusters_dseg.nii.gz` their ranks.
"""


def describe(folder: Path, name: str, source: str) -> None:
    """What makes a folder of maps a BIDS derivative; files that are there may have been edited, and stay."""
    if not (folder / "dataset_description.json").is_file():
        license = "that of the source data"
        bids.write_description(folder, name, source=source, License=license, Authors=["epizoo"])
    for file, text in ((".bidsignore", BIDSIGNORE), ("README", README)):
        if not (folder / file).is_file():
            write_text(folder / file, text)


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but score maps of ours.

    Raises:
        InputError: raw data, a derivative, a run, anything else.
    """
    check_writable(folder)
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    names = {name for name in names if name != LOCK and not name.startswith(PARTIAL)}
    if names and not str(_stored(folder / "dataset_description.json").get("Name")).startswith(MAPS):
        raise InputError(
            f"{folder}: not empty and no folder of score maps; give a new folder, or one that "
            "'epizoo score' has made."
        )


def check_maker(folder: RunFolder, scorer: Scorer) -> None:
    """Refuse to mix the maps of two runs.

    Raises:
        InputError: maps of another run lie there.
    """
    others = sorted(
        path.name.split("_")[0]
        for path in folder.path.glob("sub-*/anat/*_desc-abnormality_statmap.json")
        if not _is_of(_stored(path), scorer)
    )
    if others:
        some = ", ".join(dict.fromkeys(others[:3]))
        raise InputError(
            f"{folder.path}: holds score maps of another run ({some}{', ...' if len(others) > 3 else ''}); "
            "give another folder."
        )


def _check_native(data: str | Path, subjects: Sequence[str]) -> None:
    from tfds_epilepsy.preprocessing import native_problems

    if problems := native_problems(data, subjects):
        raise InputError(problems)


def _units(scorer: Scorer) -> str:
    units: str = scorer.manifest.get("units", "standard deviations above the training controls")
    kinds = scorer.manifest.get("kinds")
    return f"{units}, of the profile {kinds[0]}; of other profiles, what is as rare" if kinds else units


def _rarity(scorer: Scorer) -> dict[str, Any]:
    """How high healthy people score, for the sidecar of a map; nothing where that is not known."""
    if scorer.tail is None:
        return {}
    level = round(scorer.tail.level(LEVEL), 3)
    about = f"A healthy person has a score of {level} or more anywhere with probability {LEVEL}"
    return {"FamilyWiseLevel": {"P": LEVEL, "Score": level, "Description": about}}


def _made_by(scorer: Scorer) -> dict[str, Any]:
    manifest = json.dumps(plain(scorer.manifest), sort_keys=True)
    return {
        "Detector": scorer.manifest["detector"],
        "Encoder": scorer.manifest["encoder"],
        "Controls": len(scorer.subjects),
        "ScorerHash": hashlib.sha256(manifest.encode()).hexdigest()[:16],
    }


def _is_of(stored: Mapping[str, Any], scorer: Scorer) -> bool:
    """Whether a map's sidecar is of a scorer; those of earlier versions say less of it."""
    return all(stored.get(name, value) == value for name, value in _made_by(scorer).items())


def _stored(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        content = read_json(path)
    except InputError:
        return {}
    return content if isinstance(content, dict) else {}
