"""Figures of the report: slices, projections, curves. Left of the patient is on the left, and is marked.

Every function returns the bytes of a WebP image: a third of a PNG, and every browser shows it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from tfds_epilepsy.volumes import Subject, voxel_to_world

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}  # name of a plane: its normal axis
LESION, CLUSTER = "#00e5ff", "#ffd400"
_OUTLINE = [patheffects.withStroke(linewidth=2, foreground="black")]


def lightbox(
    subject: Subject,
    score_map: NDArray[np.float32],
    centre: Sequence[int],
    modalities: Sequence[str],
    *,
    cluster: NDArray[np.bool_] | None = None,
    threshold: float = 2.0,
    limit: float = 6.0,
) -> bytes:
    """Three planes through a voxel: a column a modality, and the score over the first modality.

    Args:
        subject: image, masks and affine.
        score_map: ``(x, y, z)``.
        centre: voxel the planes run through.
        modalities: names of the image's channels.
        cluster: ``(x, y, z)`` bool, drawn as a yellow outline.
        threshold: scores below it are transparent.
        limit: score at the top of the colour bar.
    """
    columns = len(modalities) + 1
    box = _bounding_box(subject.brain_mask)
    figure = Figure(figsize=(2.6 * columns, 8.1), facecolor="black")
    axes = figure.subplots(3, columns, squeeze=False)
    x_mm, y_mm, z_mm = voxel_to_world([centre], subject.affine)[0]
    for row, (plane, axis) in zip(axes, PLANES.items(), strict=True):
        where = centre[axis]
        for column, ax in enumerate(row):
            channel = subject.image[..., min(column, columns - 2) if column < columns - 1 else 0]
            ax.imshow(_slice(channel, axis, where, box), cmap="gray", vmin=0, vmax=1, **_IMSHOW)
            if column == columns - 1:
                score = _slice(score_map, axis, where, box)
                shown = np.ma.masked_less(score, threshold)
                overlay = ax.imshow(shown, cmap="hot", vmin=threshold, vmax=limit, alpha=0.75, **_IMSHOW)
            else:
                _crosshair(ax, axis, centre, box)
            _outline(ax, _slice(subject.lesion_mask, axis, where, box), LESION)
            if cluster is not None and column == columns - 1:
                _outline(ax, _slice(cluster, axis, where, box), CLUSTER)
            _mark_sides(ax, axis)
            if plane == "axial":
                ax.set_title(
                    "score" if column == columns - 1 else modalities[column], color="white", fontsize=11
                )
        millimetres = {
            "axial": f"z = {z_mm:.0f}",
            "coronal": f"y = {y_mm:.0f}",
            "sagittal": f"x = {x_mm:.0f}",
        }
        row[0].text(0.02, 0.02, f"{millimetres[plane]} mm", transform=row[0].transAxes, color="white",
                    fontsize=8, path_effects=_OUTLINE)  # fmt: skip
    figure.subplots_adjust(0.005, 0.05, 0.995, 0.97, 0.02, 0.02)
    bar = figure.add_axes((1 - 0.9 / columns, 0.032, 0.8 / columns, 0.012))
    figure.colorbar(overlay, cax=bar, orientation="horizontal")
    bar.tick_params(colors="white", labelsize=7, length=2, pad=1)
    return _webp(figure)


def projection(
    subject: Subject,
    score_map: NDArray[np.float32],
    peaks: Sequence[Sequence[int]] = (),
    *,
    limit: float = 6.0,
) -> bytes:
    """Maximum intensity projections of a score map, lesions circled, clusters numbered by rank.

    After figure 2 of Alaverdyan, Jung, Bouet, Lartizien (CAp 2017).
    """
    from scipy import ndimage

    box = _bounding_box(subject.brain_mask)
    lesions, count = ndimage.label(subject.lesion_mask, np.ones((3, 3, 3)))
    figure = Figure(figsize=(9, 3.5), facecolor="black")
    for ax, (plane, axis) in zip(figure.subplots(1, 3), PLANES.items(), strict=True):
        kept = [a for a in range(3) if a != axis]
        image = score_map.max(axis=axis)[box[kept[0]], box[kept[1]]].T
        shown = ax.imshow(image, cmap="inferno", vmin=0, vmax=limit, **_IMSHOW)
        silhouette = subject.brain_mask.any(axis=axis)[box[kept[0]], box[kept[1]]].T
        _outline(ax, silhouette, "0.5")
        offset = np.array([box[a].start for a in kept])
        for label in range(1, count + 1):
            points = np.argwhere(lesions == label)[:, kept] - offset
            radius = max(float(np.ptp(points, axis=0).max()) / 2 + 2.5, 4.0)
            _circle(ax, points.mean(axis=0), radius)
        for rank, peak in enumerate(peaks, start=1):
            i, j = np.asarray(peak)[kept] - offset
            ax.text(i, j, str(rank), color=CLUSTER, fontsize=9, ha="center", va="center", weight="bold",
                    path_effects=_OUTLINE)  # fmt: skip
        _mark_sides(ax, axis)
        ax.set_title(f"{plane} projection", color="white", fontsize=10)
    figure.subplots_adjust(0.005, 0.1, 0.995, 0.92, 0.02, 0.02)
    bar = figure.add_axes((0.35, 0.075, 0.3, 0.022))
    figure.colorbar(shown, cax=bar, orientation="horizontal")
    bar.tick_params(colors="white", labelsize=7, length=2, pad=1)
    return _webp(figure)


def training_curves(history: Mapping[str, ArrayLike]) -> bytes:
    """Losses by epoch; a validation curve is dashed in the colour of its training curve.

    Args:
        history: ``epoch`` and a column a figure; ``val_`` marks validation.
    """
    names = [name for name in history if name != "epoch" and not name.startswith("val_")]
    columns = min(len(names), 3)
    rows = -(-len(names) // max(columns, 1))
    figure = Figure(figsize=(3.2 * columns, 2.3 * rows))
    for index, name in enumerate(names, start=1):
        ax = figure.add_subplot(rows, columns, index)
        (line,) = ax.plot(history["epoch"], history[name], label="training", marker=".")
        if f"val_{name}" in history:
            ax.plot(
                history["epoch"], history[f"val_{name}"], "--", color=line.get_color(), label="validation"
            )
        ax.set_title(name.replace("_", " "), fontsize=9)
        ax.set_xlabel("epoch", fontsize=8)
        ax.tick_params(labelsize=7)
        ax.grid(alpha=0.3)
        if index == 1:
            ax.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    return _webp(figure)


def froc_curve(
    false_positives: ArrayLike,
    sensitivity: ArrayLike,
    chance: tuple[ArrayLike, ArrayLike] | None = None,
) -> bytes:
    """Sensitivity against false positives a patient, with chance where it is known."""
    figure = Figure(figsize=(4, 2.9))
    ax = figure.add_subplot()
    ax.step(false_positives, sensitivity, where="post", label="this run")
    if chance is not None:
        ax.plot(*chance, ":", color="0.4", label="chance (shuffled clusters)")
    ax.set(xlabel="false-positive clusters a patient", ylabel="lesions found", ylim=(0, 1.02), xlim=(0, 10))
    ax.legend(fontsize=8, frameon=False, loc="lower right")
    ax.grid(alpha=0.3)
    figure.tight_layout()
    return _webp(figure)


def grouped_scores(groups: Mapping[str, ArrayLike], label: str) -> bytes:
    """One dot a subject, a row a group: how patients' figures lie beside controls'."""
    figure = Figure(figsize=(4, 0.6 + 0.75 * max(len(groups), 2)))
    ax = figure.add_subplot()
    rng = np.random.default_rng(0)
    for row, values in enumerate(groups.values()):
        values = np.asarray(values, dtype=float)
        ax.plot(values, row + rng.uniform(-0.15, 0.15, values.size), "o", alpha=0.6, markersize=4)
        if values.size:
            ax.plot([np.median(values)] * 2, [row - 0.3, row + 0.3], color="black", linewidth=1.5)
    ax.set_yticks(
        range(len(groups)), [f"{name} (n = {np.size(v)})" for name, v in groups.items()], fontsize=8
    )
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.set_xlabel(label, fontsize=8)
    ax.tick_params(labelsize=7)
    ax.grid(alpha=0.3, axis="x")
    figure.tight_layout()
    return _webp(figure)


_IMSHOW = {"origin": "lower", "interpolation": "nearest"}


def _bounding_box(mask: NDArray[np.bool_], margin: int = 2) -> list[slice]:
    voxels = np.argwhere(mask)
    low = np.maximum(voxels.min(axis=0) - margin, 0)
    high = np.minimum(voxels.max(axis=0) + margin + 1, mask.shape)
    return [slice(int(a), int(b)) for a, b in zip(low, high, strict=True)]


def _slice(volume: NDArray, axis: int, where: int, box: Sequence[slice]) -> NDArray:
    kept = [a for a in range(3) if a != axis]
    return np.take(volume, where, axis=axis)[
        box[kept[0]], box[kept[1]]
    ].T  # first kept axis runs to the right


def _outline(ax: Axes, mask: NDArray, color: str) -> None:
    if np.any(mask) and not np.all(mask):
        ax.contour(mask.astype(float), levels=[0.5], colors=color, linewidths=1.1)


def _circle(ax: Axes, centre: ArrayLike, radius: float) -> None:
    from matplotlib.patches import Circle

    i, j = np.asarray(centre)
    ax.add_patch(Circle((i, j), radius, fill=False, edgecolor=LESION, linewidth=1.6))


def _crosshair(ax: Axes, axis: int, centre: Sequence[int], box: Sequence[slice]) -> None:
    i, j = (centre[a] - box[a].start for a in range(3) if a != axis)
    for line in (ax.axvline, ax.axhline):
        line(i if line == ax.axvline else j, color="white", linewidth=0.4, alpha=0.35)


def _mark_sides(ax: Axes, axis: int) -> None:
    left, right = ("P", "A") if axis == 0 else ("L", "R")
    for x, text in ((0.02, left), (0.98, right)):
        ax.text(x, 0.5, text, transform=ax.transAxes, color="white", fontsize=9, va="center",
                ha="left" if x < 0.5 else "right", path_effects=_OUTLINE)  # fmt: skip
    ax.set_axis_off()
    ax.set_aspect("equal")


def _webp(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="webp", dpi=80, pil_kwargs={"quality": 82}, facecolor=figure.get_facecolor()
    )
    return buffer.getvalue()
