"""What the profiles find of many kinds of lesion, how often they show something in healthy people, and again.

    python -m benchmarks.cases judging CASES
    python -m benchmarks.profiles CASES OUT [DETECTOR ...] [--record]

Each detector (``profiles``, ``signs``, the default before it, and classical baselines) is fitted on the
controls of ``benchmarks.cases``, with the shipped preset where it reads a model. OUT gets a line a subject,
``DETECTOR.tsv``; those that are there are read. Tables: kinds of lesion; healthy people at each level of p;
a poorer scanner, with the controls of the first and with its own. With --record they go to docs/figures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

import epizoo
from benchmarks.cases import read
from benchmarks.contrast import with_clusters
from epizoo.detection import create_detector, fit_detector
from epizoo.detection.fitted import FittedDetector
from epizoo.evaluation import evaluate
from epizoo.registry import DETECTORS
from tfds_epilepsy.volumes import Subject

MODALITIES = ("T1w", "FLAIR")
PRESET = "deviation_t1w_flair"
DETECTORS_MEASURED = ("profiles", "signs", "flair", "zscore", "spm")
SETS = {"lesions": "kinds", "scanner": "scanner", "scanner, own controls": "own_controls"}
FIGURES = Path("docs/figures")
LEVELS = (0.05, 0.1, 0.2, 0.5)


def main(cases: str, out: str, *words: str) -> None:
    record, detectors = "--record" in words, [word for word in words if word != "--record"]
    folder, target = Path(cases), Path(out)
    target.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in detectors or DETECTORS_MEASURED:
        path = target / f"{name}.tsv"
        if not path.is_file():
            pd.DataFrame(measure(name, folder)).to_csv(path, sep="\t", index=False, float_format="%.5g")
        rows.append(pd.read_csv(path, sep="\t"))
    report(pd.concat(rows))
    if record:
        tables(pd.concat(rows), FIGURES)


def measure(name: str, folder: Path) -> list[dict[str, Any]]:
    """A line for each subject that a detector scores."""
    rows = []
    with TemporaryDirectory() as scratch:
        fitted = fit(name, read(folder, "train"), Path(scratch) / "first")
        sets = {
            "lesions": read(folder, "cases"),
            "healthy": [("healthy", subject) for subject in read(folder, "healthy")],
            "scanner": read(folder, "scanner_cases"),
            "scanner, healthy": [("healthy", subject) for subject in read(folder, "scanner_healthy")],
        }
        for which, subjects in sets.items():
            rows += [{"detector": name, "set": which, **line} for line in lines(fitted, subjects)]
        own = fit(name, read(folder, "scanner_train"), Path(scratch) / "own")
        for which in ("scanner", "scanner, healthy"):
            found = lines(own, sets[which])
            rows += [{"detector": name, "set": f"{which}, own controls", **line} for line in found]
    return rows


def fit(name: str, train: list[Subject], folder: Path) -> FittedDetector:
    """The detector on the controls; of the preset, adapted to them, where it reads a model."""
    kind, model = DETECTORS.get(name), None
    if kind.reads_model:
        model = epizoo.from_preset(PRESET)
        model.view.adapt(train)
    return fit_detector(
        model, lambda: train, folder, create_detector(name), modalities=MODALITIES, fwhm=kind.map_fwhm
    )


def lines(fitted: FittedDetector, subjects: Iterable[tuple[str, Subject]]) -> Iterator[dict[str, Any]]:
    """What is known of each subject's map."""
    for kind, subject in subjects:
        scored = with_clusters(subject, fitted.score(subject))
        peaks = [cluster.peak for cluster in scored.clusters]
        line: dict[str, Any] = {
            "kind": kind,
            "subject": subject.subject,
            "p": float(fitted.tail.p(max(peaks))) if peaks and fitted.tail is not None else 1.0,
        }
        if subject.lesion_mask.any():
            (row,) = evaluate([scored], resamples=10).annotated
            line |= {
                "auroc": row.voxel.auroc,
                "auprc": row.voxel.auprc,
                "rank": row.lesion["overlap"].rank,
                "strict": row.lesion["strict"].rank,
            }
        yield line


def report(rows: pd.DataFrame) -> None:
    """Print the tables."""
    for which, group in rows.groupby("set", sort=False):
        print(f"\n{which}")
        for detector, found in group.groupby("detector", sort=False):
            shares = ", ".join(f"{(found.p < level).mean():.2f}" for level in LEVELS)
            print(f"  {detector:10} {len(found):3} people, share with p under {LEVELS}: {shares}")
        lesions = group.dropna(subset=["auroc"])
        if lesions.empty:
            continue
        for detector, found in lesions.groupby("detector", sort=False):
            kinds = [*found.groupby("kind", sort=False), ("all", found)]
            for kind, of_kind in kinds:
                five, rare = np.mean(of_kind["rank"] <= 5), np.mean(of_kind.p < 0.1)
                print(
                    f"  {detector:10} {kind:24} {len(of_kind):3}  AUROC {of_kind.auroc.mean():.3f}  "
                    f"AUPRC {of_kind.auprc.mean():.3f}  first 5 {five:.2f}  p < .1 {rare:.2f}"
                )


def tables(rows: pd.DataFrame, figures: Path) -> None:
    """Write the tables of docs/results/profiles.md."""
    detectors = list(dict.fromkeys(rows.detector))
    for which, name in SETS.items():
        found = rows[(rows.set == which) & rows.auroc.notna()]
        lines = []
        for kind, of_kind in [*found.groupby("kind", sort=False), ("all", found)]:
            one = of_kind[of_kind.detector == detectors[0]]
            line = {"kind": kind, "patients": len(one)}
            for detector in detectors:
                its = of_kind[of_kind.detector == detector]
                line |= {
                    f"{detector}: AUROC": f"{its.auroc.mean():.2f}",
                    f"{detector}: AUPRC": f"{its.auprc.mean():.3f}",
                    f"{detector}: first 5": f"{np.mean(its['rank'] <= 5):.2f}",
                    f"{detector}: p < .1": f"{np.mean(its.p < 0.1):.2f}",
                }
            lines.append(line)
        _write(pd.DataFrame(lines), figures / f"profiles_{name}.tsv")
    healthy = rows[rows.kind == "healthy"]
    lines = []
    for (which, detector), found in healthy.groupby(["set", "detector"], sort=False):
        shares = {f"p < {level}": f"{np.mean(found.p < level):.2f}" for level in LEVELS}
        lines.append({"healthy people": which, "detector": detector, "n": len(found), **shares})
    _write(pd.DataFrame(lines), figures / "profiles_healthy.tsv")


def _write(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, sep="\t", index=False, lineterminator="\n")
    print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
