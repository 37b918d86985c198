"""Volumes in template space: the subject record, the template grid, NIfTI in and out, intensities.

Every volume is ``(x, y, z)`` or ``(x, y, z, m)`` in RAS+ order and travels with its 4x4 affine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import replacing

TEMPLATE_SPACE = "MNI152NLin2009aSym"  # the template that nilearn ships
# World box (mm) around the template's brain; symmetric in x, so that reversing axis 0 mirrors the brain.
TEMPLATE_BOX = ((-74, 74), (-110, 76), (-72, 84))
LARGEST_BRAIN_MM3 = 2.3e6  # with the fluid around it, in the template's space too; no head is so small


@dataclass(frozen=True)
class Subject:
    """One subject in template space: the record that the builder stores and every later step reads.

    Example:
        >>> patient.subject, patient.group, patient.image.shape, int(patient.lesion_mask.sum())
        ('p1', 'patient', (24, 26, 10, 2), 75)

    Attributes:
        subject: label without the ``sub-`` prefix.
        group: ``control`` or ``patient``.
        image: ``(x, y, z, m)`` float32 in [0, 1], background 0.
        brain_mask: ``(x, y, z)`` bool.
        lesion_mask: ``(x, y, z)`` bool, all False where there is none.
        affine: ``(4, 4)`` float64, voxel to world millimetres (RAS+).
        age: years, NaN where unknown.
        sex: ``f``, ``m`` or empty.
        site: scanner or centre, empty where unknown.
    """

    subject: str
    group: str
    image: NDArray[np.float32]
    brain_mask: NDArray[np.bool_]
    lesion_mask: NDArray[np.bool_]
    affine: NDArray[np.float64]
    age: float = float("nan")
    sex: str = ""
    site: str = ""


@dataclass(frozen=True)
class Template:
    """The MNI152 template on the project's grid: T1 intensity, tissue probabilities, brain mask.

    ``t1``, ``gm``, ``wm``, ``csf`` are ``(x, y, z)`` float32 in [0, 1]; ``brain_mask`` is bool.

    Example:
        >>> template = load_template()
        >>> template.t1.shape, bool(template.gm.max() <= 1)
        ((75, 94, 79), True)
    """

    t1: NDArray[np.float32]
    gm: NDArray[np.float32]
    wm: NDArray[np.float32]
    csf: NDArray[np.float32]
    brain_mask: NDArray[np.bool_]
    affine: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.brain_mask.shape

    @property
    def voxel_size(self) -> float:
        return float(self.affine[0, 0])


@lru_cache(maxsize=2)
def load_template(voxel_size: int = 2) -> Template:
    """The MNI152 (ICBM 2009a, symmetric) template that nilearn ships, cropped to ``TEMPLATE_BOX``.

    Example:
        >>> float(load_template(voxel_size=2).affine[0, 0])
        2.0

    Args:
        voxel_size: edge of a voxel in millimetres: 1 or 2.

    Raises:
        InputError: another voxel size.
    """
    if voxel_size not in (1, 2):
        raise InputError(f"voxel size {voxel_size!r} mm: the template grid is made at 1 or 2 mm.")
    from nilearn import datasets  # heavy to import

    def crop(image: nib.Nifti1Image) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        origin = image.affine[:3, 3]
        start = [round((low - o) / voxel_size) for (low, _), o in zip(TEMPLATE_BOX, origin, strict=True)]
        stop = [round((high - o) / voxel_size) + 1 for (_, high), o in zip(TEMPLATE_BOX, origin, strict=True)]
        part = image.slicer[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
        return np.clip(part.get_fdata(dtype=np.float32), 0, 1), part.affine

    t1, affine = crop(datasets.load_mni152_template(resolution=voxel_size))
    gm, _ = crop(datasets.load_mni152_gm_template(resolution=voxel_size))
    wm, _ = crop(datasets.load_mni152_wm_template(resolution=voxel_size))
    mask, _ = crop(datasets.load_mni152_brain_mask(resolution=voxel_size))
    brain_mask = mask > 0.5
    csf = np.clip(1 - gm - wm, 0, 1) * brain_mask
    for array in (t1, gm, wm, csf, brain_mask):
        array.flags.writeable = False  # cached: shared by all callers
    return Template(t1, gm, wm, csf, brain_mask, affine)


def read_nifti(path: str | Path, *, dtype: Any = np.float32) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read a 3-D NIfTI as RAS+ (axes flipped and permuted where needed, never resampled).

    Example:
        >>> path = write_nifti(folder / "read.nii.gz", np.ones((4, 5, 6)), np.diag([2, 2, 2, 1]))
        >>> volume, affine = read_nifti(path)
        >>> volume.shape, volume.dtype.name, float(affine[0, 0])
        ((4, 5, 6), 'float32', 2.0)

    Returns:
        The array ``(x, y, z)`` and its ``(4, 4)`` affine.

    Raises:
        InputError: as ``open_nifti``; the file is truncated, or holds NaN or infinity.
    """
    image = open_nifti(path)
    try:
        with np.errstate(all="ignore"):  # what overflows is infinite, and named below
            turned = nib.as_closest_canonical(image)
            array = np.asarray(turned.dataobj, dtype=dtype)
    except Exception as error:
        raise InputError(f"{path}: cannot be read as NIfTI ({error}); the file may be truncated.") from error
    if not np.isfinite(array).all():
        count = np.count_nonzero(~np.isfinite(array))
        raise InputError(
            f"{path}: {count} voxels are NaN or infinite; where they lie around the brain, set them to 0."
        )
    return array.reshape(array.shape[:3]), turned.affine


