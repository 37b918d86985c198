"""What is in the files of a data set: their grids, and whether an image is that of a brain alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import read_nifti, same_grid


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the voxels of a file lie, in RAS+ order, and what they hold.

    Attributes:
        shape: ``(x, y, z)``.
        affine: ``(4, 4)``, voxel to world mm.
        above_zero: any voxel is.
        stripped: the background is one value on nearly all of the volume's faces.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    above_zero: bool = True
    stripped: bool = True

    def __str__(self) -> str:
        size = nib.affines.voxel_sizes(self.affine).round(2).tolist()
        return f"grid {self.shape}, {size} mm, origin {self.affine[:3, 3].round(1).tolist()}"

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal grids, but for rounding: to count them."""
        return (self.shape, tuple(np.round(self.affine, 3).ravel()))

    def equals(self, other: Grid) -> bool:
        return same_grid(self.shape, self.affine, other.shape, other.affine)


def read_grids(paths: Sequence[Path], *, voxels: bool) -> tuple[dict[Path, Grid], list[str]]:
    """Grid of each file that can be used, and why the others cannot.

    Args:
        paths: of NIfTI files.
        voxels: read all of them, not the header alone.
    """
    read: Callable[[Path], Grid | str] = read_voxels if voxels else read_header
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # inflating releases the interpreter's lock
        results = list(zip(paths, pool.map(read, paths), strict=True))
    grids = {path: result for path, result in results if isinstance(result, Grid)}
    return grids, [result for _, result in results if isinstance(result, str)]


def read_voxels(path: Path) -> Grid | str:
    """The grid of a file whose every voxel was read, or why it cannot be used."""
    try:
        volume, affine = read_nifti(path)
    except InputError as error:
        return str(error)
    return Grid(
        shape=volume.shape,
        affine=affine,
        above_zero=bool((volume > 0).any()),
        stripped=_is_stripped(volume),
    )


def read_header(path: Path) -> Grid | str:
    """The grid in RAS+ order, from the header alone, or why it cannot be used."""
    try:
        image: Any = nib.load(path)
    except Exception as error:  # nibabel, gzip and zlib each raise their own
        return f"{path}: cannot be read as NIfTI ({error}); the file may be truncated."
    shape = image.shape[:3] if image.ndim == 4 and image.shape[3] == 1 else image.shape
    if len(shape) != 3:
        return f"{path}: {len(shape)}-D of shape {shape}; a 3-D volume is needed."
    turn = nib.io_orientation(image.affine)
    turned = tuple(shape[axis] for axis in np.argsort(turn[:, 0]))
    return Grid(shape=turned, affine=image.affine @ nib.orientations.inv_ornt_aff(turn, shape))


def stripped_mask(volume: NDArray[np.floating]) -> NDArray[np.bool_]:
    """The brain mask of a skull-stripped volume: where it is not background, without specks and holes.

    Background is the value that most voxels on the volume's faces share. The mask is the largest 26-connected
    component of all others, with holes filled.

    Args:
        volume: ``(x, y, z)``.
    """
    from scipy import ndimage

    head = volume != _background(volume)
    labels, count = ndimage.label(head, np.ones((3, 3, 3)))
    if count > 1:
        head = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(head)
    return filled


def _is_stripped(volume: NDArray[np.floating]) -> bool:
    """Air around a whole head is noise; around a stripped brain it is one value, and most of the volume."""
    background = _background(volume)
    return bool(np.mean(_faces(volume) == background) > 0.9 and 0.3 < np.mean(volume == background) < 1)


def _background(volume: NDArray[np.floating]) -> float:
    values, counts = np.unique(_faces(volume), return_counts=True)
    return float(values[counts.argmax()])


def _faces(volume: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.concatenate([np.take(volume, side, axis).ravel() for axis in range(3) for side in (0, -1)])
