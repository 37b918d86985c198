"""A brain that a reader can click through, in one piece of HTML that needs no network."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tfds_epilepsy.volumes import Subject, voxel_to_world


def viewer(
    subject: Subject,
    score_map: NDArray[np.float32],
    centre_mm: Sequence[float] | None = None,
    *,
    threshold: float = 2.0,
    limit: float = 6.0,
) -> str:
    """nilearn's viewer (brainsprite) of the first modality under the score map, as a whole HTML page.

    Args:
        subject: image and affine.
        score_map: ``(x, y, z)``.
        centre_mm: where the cross begins; the middle of the brain if None.
        threshold: scores below it are transparent.
        limit: score at the top of the colour bar.

    Returns:
        A page of some 0.7 MB at 2 mm, to be put in an ``iframe``'s ``srcdoc``.
    """
    from nilearn import plotting

    if centre_mm is None:
        centre_mm = voxel_to_world([np.argwhere(subject.brain_mask).mean(axis=0)], subject.affine)[0]
    with warnings.catch_warnings():
        # A map that stays under the threshold shows the anatomy alone; nilearn warns.
        warnings.filterwarnings("ignore", "The given float value must not exceed", UserWarning)
        view = plotting.view_img(
            _nifti(np.maximum(score_map, 0), subject.affine),
            bg_img=_nifti(subject.image[..., 0], subject.affine),
            cut_coords=tuple(centre_mm),
            threshold=threshold,
            vmin=0.0,
            vmax=limit,
            symmetric_cmap=False,
            cmap="hot",
            black_bg=True,
            resampling_interpolation="nearest",
            title="",
            opacity=0.8,
        )
    page = view.get_standalone()
    return re.sub(r"<link[^>]*>", "", page)  # nilearn's icon would be fetched from its site


def _nifti(volume: NDArray, affine: NDArray[np.float64]) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(volume, dtype=np.float32), affine)