def open_nifti(path: str | Path) -> Any:
    """A 3-D NIfTI whose voxels are not read yet, once its header can be believed.

    Returns:
        nibabel's image, in the file's own orientation; ``(x, y, z)``, or with further axes of length 1.

    Raises:
        InputError: the file is missing or no NIfTI, and why; not 3-D; complex or RGB; without an affine, or
            without a word on left and right.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: {absent(path)}")
    try:
        with np.errstate(all="ignore"):
            image: Any = nib.load(path)
            problem = _unusable(image) or _too_short(path, image)
    except Exception as error:  # nibabel, gzip and zlib each raise their own
        raise InputError(f"{path}: {_unreadable(path, error)}") from error
    if problem:
        raise InputError(f"{path}: {problem}")
    return image


def orientation_note(image: Any) -> str:
    """Which of the header's two forms was believed, where they disagree; else empty.

    Args:
        image: of ``open_nifti``.
    """
    if image.header["qform_code"] <= 0 or image.header["sform_code"] <= 0:
        return ""
    apart = _apart(image)
    return f"sform and qform disagree by up to {apart:.1f} mm; the sform is believed." if apart > 0.5 else ""


def write_nifti(path: str | Path, array: ArrayLike, affine: ArrayLike, *, dtype: Any = np.float32) -> Path:
    """Write a NIfTI in template space atomically: the final name appears once the file is whole.

    The codes of the header say MNI152 (qform and sform code 4).

    Example:
        >>> write_nifti(folder / "map.nii.gz", np.ones((4, 5, 6)), np.diag([2, 2, 2, 1])).name
        'map.nii.gz'
    """
    path = Path(path)
    image = nib.Nifti1Image(np.asarray(array, dtype=dtype), np.asarray(affine, dtype=np.float64))
    image.set_qform(image.affine, code=4)
    image.set_sform(image.affine, code=4)
    image.header.set_xyzt_units("mm")
    with replacing(path) as partial:
        nib.save(image, partial)
    return path


def read_lesion_mask(path: str | Path) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Read a lesion mask, drawn or soft: see ``lesion_voxels``.

    Returns:
        The mask ``(x, y, z)`` and its ``(4, 4)`` affine, RAS+.

    Raises:
        InputError: as ``read_nifti`` and ``lesion_voxels``; the message names the file.
    """
    array, affine = read_nifti(path)
    try:
        return lesion_voxels(array), affine
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def lesion_voxels(array: NDArray[np.floating]) -> NDArray[np.bool_]:
    """The voxels of a lesion mask that hold at least half of its maximum.

    A mask holds 0 and one other value (1, 255, any label), or shares of lesion in [0, 1].

    Args:
        array: ``(x, y, z)``, finite.

    Raises:
        InputError: the mask is empty, holds several labels, or values that are no share.
    """
    values = np.unique(array[array != 0])
    if values.size == 0:
        raise InputError("the lesion mask is empty.")
    low, high = float(values[0]), float(values[-1])
    rounding = 1e-3  # of a scale factor, and of the interpolation
    shares = low > -rounding and high < 1 + rounding
    if not shares and values.size > 1:
        if values.size <= 100 and np.array_equal(values, np.rint(values)):
            some = ", ".join(f"{value:g}" for value in values[:5]) + (", ..." if values.size > 5 else "")
            raise InputError(
                f"the lesion mask holds {values.size} labels ({some}): keep one, 0 elsewhere; it may be a "
                "segmentation of tissue."
            )
        raise InputError(
            f"the lesion mask holds values from {low:g} to {high:g}: 0 and one other value, or shares of "
            "lesion from 0 to 1 are needed."
        )
    if high <= 0:
        raise InputError(f"the lesion mask holds no value above 0 (lowest {low:g}).")
    return array >= high / 2


