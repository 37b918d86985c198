"""People who never were: a subject of noise, one made from the template, and a detector fitted on those."""

from io import StringIO

import numpy as np
from rich.console import Console
from scipy import ndimage

from epizoo.detection import fit_detector
from tfds_epilepsy.volumes import Subject, load_template

SLICES = slice(38, 43)  # thin, through the ventricles
INTENSITY = {"t1": (0.5, 0.8, 0.15), "flair": (0.6, 0.45, 0.1)}  # gm, wm, csf


def person(seed=0, shape=(9, 8, 7), zooms=(1.5, 2.0, 3.0), modalities=2):
    """Noise on a small anisotropic grid, in a brain full of holes."""
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < 0.8
    image = np.where(mask[..., None], rng.random((*shape, modalities)), 0).astype(np.float32)
    return Subject("01", "control", image, mask, np.zeros_like(mask), np.diag([*zooms, 1.0]))


def from_template(number=0, age=float("nan"), modalities=2):
    """The middle of the template with its own tissue intensities, smooth texture and noise."""
    template = load_template(2)
    rng = np.random.default_rng(number)
    mask = template.brain_mask[:, :, SLICES]
    shift = [8 * ndimage.gaussian_filter(rng.normal(size=mask.shape), 4) for _ in range(3)]
    grid = np.meshgrid(*(np.arange(n) for n in mask.shape), indexing="ij")
    where = [g + s for g, s in zip(grid, shift, strict=True)]
    tissue = [
        ndimage.map_coordinates(m[:, :, SLICES], where, order=1)
        for m in (template.gm, template.wm, template.csf)
    ]
    images = [np.tensordot(levels, tissue, 1) for levels in INTENSITY.values()][:modalities]
    image = np.stack(images, -1) + 0.03 * rng.normal(size=(*mask.shape, modalities))
    image = np.where(mask[..., None], np.clip(image, 0, 1), 0).astype(np.float32)
    affine = template.affine.copy()
    affine[:3, 3] += affine[:3, 2] * SLICES.start
    return Subject(f"{number:02d}", "control", image, mask, np.zeros_like(mask), affine, age=age)


def fit(folder, detector, n=6, **options):
    """A detector without an encoder, fitted on people made from the template."""
    options = {"modalities": ["T1w", "FLAIR"], **options}
    controls = [from_template(number, age=30 + number) for number in range(n)]
    return fit_detector(None, lambda: controls, folder, detector, console=Console(file=StringIO()), **options)
