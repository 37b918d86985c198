"""Picture of every kind of lesion of the phantom, beside the same brain without it.

python -m benchmarks.lesions docs/phantom_kinds.png
python -m benchmarks.lesions subtle.png --subtle
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tfds_epilepsy import phantom
from tfds_epilepsy.lesions import KINDS

COLUMNS = 3  # kinds side by side
HALF = 32  # mm of the brain on each side of the lesion
LABEL = "patient009"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lesions", description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument(
        "--subtle", action="store_true", help="as the cohorts have them, not as a reader sees them"
    )
    given = parser.parse_args()
    cohort = phantom.PhantomConfig(voxel_size=1, visible=not given.subtle)
    healthy = phantom.subject(replace(cohort, contrast=0.0), LABEL)
    rows = -(-len(KINDS) // COLUMNS)
    figure = Figure(figsize=(4 * 1.5 * COLUMNS, 1.65 * rows))
    axes = figure.subplots(rows, 4 * COLUMNS).reshape(-1, 4)
    for panels, kind in zip(axes, KINDS, strict=True):
        patient = phantom.subject(replace(cohort, kinds=(kind,)), LABEL)
        mask = patient.lesion_mask
        plane = int(mask.sum((0, 2)).argmax())  # coronal, where most of the lesion is
        x, z = (int(np.mean(at)) for at in np.nonzero(mask[:, plane]))
        part = (slice(max(x - HALF, 0), x + HALF), plane, slice(max(z - HALF, 0), z + HALF))
        for number, (subject, channel) in enumerate((s, c) for c in (0, 1) for s in (healthy, patient)):
            ax = panels[number]
            ax.imshow(subject.image[..., channel][part].T, cmap="gray", origin="lower", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            if subject is patient:
                ax.contour(mask[part].T, [0.5], colors="tab:red", linewidths=0.6)
        panels[0].set_title(kind.replace("_", " "), fontsize=8, loc="left", pad=2)
    figure.tight_layout(pad=0.3)
    figure.savefig(given.picture, dpi=80)


if __name__ == "__main__":
    main()
