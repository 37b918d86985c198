"""What ANTs does for us, on arrays with affines: bias field, registration, resampling between spaces.

ANTs (antspyx) is an extra. It runs on one thread with a fixed seed, so that the same input gives the same
numbers; cohorts run in parallel by subject.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import load_template

# The deformation is smooth: its field is found and kept on the 2 mm grid, whatever the grid of the images.
WORKING_MM = 2
N4_ITERATIONS = (40, 30, 20)
RIGID_ITERATIONS = (100, 50, 20)
SYN_ITERATIONS = (60, 40, 20)  # at 8, 4 and 2 mm: about 40 s on one core
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Scan:
    """An image in RAS+ order with its affine: what travels between the steps.

    Attributes:
        array: ``(x, y, z)`` float32.
        affine: ``(4, 4)`` voxel to world millimetres, axes at right angles.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Millimetres between voxels along each axis."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def with_array(self, array: ArrayLike) -> Scan:
        return Scan(np.asarray(array, dtype=np.float32), self.affine)

    def cropped(self, box: tuple[slice, slice, slice]) -> Scan:
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
        return Scan(np.ascontiguousarray(self.array[box]), affine)

    def band_limited(self, voxel_size: float) -> Scan:
        """Smoothed to what a grid of ``voxel_size`` can hold: FWHM adds in quadrature; finer axes only."""
        fwhm = np.sqrt(np.maximum(voxel_size**2 - self.spacing**2, 0))
        sigma = fwhm / np.sqrt(8 * np.log(2)) / self.spacing
        return self.with_array(ndimage.gaussian_filter(self.array, sigma)) if sigma.any() else self

    def at(self, voxel_size: float) -> Scan:
        """On its own axes, with cubic voxels of ``voxel_size``."""
        size = [
            max(1, round(n * s / voxel_size)) for n, s in zip(self.array.shape, self.spacing, strict=True)
        ]
        affine = self.affine.copy()
        affine[:3, :3] *= voxel_size / self.spacing
        # The grid's corner stays, so its first voxel's centre moves by half the change of edge.
        affine[:3, 3] += affine[:3, :3] @ (0.5 - 0.5 * self.spacing / voxel_size)
        return resample(self.band_limited(voxel_size), Scan(np.zeros(size, np.float32), affine))

    def to_ants(self) -> Any:
        spacing = self.spacing
        return import_ants().from_numpy(
            np.asarray(self.array, dtype=np.float32),
            origin=tuple((_RAS_TO_LPS @ self.affine[:3, 3]).tolist()),
            spacing=tuple(spacing.tolist()),
            direction=_RAS_TO_LPS @ (self.affine[:3, :3] / spacing),
        )


def import_ants(seed: int | None = None) -> Any:
    """The ANTs package, on one thread; ``seed`` fixes the samples that its metrics draw.

    Raises:
        InputError: it is not installed.
    """
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")  # read once, when ANTs is loaded
    if seed is not None:
        os.environ["ANTS_RANDOM_SEED"] = str(seed + 1)  # 0 would mean the clock
    try:
        import ants
    except ImportError as error:
        raise InputError(
            f"ANTs is needed and cannot be imported ({error}): pip install 'epizoo[preprocessing]'."
        ) from error
    return ants


def resample(
    moving: Scan,
    fixed: Scan,
    transforms: Sequence[Path] = (),
    *,
    invert: bool = False,
    interpolation: str = "linear",
) -> Scan:
    """``moving`` on the grid of ``fixed``, 0 outside it.

    Args:
        moving: image.
        fixed: its grid alone matters.
        transforms: ANTs files; the first is nearest to ``fixed``. None: the two share the world.
        invert: a single matrix is taken backwards.
        interpolation: ``linear`` or ``nearestNeighbor``.
    """
    moved = import_ants().apply_transforms(
        fixed.to_ants(),
        moving.to_ants(),
        [str(path) for path in transforms],
        whichtoinvert=[invert] * len(transforms),
        interpolator=interpolation,
    )
    return fixed.with_array(moved.numpy())


def bounding_box(mask: NDArray[np.bool_], margin: ArrayLike) -> tuple[slice, slice, slice]:
    """The smallest box around a mask, and ``margin`` voxels more on each side, inside the array."""
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    first, second, third = (
        slice(max(part.start - int(m), 0), min(part.stop + int(m), n))
        for part, m, n in zip(found, np.broadcast_to(margin, 3), mask.shape, strict=True)
    )
    return first, second, third