def same_grid(
    shape: tuple[int, ...], affine: ArrayLike, other_shape: tuple[int, ...], other: ArrayLike
) -> bool:
    """Whether two grids agree: equal shapes, affines within 0.001 mm."""
    return tuple(shape) == tuple(other_shape) and np.allclose(affine, other, atol=1e-3)


def subject_problems(
    subject: Subject, shape: tuple[int, ...], affine: NDArray[np.floating], channels: int, what: str
) -> list[str]:
    """Why a subject cannot be used beside others on a grid; nothing where it can.

    Args:
        subject: who is checked.
        shape: ``(x, y, z)`` of the grid.
        affine: ``(4, 4)`` of the grid.
        channels: how many modalities there must be.
        what: has this grid and these modalities, for the messages: ``sub-01``, ``the detector in RUN``.
    """
    problems = []
    name, image, mask = f"sub-{subject.subject}", subject.image, subject.brain_mask
    if not same_grid(image.shape[:3], subject.affine, shape, affine):
        problems.append(
            f"{name}: grid {_grid(image.shape[:3], subject.affine)}; {what} lies on {_grid(shape, affine)}: "
            "preprocess it to the same template space."
        )
    elif image.shape[3:] != (channels,):
        problems.append(f"{name}: image {image.shape}; {what} has {channels} modalities.")
    if mask.shape != image.shape[:3]:
        problems.append(f"{name}: brain mask of shape {mask.shape}, image {image.shape[:3]}.")
    elif not mask.any():
        problems.append(f"{name}: the brain mask is empty.")
    if not np.isfinite(image).all():
        problems.append(f"{name}: {np.count_nonzero(~np.isfinite(image))} values are NaN or infinite.")
    return problems


def normalise(
    volume: NDArray[np.floating], mask: NDArray[np.bool_], method: str = "unit"
) -> tuple[NDArray[np.float32], Mapping[str, float | str]]:
    """Map the intensities of one image to [0, 1], fitted inside its brain mask; background becomes 0.

    ``unit``: the 0.5th percentile to 0, the 99th to 1, clipped (Alaverdyan et al. 2020 drop the top 1 %).
    ``zscore``: robust z-score (median, 1.4826 MAD), -5 to 0 and +5 to 1, clipped.

    Example:
        >>> brain = np.ones((4, 4, 4), bool)
        >>> scaled, record = normalise(np.arange(64.0).reshape(4, 4, 4), brain)
        >>> float(scaled.min()), float(scaled.max()), record["method"]
        (0.0, 1.0, 'unit')

    Args:
        volume: ``(x, y, z)``, any unit.
        mask: ``(x, y, z)`` bool, not empty.
        method: ``unit`` or ``zscore``.

    Returns:
        The image and what was fitted: ``{"method", "low", "high"}``; low and high are the input
        intensities that became 0 and 1.

    Raises:
        InputError: an empty mask, an image that is constant in the mask, an unknown method.
    """
    values = volume[mask]
    if values.size == 0:
        raise InputError("the brain mask is empty: no intensity can be normalised.")
    if method == "unit":
        low, high = (float(v) for v in np.percentile(values, [0.5, 99]))
    elif method == "zscore":
        median = float(np.median(values))
        spread = 1.4826 * float(np.median(np.abs(values - median)))
        low, high = median - 5 * spread, median + 5 * spread
    else:
        raise InputError(f"unknown normalisation {method!r}: choose 'unit' or 'zscore'.")
    if not high > low:
        raise InputError("the image is constant inside the brain mask: no intensity can be normalised.")
    scaled = np.clip((volume.astype(np.float32) - low) / (high - low), 0, 1)
    return np.where(mask, scaled, 0).astype(np.float32), {"method": method, "low": low, "high": high}


def voxel_to_world(indices: ArrayLike, affine: ArrayLike) -> NDArray[np.float64]:
    """World millimetres ``(..., 3)`` of voxel indices ``(..., 3)``.

    Example:
        >>> voxel_to_world([[1, 2, 3]], np.diag([2, 2, 2, 1]))
        array([[2., 4., 6.]])
    """
    places = nib.affines.apply_affine(np.asarray(affine), np.asarray(indices, dtype=np.float64))
    return np.asarray(places, np.float64)


def world_to_voxel(positions: ArrayLike, affine: ArrayLike) -> NDArray[np.int64]:
    """Indices ``(n, 3)`` of the voxels nearest to world millimetres ``(n, 3)``; they may lie off the grid.

    Example:
        >>> world_to_voxel([[2.1, 3.9, 6]], np.diag([2, 2, 2, 1]))
        array([[1, 2, 3]])
    """
    inverse = np.linalg.inv(np.asarray(affine))
    return np.asarray(np.rint(nib.affines.apply_affine(inverse, np.asarray(positions))), np.int64)


