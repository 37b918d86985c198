"""Tissue of a brain in template space: what the template knows of it, and what the intensities say."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import Template, load_template, same_grid

TISSUES = ("gm", "wm", "csf")
ITERATIONS = 20
PRIOR_FLOOR = 0.02  # a tissue may be where the template has none

Tissue = NDArray[np.float32]  # (3, x, y, z): probabilities of gm, wm, csf


def template_priors(shape: tuple[int, ...], affine: ArrayLike) -> NDArray[np.float64]:
    """The template's tissue maps on a grid of its space.

    Args:
        shape: ``(x, y, z)`` of the grid.
        affine: ``(4, 4)``, voxel to world millimetres.

    Returns:
        ``(x, y, z, 3)`` probabilities in the order of ``TISSUES``; where the grid is not the template's, they
        are interpolated.
    """
    template = _template_of(affine)
    maps = [template.gm, template.wm, template.csf]
    if not same_grid(shape, affine, template.shape, template.affine):
        to_template = np.linalg.inv(template.affine) @ np.asarray(affine)
        matrix, offset = to_template[:3, :3], to_template[:3, 3]
        maps = [ndimage.affine_transform(m, matrix, offset, output_shape=shape, order=1) for m in maps]
    return np.stack(maps, -1).astype(np.float64)


def estimate_tissue(
    volume: NDArray[np.floating], mask: NDArray[np.bool_], affine: ArrayLike, *, modality: str = "T1w"
) -> Tissue:
    """Estimate the tissue in an image of any modality, for lesions: a Gaussian mixture fitted by EM.

    On the template's grid its tissue maps are the priors of every voxel (Ashburner & Friston 2005, without
    the deformation); elsewhere the priors are the same everywhere. Lesions are drawn from these maps: another
    estimate, such as that of ``epizoo.maps.tissue`` for T1, would put those of the same seed elsewhere.

    Args:
        volume: ``(x, y, z)``.
        mask: ``(x, y, z)`` brain mask, not empty.
        affine: ``(4, 4)``.
        modality: orders the classes where there are no priors: T1w (csf < gm < wm) or others (csf < wm < gm).

    Returns:
        ``(3, x, y, z)`` probabilities in the order of ``TISSUES``, 0 outside the mask.

    Raises:
        InputError: an empty mask.
    """
    values = volume[mask].astype(np.float64)
    if values.size == 0:
        raise InputError("the brain mask is empty: no tissue to estimate.")
    if _on_template(mask.shape, affine):
        known = template_priors(mask.shape, affine)[mask]
        priors = np.maximum(np.ascontiguousarray(known.T), PRIOR_FLOOR)
        priors /= priors.sum(0)
        means = (priors * values).sum(1) / priors.sum(1)
        weights = np.ones(3)
    else:
        priors = np.full((3, values.size), 1 / 3)
        low, middle, high = np.percentile(values, [8, 45, 85])
        means = np.array([middle, high, low] if modality == "T1w" else [high, middle, low])
        weights = np.ones(3) / 3
    variances = np.full(3, values.var() / 9)
    for _ in range(ITERATIONS):
        density = np.exp(-0.5 * (values - means[:, None]) ** 2 / variances[:, None]) / np.sqrt(
            variances[:, None]
        )
        posterior = weights[:, None] * priors * density + 1e-12
        posterior /= posterior.sum(0)
        total = posterior.sum(1)
        means = (posterior * values).sum(1) / total
        variances = (posterior * (values - means[:, None]) ** 2).sum(1) / total
        variances = np.maximum(variances, 1e-6 * values.var() + 1e-12)
    tissue = np.zeros((3, *mask.shape), np.float32)
    tissue[:, mask] = posterior
    return tissue


def _on_template(shape: tuple[int, ...], affine: ArrayLike) -> bool:
    template = _template_of(affine)
    return same_grid(shape, affine, template.shape, template.affine)


def _template_of(affine: ArrayLike) -> Template:
    """The template with the voxel size that is nearest."""
    return load_template(1 if np.abs(np.linalg.det(np.asarray(affine)[:3, :3])) < 3 else 2)
