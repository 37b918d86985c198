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

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import LARGEST_BRAIN_MM3, load_template, voxel_to_world

# The deformation is smooth: its field is found and kept on the 2 mm grid, whatever the grid of the images.
WORKING_MM = 2
N4_ITERATIONS = (40, 30, 20)
RIGID_ITERATIONS = (100, 50, 20)
SYN_ITERATIONS = (60, 40, 20)  # at 8, 4 and 2 mm: about 40 s on one core
HEAD_SYN_ITERATIONS = (40, 20, 0)  # to find the brain in a head: an outline, not every gyrus
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
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0), np.float64)

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
    mask: NDArray[np.bool_] = np.zeros_like(tissue)
    mask[box] = filled[tuple(slice(n, -n) for n in pad)]
    return mask


def grown(mask: NDArray[np.bool_], distance: float, spacing: ArrayLike) -> NDArray[np.bool_]:
    """A mask grown by ``distance`` millimetres, shrunk where it is negative; exact Euclidean distances."""
    result: NDArray[np.bool_]
    if distance >= 0:
        result = ndimage.distance_transform_edt(~mask, sampling=spacing) <= distance
    else:
        result = ndimage.distance_transform_edt(mask, sampling=spacing) > -distance
    return result


def largest_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest face-connected piece of a mask; the mask itself where it is empty."""
    pieces, count = ndimage.label(mask)
    if count < 2:
        return mask
    largest: NDArray[np.bool_] = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    return largest


def background(array: NDArray[np.float32]) -> float:
    """The value of most voxels on the faces of the volume."""
    faces = [np.take(array, end, axis).ravel() for axis in range(3) for end in (0, -1)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    return float(values[np.argmax(counts)])


def lifted(scan: Scan) -> tuple[Scan, float]:
    """A scan whose tissue is not negative, background 0, as bias correction and registration need it.

    A z-score took off a constant, so that the bias field no longer multiplies what is left: without its
    darkest tissue (0.1st percentile, so that the ringing of an interpolation counts for nothing) it does.

    Returns:
        The scan and what was added to its tissue, 0 where nothing had to be.
    """
    outside = background(scan.array)
    tissue = ndimage.binary_fill_holes(scan.array != outside)
    if not tissue.any():
        return scan, 0.0
    offset = max(0.0, -float(np.percentile(scan.array[tissue], 0.1)))
    if offset == 0:
        return scan, 0.0
    return scan.with_array(np.where(tissue, scan.array + offset, 0)), offset


def correct_bias(scan: Scan, mask: NDArray[np.bool_]) -> Scan:
    """N4 bias field correction (Tustison et al. 2010), fitted inside the mask.

    The field is smooth (splines 200 mm apart), so it is fitted at 2 mm and only then put on the scan's grid.
    Few voxels may be negative: see ``lifted``.
    """
    ants = import_ants()
    positive = scan.with_array(np.maximum(scan.array, 0))
    coarse, coarse_mask = positive.at(WORKING_MM), scan.with_array(mask).at(WORKING_MM)
    field = ants.n4_bias_field_correction(
        coarse.to_ants(),
        mask=coarse_mask.with_array(coarse_mask.array > 0.5).to_ants(),
        shrink_factor=2,
        convergence={"iters": list(N4_ITERATIONS), "tol": 1e-5},
        spline_param=200,
        return_bias_field=True,
    )
    gain = resample(coarse.with_array(field.numpy()), scan).array
    return scan.with_array(np.where(gain > 0.05, scan.array / np.maximum(gain, 0.05), scan.array))


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


def register_rigid(fixed: Scan, mask: NDArray[np.bool_], moving: Scan, path: Path) -> float:
    """Six degrees of freedom by mutual information inside a mask, written to ``path`` (``.mat``).

    Starts from the scanner's own alignment and from the centres of mass; the better end is kept.

    Args:
        fixed: what ``moving`` is brought to.
        mask: the brain, on the grid of ``fixed``: what lies around it may be there, or not, in either image.
        moving: of any contrast.
        path: where the transform goes.

    Returns:
        The mutual information (nats) of the two images in the mask at the end.
    """
    ants = import_ants()
    coarse = fixed.at(WORKING_MM)
    inside = fixed.with_array(mask).at(WORKING_MM).array > 0.5
    best = -np.inf
    with TemporaryDirectory() as folder:
        for name, start in (("scanner", "Identity"), ("centre", None)):
            found = ants.registration(
                coarse.with_array(coarse.array * inside).to_ants(),
                moving.at(WORKING_MM).to_ants(),
                "Rigid",
                mask=coarse.with_array(inside).to_ants(),
                mask_all_stages=True,
                outprefix=f"{folder}/{name}",
                initial_transform=start,
                aff_iterations=RIGID_ITERATIONS,
                aff_shrink_factors=(4, 2, 1),
                aff_smoothing_sigmas=(2, 1, 0),
            )
            information = mutual_information(coarse.array[inside], found["warpedmovout"].numpy()[inside])
            if information > best:
                best = information
                shutil.copyfile(found["fwdtransforms"][0], path)
    return best


def mutual_information(first: NDArray[Any], second: NDArray[Any], bins: int = 24) -> float:
    """Of two lists of intensities, in nats, from their joint histogram."""
    joint = np.histogram2d(first, second, bins)[0]
    joint /= joint.sum()
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    full = joint > 0
    return float((joint[full] * np.log(joint[full] / apart[full])).sum())


# === Whole heads ===


def looks_stripped(scan: Scan) -> bool:
    """Whether all that is not background is no larger than a brain can be."""
    tissue = scan.array != background(scan.array)
    return bool(np.count_nonzero(tissue) * np.prod(scan.spacing) <= LARGEST_BRAIN_MM3)


def head_brain_mask(head: Scan) -> NDArray[np.bool_]:
    """The brain of a whole head: the template's brain mask, brought to it by affine and SyN registration.

    The template is a brain without a head, so similarity counts only in the brain and 5 mm around it, where
    the template is as dark as CSF and skull are in T1w. Nothing outside (scalp, face, neck) then matters, but
    the start must be near: it is the best of a grid of positions below the top of the head.

    Args:
        head: T1w, its axes rightly labelled.

    Returns:
        ``(x, y, z)`` bool.
    """
    ants = import_ants()
    template = load_template(WORKING_MM)
    brain = Scan(template.t1, template.affine)
    region = brain.with_array(grown(template.brain_mask, 5, brain.spacing))
    coarse = head.at(WORKING_MM)
    with TemporaryDirectory() as folder:
        start = Path(folder) / "start.mat"
        _write_affine(_find_brain(coarse), start)
        affine = ants.registration(
            brain.to_ants(),
            coarse.to_ants(),
            "Affine",
            mask=region.to_ants(),
            mask_all_stages=True,
            initial_transform=str(start),
            outprefix=f"{folder}/affine",
        )["fwdtransforms"]
        rough = resample(region, coarse, [Path(path) for path in affine], invert=True).array > 0.5
        even = correct_bias(coarse, rough)
        found = ants.registration(
            brain.to_ants(),
            even.to_ants(),
            "SyNOnly",
            mask=region.to_ants(),
            initial_transform=affine,
            outprefix=f"{folder}/syn",
            grad_step=0.25,
            flow_sigma=5,  # stiffer than between brains: the scalp is near, and bright
            reg_iterations=HEAD_SYN_ITERATIONS,
            write_composite_transform=True,
        )
        mask = resample(brain.with_array(template.brain_mask), even, [Path(found["invtransforms"])])
    refined = even.with_array(_to_the_tissue(mask.array > 0.5, even))
    return resample(refined, head).array > 0.5


def _to_the_tissue(mask: NDArray[np.bool_], head: Scan) -> NDArray[np.bool_]:
    """A brain mask moved to where tissue ends in the dark of CSF and skull, up to 8 mm outwards.

    Tissue is brighter than half the inner brain's median and less than twice it. Opening by 2 mm cuts what
    leads through the skull; closing by 6 mm bridges sulci; 2 mm more takes in the CSF on the gyri.
    """
    spacing = head.spacing
    middle = np.median(head.array[grown(mask, -6, spacing)])
    tissue = (head.array > 0.5 * middle) & (head.array < 2 * middle) & grown(mask, 8, spacing)
    core = largest_piece(grown(tissue, -2, spacing))
    opened = tissue & grown(core, 2.9, spacing)
    room = np.pad(opened, 5)
    closed = grown(grown(room, 6, spacing), -4, spacing)
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(closed)
    return filled[5:-5, 5:-5, 5:-5]


def _find_brain(head: Scan) -> NDArray[np.float64]:
    """Template world to head world, ``(4, 4)``: a similarity transform, by mutual information at 6 mm.

    A grid of positions, nods and sizes; from the best three, Powell's method.
    """
    template = load_template(WORKING_MM)
    head = head.at(4)
    bright = head.array > 0.3 * np.percentile(head.array, 95)
    place = voxel_to_world(np.argwhere(largest_piece(bright)), head.affine)
    top = np.percentile(place[:, 2], 99.5)
    centre = np.median(place[place[:, 2] > top - 120], axis=0)
    region = grown(template.brain_mask, 5, (WORKING_MM,) * 3)
    picked = np.argwhere(region)
    picked = picked[(picked % 3 == 0).all(axis=1)]
    values = template.t1[tuple(picked.T)]
    points = voxel_to_world(picked, template.affine)
    brain_top, brain_centre = points[:, 2].max(), points.mean(axis=0)
    to_voxel = np.linalg.inv(head.affine)

    def move(pose: ArrayLike) -> NDArray[np.float64]:
        """Shift of the brain's centre (mm), turns about x, y, z (radians), log of the scale."""
        pose = np.asarray(pose)
        affine = np.eye(4)
        affine[:3, :3] = np.exp(pose[6]) * Rotation.from_euler("xyz", pose[3:6]).as_matrix()
        affine[:3, 3] = pose[:3] - affine[:3, :3] @ brain_centre
        return affine

    def cost(pose: ArrayLike) -> float:
        index = nib.affines.apply_affine(to_voxel @ move(pose), points)
        return -mutual_information(values, ndimage.map_coordinates(head.array, index.T, order=1))

    starts = [
        (
            centre[0],
            centre[1] + forth,
            top - 8 - down - scale * (brain_top - brain_centre[2]),
            nod,
            0,
            0,
            np.log(scale),
        )
        for scale in (0.84, 0.92, 1.0)  # MNI152 is larger than most brains
        for nod in np.deg2rad((-30, -15, 0, 15, 30))
        for down in range(-16, 49, 8)
        for forth in range(-24, 25, 12)
    ]
    nearest = sorted(starts, key=cost)[:3]
    bounds = [(None, None)] * 3 + [(-0.7, 0.7)] * 3 + [(np.log(0.75), np.log(1.15))]
    ends = [
        minimize(cost, start, method="Powell", bounds=bounds, options={"maxfev": 400}) for start in nearest
    ]
    return move(min(ends, key=lambda end: end.fun).x)


def _write_affine(affine: NDArray[np.float64], path: Path) -> None:
    """As an ITK transform, which speaks LPS."""
    ants = import_ants()
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    lps = flip @ affine @ flip
    parameters = [*lps[:3, :3].ravel(), *lps[:3, 3]]
    matrix = ants.new_ants_transform(dimension=3, transform_type="AffineTransform", parameters=parameters)
    ants.write_transform(matrix, str(path))
