"""Positions in the patient's own scan, for data that ``epizoo preprocess`` brought to template space."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfds_epilepsy.volumes import TEMPLATE_SPACE

_FLIP = np.array([-1.0, -1.0, 1.0])  # NIfTI's world is RAS, ANTs' is LPS


def native_positions(
    data: str | Path, subject: str, points_mm: Sequence[ArrayLike]
) -> NDArray[np.float64] | None:
    """Take positions from template space to the world space of the subject's own T1w.

    Args:
        data: the derivative that ``epizoo preprocess`` made.
        subject: label without ``sub-``.
        points_mm: ``n`` positions in template space, RAS+.

    Returns:
        ``(n, 3)``, RAS+; None where the transform or the ``preprocessing`` extra (ANTs) is missing.
    """
    # An image is pulled, a point is pushed: the file that brings the T1w to the template takes points back.
    name = f"sub-{subject}_from-T1w_to-{TEMPLATE_SPACE}_mode-image_xfm.h5"
    transform = Path(data) / f"sub-{subject}" / "anat" / name
    if not len(points_mm) or not transform.is_file() or find_spec("ants") is None:
        return None
    import pandas as pd

    from tfds_epilepsy.registration import import_ants

    points = pd.DataFrame(np.asarray(points_mm, dtype=float) * _FLIP, columns=["x", "y", "z"])
    moved = import_ants().apply_transforms_to_points(3, points, [str(transform)])
    found: NDArray[np.float64] = moved[["x", "y", "z"]].to_numpy() * _FLIP
    return found
