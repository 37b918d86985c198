"""The pictures of README and guide: a patient of a finished run, its report, what finds the lesions.

    epizoo run phantom_2mm RUN
    python -m benchmarks.pictures RUN docs

Of the patients whose lesion is the first cluster, the one with the median voxel AUROC is drawn: neither the
best nor the worst of what is found. The figures are those of ``docs/figures/methods.tsv``.
"""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks import tables
from epizoo.finished_run import METRICS, FinishedRun, open_run
from tfds_epilepsy.volumes import Subject

METHODS = {
    "two_pathways + supervised †": "supervised CNN, taught\nby 60 annotated patients",
    "deviation + signs": "epizoo, trained on the controls",
    "signs": "its signs without a network",
    "flair": "FLAIR threshold",
    "zscore": "z-score of each voxel",
    "spm": "SPM-like test of grey matter",
    "siamese + ocsvm": "siamese autoencoder + SVMs",
    "junction_extension": "junction, extension maps + SVMs",
}
REPORT = {  # name of the file: page of the run, and how the picture's description begins
    "report_froc": ("report.html", "FROC"),
    "report_highest": ("report.html", "Highest score"),
    "report_projection": ("sub-{}/report.html", "Maximum"),
    "report_slices": ("sub-{}/report.html", "sub-{}, axial"),
}
FIGURE = re.compile(r"(\S+) \[(\S+), (\S+)\] \((\S+)\)")  # value, interval, chance
LESION, CLUSTER = "#00e5ff", "#ffd400"


def main(run: str, folder: str) -> None:
    done = open_run(run, needs=[METRICS])
    patient = draw_patient(done, Path(folder) / "patient.png")
    draw_methods(Path(folder) / "methods.png")
    for name, (page, words) in REPORT.items():
        picture = picture_of(Path(run) / page.format(patient), words.format(patient))
        (Path(folder) / f"{name}.webp").write_bytes(picture)


def draw_patient(done: FinishedRun, path: Path) -> str:
    """An axial slice through a patient's first cluster: the scans, and the map over one. Returns who."""
    found = [row for row in done.metrics.annotated if row.lesion["overlap"].rank == 1]
    chosen = sorted(found, key=lambda row: row.voxel.auroc)[len(found) // 2]
    subject = next(one for one in done.read("test") if one.subject == chosen.subject)
    score_map = done.score_map(subject.subject)
    first = done.clusters(subject.subject)[0]
    z = round(float((np.linalg.inv(subject.affine) @ (*first.centroid_mm, 1))[2]))
    cluster = done.labels(subject.subject) == 1

    names = [*done.modalities, f"deviation from {len(done.splits['train'])} controls"]
    figure = Figure(figsize=(3 * len(names), 3.7), facecolor="black")
    panels = figure.subplots(1, len(names))
    for channel, ax in enumerate(panels[:-1]):
        _show(ax, subject, z, channel)
    shown = _show(panels[-1], subject, z, 0).imshow(
        _slice(np.where(score_map < 2, np.nan, score_map), subject, z),
        cmap="hot", vmin=2, vmax=8, alpha=0.8, origin="lower",
    )  # fmt: skip
    for ax in panels[[0, -1]]:  # one is left bare, for the reader to look
        ax.contour(_slice(subject.lesion_mask, subject, z), [0.5], colors=LESION, linewidths=1)
    panels[-1].contour(_slice(cluster, subject, z), [0.5], colors=CLUSTER, linewidths=1, linestyles="--")
    for ax, name in zip(panels, names, strict=True):
        ax.set_title(name, color="white", fontsize=12)
    figure.subplots_adjust(0.005, 0.1, 0.995, 0.92, 0.01)
    figure.text(0.01, 0.03, "cyan: where the lesion is", color=LESION, fontsize=11)
    figure.text(0.27, 0.03, "yellow: the first cluster that was found", color=CLUSTER, fontsize=11)
    bar = figure.colorbar(shown, cax=figure.add_axes((0.72, 0.05, 0.24, 0.025)), orientation="horizontal")
    bar.ax.tick_params(colors="white", labelsize=9, length=2, pad=1)
    figure.savefig(path, dpi=80)
    print(f"{path}: {subject.subject}, AUROC {chosen.voxel.auroc:.2f}, {len(found)} found first")
    return subject.subject


def picture_of(page: Path, words: str) -> bytes:
    """The first picture of a report whose description begins with some words."""
    source = re.compile(r'data:image/webp;base64,([A-Za-z0-9+/=]+)"[^>]*alt="' + re.escape(words))
    if not (found := source.search(page.read_text(encoding="utf-8"))):
        raise ValueError(f"{page}: no picture of {words!r}")
    return base64.b64decode(found[1])


def draw_methods(path: Path) -> None:
    """The share of lesions among the first five clusters, with its interval, for each method."""
    figures = {row["method"]: row["sens@5"] for row in tables.rows("methods")}
    values = {name: [float(part) for part in _parts(figures[method])] for method, name in METHODS.items()}
    order = sorted(values, key=lambda name: values[name][0])
    figure = Figure(figsize=(7.5, 3.4))
    ax = figure.add_subplot()
    for row, name in enumerate(order):
        value, low, high, chance = values[name]
        colour = "C1" if name == METHODS["deviation + signs"] else "0.6" if "taught" in name else "C0"
        ax.barh(row, 100 * value, color=colour, height=0.6)
        ax.plot([100 * low, 100 * high], [row, row], color="black", linewidth=1)
        ax.plot([100 * chance] * 2, [row - 0.3, row + 0.3], ":", color="white", linewidth=1.5)
    ax.set_yticks(range(len(order)), order, fontsize=9)
    ax.set(xlim=(0, 100), xlabel="lesions among the first five places, % (line: 95 % interval, dots: chance)")
    ax.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def _parts(cell: str) -> Sequence[str]:
    if not (found := FIGURE.fullmatch(cell)):
        raise ValueError(f"{cell!r}: not value [low, high] (chance)")
    return found.groups()


def _show(ax: Axes, subject: Subject, z: int, channel: int) -> Axes:
    ax.imshow(_slice(subject.image[..., channel], subject, z), cmap="gray", vmin=0, vmax=1, origin="lower")
    ax.axis("off")
    outline = [patheffects.withStroke(linewidth=2, foreground="black")]
    ax.text(0.02, 0.5, "L", color="white", transform=ax.transAxes, path_effects=outline)
    return ax


def _slice(volume: NDArray[np.generic], subject: Subject, z: int) -> NDArray[np.generic]:
    """An axial slice, cut to the brain, with the patient's left on the left."""
    x, y = (np.flatnonzero(subject.brain_mask.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    return volume[x[0] : x[-1] + 1, y[0] : y[-1] + 1, z].T


if __name__ == "__main__":
    main(*sys.argv[1:])
