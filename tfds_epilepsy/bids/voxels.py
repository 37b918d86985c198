"""What is in the files of a data set: their grids, what cannot be used, and which scans are the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tfds_epilepsy.bids.participants import Participant, split_of
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import (
    LARGEST_BRAIN_MM3,
    lesion_voxels,
    open_nifti,
    orientation_note,
    read_nifti,
    same_grid,
)

VOXEL_MM = (0.1, 15.0)  # the finest scans of living heads have 0.2, the thickest slices 10
EXTENT_MM = (10.0, 700.0)  # of each axis: from a few slices to the bore of a scanner


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the voxels of a file lie, in RAS+ order.

    Attributes:
        shape: ``(x, y, z)``.
        affine: ``(4, 4)``, voxel to world mm.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]

    def __str__(self) -> str:
        size = nib.affines.voxel_sizes(self.affine).round(2).tolist()
        return f"{self.shape}, {size} mm, origin {self.affine[:3, 3].round(1).tolist()}"

    @property
    def voxel_size(self) -> tuple[float, ...]:
        """Millimetres, an axis each."""
        return tuple(float(size) for size in nib.affines.voxel_sizes(self.affine))

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal grids, but for rounding: to count them."""
        return (self.shape, tuple(np.round(self.affine, 3).ravel()))

    def equals(self, other: Grid) -> bool:
        return same_grid(self.shape, self.affine, other.shape, other.affine)

    @property
    def problem(self) -> str:
        """Why no brain can be read on this grid, or nothing."""
        if min(self.shape) == 1:
            return f"of shape {self.shape}: a single slice; a volume is needed."
        size = nib.affines.voxel_sizes(self.affine)
        extent = size * self.shape
        if not (VOXEL_MM[0] <= size.min() and size.max() <= VOXEL_MM[1]):
            return (
                f"voxels of {_by(size)} mm; heads are scanned at {VOXEL_MM[0]:g} to {VOXEL_MM[1]:g} mm: the "
                "header may hold metres or micrometres."
            )
        if not (EXTENT_MM[0] <= extent.min() and extent.max() <= EXTENT_MM[1]):
            return f"a field of view of {_by(extent)} mm; heads fill {EXTENT_MM[0]:g} to {EXTENT_MM[1]:g} mm."
        axes = self.affine[:3, :3] / size
        if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
            return "its axes are not at right angles (a sheared affine); resample it first."
        return ""


@dataclass(frozen=True, kw_only=True)
class VolumeFile:
    """A file whose every voxel was read.

    Attributes:
        grid: where its voxels lie.
        note: what to know of its header, or empty.
        stripped: the background is one value on nearly all of the volume's faces, and the rest no larger than
            a brain; of an image.
        marked: voxels of a mask; of an image, 0.
        digest: of the voxels; equal for equal images, however they were compressed.
    """

    grid: Grid
    note: str
    stripped: bool = True
    marked: int = 0
    digest: str = ""


Reader = Callable[[NDArray[np.float32], Grid], dict[str, Any]]


