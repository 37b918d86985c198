"""What became of each scan: slices under the template's outline, figures of the registration, outliers."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import write_text
from tfds_epilepsy.volumes import load_template, read_lesion_mask, read_nifti

OUTLIER = -3.5  # robust z-score (Iglewicz & Hoaglin 1993)
# Below them a scan or its registration failed, whatever the others are like. Real T1w (ds002748, 21 healthy
# adults; open_ms, 3 patients, one with a wasted brain) have a Dice of 0.973 and more and correlations of 0.70
# and more. Of the same brain as noise, shuffled, with shuffled slices or upside down the correlation is 0.43
# and less; its upper half has a Dice of 0.91.
FLOORS = {"MaskDice": 0.94, "TemplateCorrelation": 0.6}
# In nats. A FLAIR of the same head has 0.48 and more (open_ms); noise, a flipped FLAIR and that of another
# head have 0.19 and less, half of its own 0.27.
LEAST_INFORMATION = 0.35
BLURRED = ("pet",)  # it tells less of the T1w, and has not been measured
FIGURES = {
    "MaskDice": "Dice of the brain mask with the template's",
    "TemplateCorrelation": "correlation of the T1w with the template's",
}


def figures(derivative_dir: str | Path) -> dict[str, dict[str, float]]:
    """The registration figures of every finished subject: label -> name -> value; higher is better.

    ``MaskDice`` and ``TemplateCorrelation``, and ``<image> to T1w``, the mutual information (nats) of each
    other image with the T1w.

    Raises:
        InputError: the folder holds no finished subject.
    """
    found = {}
    for path in sorted(Path(derivative_dir).glob("sub-*/anat/sub-*_desc-preproc_T1w.json")):
        quality = json.loads(path.read_text()).get("Quality")
        if quality:
            values = {name: quality[name] for name in FIGURES}
            for image, value in quality["MutualInformationWithT1w"].items():
                values[f"{image} to T1w"] = value
            found[path.parent.parent.name.removeprefix("sub-")] = values
    if not found:
        raise InputError(f"{derivative_dir}: no preprocessed subject to look at.")
    return found


def outliers(found: dict[str, dict[str, float]]) -> dict[str, list[str]]:
    """Subjects to look at first: label -> its figures that are far below the others', or too low at all.

    Far: a robust z-score (median and MAD over the subjects) below -3.5, of at least five subjects.
    """
    flagged: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for values in found.values() for name in values):
        labels = [label for label in found if name in found[label]]
        values = np.array([found[label][name] for label in labels])
        spread = 1.4826 * np.median(np.abs(values - np.median(values)))
        far = (values - np.median(values) < OUTLIER * spread) & (len(values) >= 5)
        far |= values < _floor(name)
        for label in np.array(labels)[far]:
            flagged.setdefault(str(label), []).append(name)
    return flagged


def _floor(figure: str) -> float:
    image = figure.removesuffix(" to T1w")
    return FLOORS.get(figure, 0.0 if image.lower() in BLURRED else LEAST_INFORMATION)


def write_page(derivative_dir: str | Path) -> Path:
    """``quality.html`` in the derivative: one self-contained page, outliers first.

    Raises:
        InputError: the folder holds no finished subject.
    """
    folder = Path(derivative_dir)
    found = figures(folder)
    flagged = outliers(found)
    rows = []
    for label in sorted(found, key=lambda label: (label not in flagged, label)):
        cells = "".join(
            f'<tr class="{"low" if name in flagged.get(label, ()) else ""}">'
            f"<th>{html.escape(FIGURES.get(name, f'mutual information, {name} (nats)'))}<td>{value:.3f}"
            for name, value in found[label].items()
        )
        pictures = "".join(
            f'<img alt="{image} of sub-{label}, template outline" src="data:image/jpeg;base64,{picture}">'
            for image, picture in _pictures(folder, label)
        )
        mark = ' <span class="flag">look at this one</span>' if label in flagged else ""
        rows.append(
            f"<section><h2>sub-{html.escape(label)}{mark}</h2><table>{cells}</table>{pictures}</section>"
        )
    dice = np.array([values["MaskDice"] for values in found.values()])
    count = f"{len(found)} subject{'s' if len(found) != 1 else ''}"
    page = PAGE.format(
        title=f"Preprocessing of {html.escape(folder.resolve().name)}",
        summary=f"{count}. Median Dice of the brain mask with the template's {np.median(dice):.3f} "
        f"(lowest {dice.min():.3f}). To be looked at first: {len(flagged)}.",
        rows="\n".join(rows),
        floors=f"a Dice under {FLOORS['MaskDice']:g}, a correlation under {FLOORS['TemplateCorrelation']:g}, "
        f"mutual information under {LEAST_INFORMATION:g} (but for PET)",
    )
    return write_text(folder / "quality.html", page)


def slices(volume: NDArray[Any], affine: NDArray[np.float64]) -> list[NDArray[Any]]:
    """Three axial, two coronal and two sagittal slices, each turned so that ``imshow`` shows it upright.

    At z -20, 5 and 35, y -60 and 10, x -30 and 6 mm.
    """
    planes = [(2, -20), (2, 5), (2, 35), (1, -60), (1, 10), (0, -30), (0, 6)]
    chosen = []
    for axis, place in planes:
        index = round((place - affine[axis, 3]) / affine[axis, axis])
        chosen.append(np.take(volume, index, axis).T[::-1])
    return chosen


def _pictures(folder: Path, label: str) -> list[tuple[str, str]]:
    """Image name and JPEG (base64) of every image of a subject."""
    anat = folder / f"sub-{label}" / "anat"
    pictures = []
    for path in sorted(anat.glob("sub-*_desc-preproc_*.nii.gz"), key=lambda path: "T1w" not in path.name):
        volume, affine = read_nifti(path)
        template = load_template(round(affine[0, 0]))
        lesions = [read_lesion_mask(mask)[0] for mask in anat.glob("sub-*_label-lesion_mask.nii.gz")]
        pictures.append(
            (path.name.split("_")[-1].split(".")[0], _jpeg(volume, affine, template.brain_mask, lesions))
        )
    return pictures


def _jpeg(
    volume: NDArray[np.float32],
    affine: NDArray[np.float64],
    outline: NDArray[np.bool_],
    lesions: list[NDArray[np.bool_]],
) -> str:
    """The slices side by side, the outline in cyan and lesions in red, one pixel wide."""
    from PIL import Image  # comes with matplotlib

    scale = 2 if affine[0, 0] >= 2 else 1
    panels = []
    masks = [(outline, (0, 200, 220)), *((lesion, (255, 60, 40)) for lesion in lesions)]
    outlined = [(slices(mask, affine), colour) for mask, colour in masks]
    for number, plane in enumerate(slices(volume, affine)):
        grey = np.kron(plane.clip(0, 1) * 255, np.ones((scale, scale)))
        picture = np.repeat(grey[..., None], 3, axis=-1)
        for cuts, colour in outlined:
            mask = np.kron(cuts[number], np.ones((scale, scale), bool))
            inner = np.pad(mask, 1)
            core = mask & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
            picture[mask & ~core] = colour
        panels.append(picture)
    height = max(panel.shape[0] for panel in panels)
    row = np.concatenate(
        [
            np.pad(
                panel,
                (
                    ((height - len(panel)) // 2, height - len(panel) - (height - len(panel)) // 2),
                    (2, 2),
                    (0, 0),
                ),
            )
            for panel in panels
        ],
        axis=1,
    )
    buffer = io.BytesIO()
    Image.fromarray(row.astype(np.uint8)).save(buffer, "JPEG", quality=70)
    return base64.b64encode(buffer.getvalue()).decode()


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: 1100px; padding: 1rem; color: #222; }}
body {{ font: 15px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.05rem; margin: 0 0 .3rem; }}
section {{ border-top: 1px solid #ddd; padding: .8rem 0; }}
img {{ display: block; width: 100%; background: #000; margin-top: .4rem; }}
table {{ border-collapse: collapse; }} th {{ text-align: left; font-weight: normal; padding-right: 1rem; }}
td {{ text-align: right; font-variant-numeric: tabular-nums; }}
.low, .flag {{ color: #b3261e; font-weight: 600; }} .flag {{ font-size: .85rem; margin-left: .5rem; }}
</style></head><body>
<h1>{title}</h1>
<p>{summary}</p>
<p>Cyan: the template's brain; red: the lesion mask. The cyan line should run along the edge of every brain,
and the ventricles and the midline should lie alike from subject to subject. A figure is marked where it lies
far below the other subjects' (robust z-score under -3.5), or below what any real scan has: {floors}.</p>
{rows}
</body></html>
"""
