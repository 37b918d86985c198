"""Maps of the signs of a lesion that readers look for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from epizoo.maps.junction import junction_width
from epizoo.maps.smoothing import smooth
from tfds_epilepsy.lesions import DIRECTIONS

SURROUND_FWHM = 40.0  # millimetres; what is as wide is a bias field or the anatomy of a lobe
JUNCTION = "junction"  # name of the last map, beside those of the modalities


def sign_maps(
    image: NDArray[np.floating], mask: NDArray[np.bool_], affine: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Each modality less its mean over the surround; the log of the width of the junction in the first.

    Args:
        image: ``(x, y, z, m)``.
        mask: ``(x, y, z)``, the brain.
        affine: ``(4, 4)``, voxel to world, mm.

    Returns:
        ``(x, y, z, m + 1)``; 0 outside the mask.
    """
    relative = np.where(mask[..., None], image - smooth(image, mask, affine, SURROUND_FWHM), 0)
    junction = junction_width(image[..., 0], mask, affine)
    return np.concatenate([relative, junction[..., None]], -1, dtype=np.float32)


def directions(modalities: Sequence[str]) -> list[int]:
    """Of the change of each sign map in lesions: 1 up, -1 down, 0 where it is not known."""
    return [*(DIRECTIONS.get(name, 0) for name in modalities), 1]  # a junction gets wider


def sign_names(modalities: Sequence[str]) -> list[str]:
    """What a lesion does to each sign map, in words."""
    words = {1: "brighter {}", -1: "darker {}", 0: "{}"}
    changes = zip(modalities, directions(modalities), strict=False)
    return [*(words[sign].format(name) for name, sign in changes), "blurred junction"]
