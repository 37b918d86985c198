"""Regions of the template: the cerebrum, and the part of the brain that a position lies in."""

from __future__ import annotations

import itertools
from functools import lru_cache

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from tfds_epilepsy.volumes import load_template, world_to_voxel

# Balls (x, y, z, radius in mm of MNI152, mirrored in x) that lie in the hindbrain and in the cerebrum.
HINDBRAIN = (
    (25, -65, -40, 8),  # cerebellar hemisphere
    (40, -60, -38, 5),
    (12, -50, -20, 4),  # anterior lobe, under the tentorium
    (0, -62, -25, 5),  # vermis
    (0, -28, -35, 6),  # pons
    (0, -40, -55, 4),  # medulla
    (0, -31, -12, 5),  # midbrain
)
CEREBRUM = (
    (0, -5, -8, 3),  # hypothalamus
    (12, -18, 8, 5),  # thalamus
    (0, -38, 12, 3),  # splenium
    (12, -78, 0, 3),  # lingual gyrus
    (20, -92, -8, 3),  # occipital pole
    (40, -78, -10, 3),
    (30, -80, 8, 6),
    (32, -45, -12, 3),  # fusiform gyrus, on the tentorium
    (26, -38, -6, 3),
    (24, -20, -20, 3),  # hippocampus
    (22, -12, -6, 3),
    (50, -40, -20, 4),  # inferior temporal gyrus
    (40, 5, -30, 6),  # temporal pole
    (8, -60, 30, 6),
    (25, 20, 30, 15),
    (30, -50, 35, 10),
)
# The axis of the right hippocampus from head to tail, mm of MNI152.
HIPPOCAMPAL_AXIS = (
    (25, -9, -21),
    (27, -14, -18),
    (29, -20, -15),
    (29, -26, -11.5),
    (28, -32, -8),
    (25, -37, -4),
)


@lru_cache(maxsize=2)
def cerebrum_mask(voxel_size: int = 2) -> NDArray[np.bool_]:
    """The template's brain mask without cerebellum and brain stem.

    Watershed of the template's T1w from landmarks on both sides: the borders settle in the dark of the
    tentorium and the cisterns. Between midbrain and thalamus nothing is dark; the border there is the plane
    through the posterior commissure and the back of the mamillary bodies.

    Args:
        voxel_size: of the template grid, 1 or 2 mm.

    Returns:
        ``(x, y, z)`` bool, read-only.
    """
    template = load_template(voxel_size)
    places = nib.affines.apply_affine(template.affine, np.moveaxis(np.indices(template.shape), 0, -1))
    x, y, z = np.moveaxis(places, -1, 0)
    markers = np.zeros(template.shape, np.int8)
    for label, balls in ((2, HINDBRAIN), (1, CEREBRUM)):
        for right, front, up, radius in balls:
            markers[(abs(x) - right) ** 2 + (y - front) ** 2 + (z - up) ** 2 <= radius**2] = label
    above = z > -4 - 2 / 3 * (y + 24)
    markers[above & (abs(x) < 22) & (y > -38) & (y < 0)] = 1
    markers[~above & (abs(x) <= 9) & (y >= -30) & (y <= -18) & (z > -26)] = 2
    markers[z > 20] = 1

    darkness = 255 * (1 - ndimage.gaussian_filter(template.t1, 0.7 / voxel_size))
    darkness = np.where(template.brain_mask, darkness.clip(0, 255), 255).astype(np.uint8)
    hindbrain = (ndimage.watershed_ift(darkness, markers) == 2) & template.brain_mask
    hindbrain = ndimage.binary_opening(hindbrain, iterations=2 // voxel_size)
    pieces, _ = ndimage.label(hindbrain)
    hindbrain = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    hindbrain |= hindbrain[::-1]  # the template mirrors itself; watershed breaks ties to one side
    mask: NDArray[np.bool_] = template.brain_mask & ~hindbrain
    mask.flags.writeable = False
    return mask


def distance_from_line(places: NDArray[np.floating], line: NDArray[np.floating]) -> NDArray[np.floating]:
    """Distance ``(...)`` of places ``(..., 3)`` from a line through some points ``(n, 3)``, in their unit."""
    nearest = np.full(places.shape[:-1], np.inf)
    for start, end in itertools.pairwise(line):
        way = end - start
        along = np.clip((places - start) @ way / (way @ way), 0, 1)
        nearest = np.minimum(nearest, np.linalg.norm(places - start - along[..., None] * way, axis=-1))
    return nearest


def region_names(positions: ArrayLike) -> list[str]:
    """The part of the brain that each position lies in, for a reader's eye: borders are true to a centimetre.

    In the cerebrum the part whose gyrus or nucleus has the nearest centre; outside of it, the hindbrain.

    Args:
        positions: ``(n, 3)``, millimetres of MNI152.

    Returns:
        names of ``CENTRES``, or ``cerebellum or brain stem``.
    """
    positions = np.asarray(positions, np.float64).reshape(-1, 3)
    template, cerebrum = load_template(2), cerebrum_mask(2)
    voxels = world_to_voxel(positions, template.affine).clip(0, np.array(template.shape) - 1)
    hindbrain = (template.brain_mask & ~cerebrum)[tuple(voxels.T)]
    names = [name for name, centres in CENTRES.items() for _ in centres]
    centres = np.array([centre for centres in CENTRES.values() for centre in centres])
    mirrored = np.column_stack([np.abs(positions[:, 0]), positions[:, 1:]])
    nearest = np.linalg.norm(mirrored[:, None] - centres, axis=2).argmin(1)
    return [
        "cerebellum or brain stem" if behind else names[k]
        for behind, k in zip(hindbrain, nearest, strict=True)
    ]


# Approximate centres of the gyri and nuclei of the parcellation of Tzourio-Mazoyer et al. 2002 (NeuroImage
# 15:273-289), mm of MNI152, those on the right.
CENTRES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "frontal": (
        *((39, -6, 51), (18, 35, 42), (17, 47, -13), (33, 33, 35), (31, 50, -10), (48, 13, 19)),
        *((46, 30, 14), (36, 31, -12), (5, 5, 61), (8, 15, -11), (5, 49, 31), (5, 54, -7), (5, 37, -18)),
    ),
    "parietal": (
        *((42, -23, 49), (23, -60, 59), (43, -46, 47), (56, -34, 30), (44, -61, 36), (7, -56, 48)),
        *((8, -25, 70),),
    ),
    "temporal": (
        *((42, -19, 10), (53, -21, 7), (40, 15, -20), (56, -34, -2), (36, 15, -34), (50, -28, -23)),
        *((31, -40, -20),),
    ),
    "mesial temporal": ((25, -21, -10), (21, -16, -21), (23, -1, -17)),
    "occipital": ((7, -79, 6), (6, -80, 27), (15, -68, -5), (17, -84, 28), (32, -81, 16), (36, -78, -8)),
    "insula and operculum": ((35, 7, 3), (47, -8, 14)),
    "cingulate": ((4, 35, 14), (5, -15, 42), (5, -43, 25)),
    "deep grey matter": ((11, 11, 9), (24, 4, 2), (18, 0, 0), (11, -18, 8)),
}