def stripped_brain_mask(scan: Scan) -> NDArray[np.bool_]:
    """The brain of a skull-stripped image: what is not background, in one piece, closed by 3 mm and filled.

    Raises:
        InputError: nothing but one value.
    """
    tissue = scan.array != background(scan.array)
    if not tissue.any():
        raise InputError("every voxel holds the same value: no brain.")
    box = bounding_box(tissue, np.zeros(3))
    pad = np.ceil(5 / scan.spacing).astype(int)  # closing needs room where the brain meets the edge
    inner = np.pad(tissue[box], [(n, n) for n in pad])
    closed = grown(grown(inner, 3, scan.spacing), -3, scan.spacing)
    filled = ndimage.binary_fill_holes(largest_piece(closed))
    mask = np.zeros_like(tissue)
    mask[box] = filled[tuple(slice(n, -n) for n in pad)]
    return mask


def grown(mask: NDArray[np.bool_], distance: float, spacing: ArrayLike) -> NDArray[np.bool_]:
    """A mask grown by ``distance`` millimetres, shrunk where it is negative; exact Euclidean distances."""
    if distance >= 0:
        return ndimage.distance_transform_edt(~mask, sampling=spacing) <= distance
    return ndimage.distance_transform_edt(mask, sampling=spacing) > -distance


def largest_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest face-connected piece of a mask; the mask itself where it is empty."""
    pieces, count = ndimage.label(mask)
    if count < 2:
        return mask
    return pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])


def background(array: NDArray[np.float32]) -> float:
    """The value of most voxels on the faces of the volume."""
    faces = [np.take(array, end, axis).ravel() for axis in range(3) for end in (0, -1)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    return float(values[np.argmax(counts)])


def correct_bias(scan: Scan, mask: NDArray[np.bool_]) -> Scan:
    """N4 bias field correction (Tustison et al. 2010), fitted inside the mask.

    The field is smooth (splines 200 mm apart), so it is fitted at 2 mm and only then put on the scan's grid.
    """
    ants = import_ants()
    floor = scan.with_array(np.maximum(scan.array, 0))
    coarse, coarse_mask = floor.at(WORKING_MM), scan.with_array(mask).at(WORKING_MM)
    field = ants.n4_bias_field_correction(
        coarse.to_ants(),
        mask=coarse_mask.with_array(coarse_mask.array > 0.5).to_ants(),
        shrink_factor=2,
        convergence={"iters": list(N4_ITERATIONS), "tol": 1e-5},
        spline_param=200,
        return_bias_field=True,
    )
    gain = resample(coarse.with_array(field.numpy()), scan).array
    return scan.with_array(np.where(gain > 0.05, floor.array / np.maximum(gain, 0.05), floor.array))


def register(brain: Scan, forward: Path, inverse: Path) -> None:
    """Affine and SyN (Avants et al. 2008) from a brain to the template's brain, by mutual information.

    Args:
        brain: skull-stripped and bias-corrected, background 0.
        forward: where the composite transform to the template goes (``.h5``).
        inverse: where its inverse goes.
    """
    template = load_template(WORKING_MM)
    with TemporaryDirectory() as folder:
        found = import_ants().registration(
            Scan(template.t1, template.affine).to_ants(),
            brain.at(WORKING_MM).to_ants(),
            "SyN",
            outprefix=f"{folder}/",
            grad_step=0.25,
            reg_iterations=SYN_ITERATIONS,
            write_composite_transform=True,
        )
        shutil.move(found["fwdtransforms"], forward)
        shutil.move(found["invtransforms"], inverse)


def register_rigid(fixed: Scan, moving: Scan, path: Path) -> float:
    """Six degrees of freedom by mutual information, written to ``path`` (``.mat``).

    Starts from the scanner's own alignment and from the centres of mass; the better end is kept.

    Returns:
        The mutual information (nats) of the two images at the end.
    """
    ants = import_ants()
    fixed_image, moving_image = fixed.at(WORKING_MM).to_ants(), moving.at(WORKING_MM).to_ants()
    best = -np.inf
    with TemporaryDirectory() as folder:
        for name, start in (("scanner", "Identity"), ("centre", None)):
            found = ants.registration(
                fixed_image,
                moving_image,
                "Rigid",
                outprefix=f"{folder}/{name}",
                initial_transform=start,
                aff_iterations=RIGID_ITERATIONS,
                aff_shrink_factors=(4, 2, 1),
                aff_smoothing_sigmas=(2, 1, 0),
            )
            information = -ants.image_mutual_information(fixed_image, found["warpedmovout"])
            if information > best:
                best = information
                shutil.copyfile(found["fwdtransforms"][0], path)
    return float(best)