def scaled_position(indices: ArrayLike, affine: ArrayLike) -> NDArray[np.float32]:
    """World position of voxels scaled to [-1, 1] over ``TEMPLATE_BOX``: ``(n, 3)`` float32."""
    low, high = np.transpose(TEMPLATE_BOX)
    return np.asarray((voxel_to_world(indices, affine) - low) / (high - low) * 2 - 1, np.float32)


def _grid(shape: tuple[int, ...], affine: NDArray[np.floating]) -> str:
    size, origin = np.diag(affine)[:3].round(3), affine[:3, 3].round(1)
    return f"{tuple(shape)} of {size.tolist()} mm with its origin at {origin.tolist()}"


def absent(path: Path) -> str:
    """Why there is no such file, and what to do."""
    if path.is_symlink():
        return (
            f"a link to {path.readlink()}, which is not there; get the file's content first "
            "(datalad get, git annex get)."
        )
    return "is a folder; a file is needed." if path.is_dir() else "no such file."


def _unreadable(path: Path, error: Exception) -> str:
    """Why a file is no NIfTI, seen from its first bytes."""
    try:
        with path.open("rb") as file:
            start = file.read(400)
    except OSError as failure:
        return f"cannot be read ({failure.strerror})."
    if not start:
        return "is empty (0 bytes)."
    if b"/annex/objects/" in start or start.startswith(b"version https://git-lfs"):
        return "holds a pointer, not a scan; get the file's content first (datalad get, git lfs pull)."
    compressed = start.startswith(b"\x1f\x8b")
    if path.name.lower().endswith(".gz") and not compressed:
        if start[344:347] in (b"n+1", b"ni1") or start[4:7] == b"n+2":
            return f"is not compressed, though its name says so; rename it to {path.name[:-3]}."
        return "is no gzip file; it is damaged, or of another format."
    if path.name.lower().endswith(".nii") and compressed:
        return f"is compressed; rename it to {path.name}.gz."
    if isinstance(error, nib.filebasedimages.ImageFileError):
        return "holds no header of a NIfTI; it is damaged, or of another format: convert it."
    return f"cannot be read as NIfTI ({error}); the file may be truncated."


def _unusable(image: Any) -> str:
    """What is wrong with a header, or nothing."""
    shape, header = image.shape, image.header
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        return f"{len(shape)}-D of shape {shape}; a 3-D volume is needed."
    if 0 in shape:
        return f"of shape {shape}: it holds no voxel."
    if "qform_code" not in header:
        return "its header says nothing of left and right (no NIfTI, but Analyze); convert it anew."
    dtype = image.get_data_dtype()
    if dtype.kind == "c":
        return "its voxels are complex numbers; write the magnitude."
    if dtype.names:
        return f"its voxels are colours ({'+'.join(dtype.names)}); one value per voxel is needed."
    if not np.isfinite(image.affine).all():
        return "its affine holds NaN or infinity; the header is damaged: convert the scan anew."
    if abs(np.linalg.det(image.affine[:3, :3])) < 1e-12:
        return "its affine is singular (an axis of length 0); the header is damaged: convert the scan anew."
    if header["qform_code"] <= 0 and header["sform_code"] <= 0:
        return (
            "qform and sform code are 0: the header does not say where left and right are; convert the scan "
            "anew, or set the codes once you know."
        )
    if header["qform_code"] > 0 and header["sform_code"] > 0:
        sform, qform = header.get_sform(), header.get_qform()
        if not np.isfinite(qform).all():
            return "its qform holds NaN or infinity; the header is damaged: convert the scan anew."
        if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
            return "sform and qform disagree on left and right; set the wrong one anew."
    return ""


def _apart(image: Any) -> float:
    """Millimetres between where sform and qform put the volume's corners, at most."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(image.shape[:3]) - 1)
    forms = (image.header.get_sform(), image.header.get_qform())
    by_sform, by_qform = (nib.affines.apply_affine(form, corners) for form in forms)
    return float(np.linalg.norm(by_sform - by_qform, axis=1).max())


def _too_short(path: Path, image: Any) -> str:
    """A header that promises more voxels than the file can hold would fill memory before it fails."""
    promised = math.prod(image.shape) * image.get_data_dtype().itemsize
    held = path.stat().st_size * (1100 if path.name.lower().endswith(".gz") else 1)  # deflate's best is 1032
    if promised > held:
        return f"its header promises {image.shape} voxels, more than the file can hold; it may be truncated."
    return ""