def read_volumes(
    images: Sequence[Path], brain_masks: Sequence[Path] = (), lesion_masks: Sequence[Path] = ()
) -> tuple[dict[Path, VolumeFile], list[str]]:
    """Every file that can be used, and why the others cannot.

    Args:
        images: constant ones are a problem.
        brain_masks: where above .5.
        lesion_masks: as ``volumes.lesion_voxels`` reads them.
    """
    kinds = {**dict.fromkeys(images, _image), **dict.fromkeys(brain_masks, _brain_mask)}
    readers: dict[Path, Reader]
    readers = {**kinds, **dict.fromkeys(lesion_masks, _lesion_mask)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # inflating releases the interpreter's lock
        results = list(zip(readers, pool.map(_read, readers, readers.values()), strict=True))
    volumes = {path: result for path, result in results if isinstance(result, VolumeFile)}
    return volumes, [result for _, result in results if isinstance(result, str)]


def read_grid(path: Path) -> Grid:
    """The grid in RAS+ order, from the header alone.

    Example:
        >>> read_grid(next(derivative_folder.glob("sub-p1/anat/*_T1w.nii.gz"))).shape
        (24, 26, 10)

    Raises:
        InputError: as ``volumes.open_nifti``.
    """
    image = open_nifti(path)
    shape = image.shape[:3]
    try:
        turn = nib.io_orientation(image.affine)
    except np.linalg.LinAlgError as error:
        raise InputError(f"{path}: its affine cannot be used ({error}); convert the scan anew.") from error
    turned = tuple(shape[axis] for axis in np.argsort(turn[:, 0]))
    return Grid(shape=turned, affine=image.affine @ nib.orientations.inv_ornt_aff(turn, shape))


def volume_notes(label: str, volumes: Mapping[Path, VolumeFile], paths: Sequence[Path]) -> list[str]:
    """What to know of a subject's files."""
    read = [(path, volumes[path].note) for path in paths if path in volumes]
    return [f"sub-{label}: {path.name}: {note}" for path, note in read if note]


def same_scans(
    people: Sequence[tuple[Participant, Mapping[str, Path]]], volumes: Mapping[Path, VolumeFile]
) -> tuple[list[str], dict[str, list[str]]]:
    """Images that are equal voxel by voxel: problems, and notes by label where they do no harm.

    One scan under two labels is a problem where one of the two trains or calibrates and the other is for
    another split: the detector would be tested on what it has seen.

    Args:
        people: with the images of each, by modality.
        volumes: that were read.
    """
    problems: list[str] = []
    notes: dict[str, list[str]] = {}
    first: dict[str, tuple[Participant, str, Path]] = {}
    for person, images in people:
        for modality, path in images.items():
            if path not in volumes:
                continue
            other, other_modality, other_path = first.setdefault(
                volumes[path].digest, (person, modality, path)
            )
            if other_path == path:
                continue
            same = f"{path}: the same scan as {other_path}"
            if other.subject == person.subject:
                problems.append(
                    f"{same}: {other_modality} and {modality} of sub-{person.subject} must differ."
                )
            elif split_of(other) != split_of(person):
                problems.append(
                    f"{same}: sub-{person.subject} is in split '{split_of(person)}', "
                    f"sub-{other.subject} in '{split_of(other)}'; leave one, or put both in one split."
                )
            else:
                note = f"sub-{person.subject}: {path.name} is the same scan as {other_path.name}."
                notes.setdefault(person.subject, []).append(note)
    return problems, notes


def stripped_mask(volume: NDArray[np.floating]) -> NDArray[np.bool_]:
    """The brain mask of a skull-stripped volume: where it is not background, without specks and holes.

    Background is the value that most voxels on the volume's faces share. The mask is the largest 26-connected
    component of all others, with holes filled.

    Example:
        >>> volume = np.zeros((9, 9, 9))
        >>> volume[2:7, 2:7, 2:7] = 5
        >>> int(stripped_mask(volume).sum())
        125

    Args:
        volume: ``(x, y, z)``.
    """
    from scipy import ndimage

    head = volume != background_of(volume)
    labels, count = ndimage.label(head, np.ones((3, 3, 3)))
    if count > 1:
        head = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(head)
    return filled


def background_of(volume: NDArray[np.floating]) -> float:
    """The value that most voxels on the faces of ``(x, y, z)`` share."""
    values, counts = np.unique(_faces(volume), return_counts=True)
    return float(values[counts.argmax()])


def _by(lengths: NDArray[np.float64]) -> str:
    return " x ".join(f"{length:.3g}" for length in lengths)


def _read(path: Path, look: Reader) -> VolumeFile | str:
    with np.errstate(all="ignore"):  # of headers with any numbers; each is judged
        try:
            note, grid = orientation_note(open_nifti(path)), read_grid(path)
            if grid.problem:
                return f"{path}: {grid.problem}"
            volume, _ = read_nifti(path)
        except InputError as error:
            return str(error)
        try:
            return VolumeFile(grid=grid, note=note, **look(volume, grid))
        except InputError as error:
            return f"{path}: {error}"


def _image(volume: NDArray[np.float32], grid: Grid) -> dict[str, Any]:
    if volume.min() == volume.max():
        raise InputError(f"every voxel is {volume.flat[0]:g}; there is no image in it.")
    digest = hashlib.blake2b(repr(volume.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(volume).data)
    return {"stripped": _is_stripped(volume, grid), "digest": digest.hexdigest()}


def _brain_mask(volume: NDArray[np.float32], grid: Grid) -> dict[str, Any]:
    marked = np.count_nonzero(volume > 0.5)
    if marked == 0:
        raise InputError("the mask is empty.")
    if marked == 1:
        raise InputError("the mask holds one voxel; that is no brain.")
    return {"marked": marked}


def _lesion_mask(volume: NDArray[np.float32], grid: Grid) -> dict[str, Any]:
    marked = np.count_nonzero(lesion_voxels(volume))
    if marked == volume.size:
        raise InputError("every voxel is lesion; it may be inverted.")
    return {"marked": marked}


def _is_stripped(volume: NDArray[np.floating], grid: Grid) -> bool:
    """Air around a whole head is noise; around a stripped brain it is one value, and most of the volume.

    Where the air was set to one value too, a head is larger than any brain.
    """
    background = background_of(volume)
    air = np.count_nonzero(volume == background)
    tissue_mm3 = (volume.size - air) * abs(np.linalg.det(grid.affine[:3, :3]))
    alike = np.mean(_faces(volume) == background) > 0.9 and 0.3 < air / volume.size < 1
    return bool(alike and tissue_mm3 <= LARGEST_BRAIN_MM3)


def _faces(volume: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.concatenate([np.take(volume, side, axis).ravel() for axis in range(3) for side in (0, -1)])
