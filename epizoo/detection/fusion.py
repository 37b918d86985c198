"""One map of several encoders' or detectors' maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tfds_epilepsy.errors import InputError


def fuse_maps(
    maps: Sequence[NDArray[np.floating]], weights: Sequence[float] | None = None
) -> NDArray[np.float32]:
    """The weighted mean of z maps, in z units again (Stouffer's method for correlated tests, Strube 1985).

    ``sum w_i z_i / sqrt(w' R w)``, R the correlation of the maps over the voxels where all have a score; a
    lesion is too small a part of the brain to move it.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> first, second = rng.normal(size=(2, 10, 10, 10))
        >>> fused = fuse_maps([first, second])
        >>> fused.shape, round(float(fused.std()), 1)
        ((10, 10, 10), 1.0)

    Args:
        maps: ``(x, y, z)`` each, of one subject; 0 where there is no score.
        weights: of the maps, all 1 by default.

    Returns:
        ``(x, y, z)`` float32, 0 where any of the maps is.

    Raises:
        InputError: no map, shapes that differ, weights that are not one positive number per map.
    """
    shapes = {np.shape(m) for m in maps}
    if len(shapes) != 1:
        raise InputError(f"maps of shapes {sorted(shapes)}: at least one map, all of one grid, are needed.")
    w = np.ones(len(maps)) if weights is None else np.asarray(weights, float)
    if w.shape != (len(maps),) or not (w > 0).all():
        raise InputError(f"weights {w.tolist()} for {len(maps)} maps: one positive number per map is needed.")
    inside = np.all([m != 0 for m in maps], axis=0)
    z = np.stack([m[inside] for m in maps])  # (k, v)
    with np.errstate(invalid="ignore"):
        correlation = np.nan_to_num(np.corrcoef(z).reshape(len(maps), len(maps)))
    np.fill_diagonal(correlation, 1)
    fused = np.zeros(shapes.pop(), np.float32)
    fused[inside] = w @ z / np.sqrt(w @ correlation @ w)
    return fused
