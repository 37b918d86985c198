"""A synthetic cohort built from the MNI152 template: controls, and patients with subtle lesions.

Each subject is the template's tissue after a small affine and a smooth diffeomorphic residual warp (what a
registration leaves), with folds of its own, rendered as T1w and FLAIR with partial volume, texture, bias
field and Rician noise. Everything is a function of the seed and the subject's label.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import rankdata

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import read_json, write_json
from tfds_epilepsy.lesions import (
    KINDS,
    Implant,
    LesionSpec,
    implant_in_tissue,
    open_dataset,
    write_tables,
)
from tfds_epilepsy.progress import track
from tfds_epilepsy.tissue import Tissue
from tfds_epilepsy.volumes import TEMPLATE_SPACE, Subject, Template, load_template, normalise, write_nifti

# Signal of gm, wm, csf, white matter = 1 (3 T; FLAIR: cortex is brighter than white matter, fluid is dark).
SIGNAL = {
    "T1w": (0.66, 1.0, 0.22),
    "FLAIR": (1.24, 1.0, 0.25),
    "T2w": (1.35, 1.0, 2.4),
    "pet": (1.0, 0.4, 0.08),
}
# How much of the template's T1w detail within a tissue (deep nuclei, brain stem) each modality shows.
DETAIL = {"T1w": 1.0, "FLAIR": 0.7, "T2w": 0.7, "pet": 0.0}
PET_FWHM = 5.0  # mm
SNR = 40  # of white matter
MADE_BY = "epizoo phantom"  # in the description of a cohort's folder
WARP_GRID = 4  # mm between the nodes of a subject's warp


@dataclass(frozen=True)
class Conditions:
    """How a cohort and its scanner differ from the default: families of cohorts are drawn of these.

    Example:
        >>> PhantomConfig(conditions=Conditions(noise=2.0)).conditions.noise
        2.0

    Attributes:
        residual: factor of what registration leaves: warp, turn and shift.
        folds: factor of how much a subject's folds and its fluid are its own.
        ageing: factor of the widening of the ventricles with age.
        brain_error: how uneven the brain mask's border is, as a deviation of its level (.5).
        grey: per modality, factor of the contrast of grey with white matter; all 1 if empty.
        fluid: per modality, factor of the signal of fluid; all 1 if empty.
        spread: factor of the differences in contrast between scans.
        noise, fine, broad, bias: factors of the noise, of the texture at 3 and at 8 mm, of the bias field.
        blur: Gaussian sigma that the scanner adds, mm.
        unsteady: deviation of the logarithm of the noise and of the blur between scans.
    """

    residual: float = 1.0
    folds: float = 1.0
    ageing: float = 1.0
    brain_error: float = 0.0
    grey: tuple[float, ...] = ()
    fluid: tuple[float, ...] = ()
    spread: float = 1.0
    noise: float = 1.0
    fine: float = 1.0
    broad: float = 1.0
    bias: float = 1.0
    blur: float = 0.0
    unsteady: float = 0.0


@dataclass(frozen=True)
class PhantomConfig:
    """A cohort.

    Example:
        >>> PhantomConfig(n_train=10, modalities=("T1w",)).kinds
        ('fcd_2a', 'fcd_2b', 'fcd_1')

    Attributes:
        voxel_size: 1 or 2 mm.
        seed: another seed gives another cohort.
        n_train, n_validation_controls, n_validation_patients, n_test_controls, n_test_patients: how many
            subjects there are; those of ``train`` are controls.
        modalities: channels, keys of ``SIGNAL``.
        kinds: kinds of the lesions; the patients have them in turn.
        visible: give the patients lesions that a reader would see, in place of subtle ones.
        contrast: contrast of the lesions. At 0 they cannot be seen; 1 is the default difficulty, where the
            Mahalanobis distance of T1w and FLAIR smoothed at 4 mm, taken at each voxel by itself, has a mean
            voxel AUROC of 0.66 on the 20 test patients (``difficulty`` measures it).
        second_site: share of the subjects that come from another scanner, which has another contrast, noise
            and sharpness.
        conditions: how its people and its scanner differ from the default's.
    """

    voxel_size: int = 2
    seed: int = 0
    n_train: int = 40
    n_validation_controls: int = 8
    n_validation_patients: int = 8
    n_test_controls: int = 10
    n_test_patients: int = 20
    modalities: tuple[str, ...] = ("T1w", "FLAIR")
    kinds: tuple[str, ...] = ("fcd_2a", "fcd_2b", "fcd_1")
    visible: bool = False
    contrast: float = 1.0
    second_site: float = 0.0
    conditions: Conditions = Conditions()

    def __post_init__(self) -> None:
        problems = []
        for name in ("grey", "fluid"):
            factors = vars(self.conditions)[name]
            if factors and len(factors) != len(self.modalities):
                problems.append(
                    f"conditions: {len(factors)} factors {name} for {len(self.modalities)} modalities: one "
                    "each, or none."
                )
        unknown = [m for m in self.modalities if m not in SIGNAL]
        if unknown or not self.modalities:
            problems.append(f"the phantom has no {', '.join(unknown)}; it has {', '.join(SIGNAL)}.")
        if self.voxel_size not in (1, 2):
            problems.append(f"voxel size {self.voxel_size!r} mm: the phantom is made at 1 or 2 mm.")
        problems += [
            f"unknown lesion kind {k!r}; known are {', '.join(KINDS)}." for k in self.kinds if k not in KINDS
        ]
        if not self.kinds:
            problems.append(f"no lesion kind: choose among {', '.join(KINDS)}.")
        if self.contrast < 0 or not 0 <= self.second_site <= 1:
            problems.append(
                f"contrast {self.contrast}, second_site {self.second_site}: 0 or more, and a share of 0 to 1."
            )
        if problems:
            raise InputError(problems)


def cohort(config: PhantomConfig) -> dict[str, list[str]]:
    """Labels of the subjects by split: ``control...`` and ``patient...``.

    Example:
        >>> cohort(PhantomConfig(n_test_controls=1, n_test_patients=2))["test"]
        ['control049', 'patient009', 'patient010']
    """
    sizes = {
        "train": (config.n_train, 0),
        "validation": (config.n_validation_controls, config.n_validation_patients),
        "test": (config.n_test_controls, config.n_test_patients),
    }
    labels: dict[str, list[str]] = {}
    control = patient = 0
    for split, (controls, patients) in sizes.items():
        labels[split] = [f"control{control + i + 1:03d}" for i in range(controls)]
        labels[split] += [f"patient{patient + i + 1:03d}" for i in range(patients)]
        control, patient = control + controls, patient + patients
    return labels


def subject(config: PhantomConfig, label: str, scan: int = 0) -> Subject:
    """One subject, the same wherever and in whatever order it is made.

    Example:
        >>> one = subject(PhantomConfig(), "patient001")
        >>> one.image.shape, one.group, bool(one.lesion_mask.any())
        ((75, 94, 79, 2), 'patient', True)

    Args:
        config: of the cohort.
        label: ``control<number>`` or ``patient<number>``.
        scan: another number gives another scan of the same person: other noise, texture, bias and contrast.
    """
    return subject_and_lesion(config, label, scan)[0]


def subject_and_lesion(config: PhantomConfig, label: str, scan: int = 0) -> tuple[Subject, Implant | None]:
    """One subject and what was done to it, on the 1 mm grid; None for a control; arguments as ``subject``.

    Raises:
        InputError: a label that is not ``control<number>`` or ``patient<number>``.
    """
    _check(label)
    anatomy = _anatomy(config, label)
    person = _person(config, label)
    affine = load_template(1).affine
    implant = None
    if label.startswith("patient"):
        seed = [config.seed, zlib.crc32(label.encode())]
        spec = lesion(config, label)
        implant = implant_in_tissue(
            anatomy.tissue, affine, spec, seed, brain_mask=anatomy.brain > 0.5, depth=anatomy.depth
        )
    mask = _coarsen(anatomy.brain, config.voxel_size) > _border(config, label, anatomy.brain.shape)
    signals = [_signal(config, label, name, anatomy, implant, scan) for name in config.modalities]
    channels = [
        _acquire(config, label, name, signal, mask, scan)
        for name, signal in zip(config.modalities, signals, strict=True)
    ]
    lesion_mask = np.zeros(mask.shape, bool)
    if implant is not None:
        share = _coarsen(implant.mask.astype(np.float32), config.voxel_size) * mask
        lesion_mask = (share > 0) & (share >= min(0.5, share.max()))  # a voxel at least
    made = Subject(
        subject=label,
        group="control" if implant is None else "patient",
        image=np.stack(channels, axis=-1),
        brain_mask=mask,
        lesion_mask=lesion_mask,
        affine=load_template(config.voxel_size).affine,
        **person,
    )
    return made, implant


def lesion(config: PhantomConfig, label: str) -> LesionSpec:
    """The lesion that a patient has, for the strata of an evaluation.

    Example:
        >>> lesion(PhantomConfig(), "patient001").kind
        'fcd_2a'

    Raises:
        InputError: the label is a control's.
    """
    _check(label)
    if not label.startswith("patient"):
        raise InputError(f"sub-{label} is a control: it has no lesion.")
    number = int(label.removeprefix("patient"))
    rng = _generator(config, label, "lesion")
    kind = config.kinds[(number - 1) % len(config.kinds)]
    return LesionSpec.draw(rng, kind, visible=config.visible, contrast=config.contrast)


def lesion_table(config: PhantomConfig) -> list[dict[str, Any]]:
    """One row per patient: ``subject``, ``split``, ``site`` and the fields of its :class:`LesionSpec`."""
    return [
        {"subject": label, "split": split, "site": _person(config, label)["site"]}
        | asdict(lesion(config, label))
        for split, labels in cohort(config).items()
        for label in labels
        if label.startswith("patient")
    ]


def write_bids(config: PhantomConfig, out_dir: str | Path, *, progress: bool = True) -> Path:
    """Write the cohort as a template-space BIDS derivative, so that everything can be tried on files.

    It holds images, brain and lesion masks, ``participants.tsv`` (group, split, age, sex, site),
    ``dataset_description.json``, and ``lesions.tsv``, which says what lesion each patient has. Started again
    after a kill, it goes on where it was.

    Example:
        >>> nobody = dict.fromkeys(("n_validation_controls", "n_validation_patients", "n_test_controls"), 0)
        >>> one = PhantomConfig(n_train=0, n_test_patients=1, **nobody)
        >>> made = write_bids(one, folder / "phantom", progress=False)
        >>> sorted(path.name for path in made.glob("sub-*"))
        ['sub-patient001']

    Args:
        config: the cohort.
        out_dir: a folder that is new, empty, or holds a part of the same cohort.
        progress: show a bar.

    Raises:
        InputError: the folder holds something else, is another process's, or cannot be written to.
    """
    splits = {label: split for split, labels in cohort(config).items() for label in labels}
    people, found = [], []
    with open_dataset(out_dir, MADE_BY, asdict(config)) as out:
        for label, split in track(splits.items(), "phantom") if progress else splits.items():
            person = _person(config, label)
            group = "patient" if label.startswith("patient") else "control"
            people.append({"participant_id": f"sub-{label}", "group": group, "split": split, **person})
            folder = out / f"sub-{label}" / "anat"
            name = f"sub-{label}_space-{TEMPLATE_SPACE}"
            record = folder / f"{name}_desc-brain_mask.json"  # written last: the subject is whole
            if not record.exists():
                made, implant = subject_and_lesion(config, label)
                for channel, modality in enumerate(config.modalities):
                    content = {"SkullStripped": True, "Normalisation": {"method": "unit"}}
                    write_json(folder / f"{name}_{modality}.json", content)
                    write_nifti(folder / f"{name}_{modality}.nii.gz", made.image[..., channel], made.affine)
                if implant is not None:
                    lesion_file = folder / f"{name}_label-lesion_mask.nii.gz"
                    write_nifti(lesion_file, made.lesion_mask, made.affine, dtype=np.uint8)
                write_nifti(
                    folder / f"{name}_desc-brain_mask.nii.gz", made.brain_mask, made.affine, dtype=np.uint8
                )
                write_json(record, {"Type": "Brain", "Lesion": None if implant is None else implant.row()})
            row = json.loads(record.read_text())["Lesion"]
            if row is not None:
                found.append({"participant_id": f"sub-{label}", **row})
        write_tables(out, {"lesions.tsv": found, "participants.tsv": people})
    return out


def seed_of(folder: str | Path) -> int | None:
    """The seed of the cohort that ``write_bids`` wrote in a folder; None for any other data."""
    try:
        maker = read_json(Path(folder) / "dataset_description.json")["GeneratedBy"][0]
        return int(maker["Parameters"]["seed"]) if maker["Name"] == MADE_BY else None
    except (InputError, KeyError, IndexError, TypeError, ValueError):
        return None


def difficulty(config: PhantomConfig, fwhm_mm: Sequence[float] = (0, 4, 8)) -> dict[float, float]:
    """How well the simplest normative method does; the cohort is meant to be hard for it.

    The method is the Mahalanobis distance of smoothed intensities at each voxel by itself, fitted on the
    training controls.

    Args:
        config: the cohort; two training controls and one test patient at least.
        fwhm_mm: widths of the Gaussian smoothing.

    Returns:
        Width -> mean over the test patients of the voxel AUROC inside the brain mask.
    """
    labels = cohort(config)
    patients = [label for label in labels["test"] if label.startswith("patient")]
    sums: dict[float, list[NDArray[np.float64]]] = {}
    for label in labels["train"]:
        control = subject(config, label)
        for width in fwhm_mm:
            x = _smooth(control, width).astype(np.float64)
            moments = sums.setdefault(width, [np.zeros(x.shape), np.zeros((*x.shape, x.shape[-1]))])
            moments[0] += x
            moments[1] += x[..., :, None] * x[..., None, :]
    n = len(labels["train"])
    fitted = {}
    for width, (first, second) in sums.items():
        mean = first / n
        covariance = (second - n * mean[..., :, None] * mean[..., None, :]) / (n - 1)
        fitted[width] = mean, np.linalg.inv(covariance + 1e-4 * np.eye(mean.shape[-1]))
    areas: dict[float, list[float]] = {width: [] for width in fwhm_mm}
    for label in patients:
        patient = subject(config, label)
        inside = patient.brain_mask
        for width, (mean, precision) in fitted.items():
            off = (_smooth(patient, width) - mean)[inside]
            distance = np.einsum("vi,vij,vj->v", off, precision[inside], off)
            areas[width].append(_auroc(distance, patient.lesion_mask[inside]))
    return {width: float(np.mean(values)) for width, values in areas.items()}


def displacement(velocity: NDArray[np.float32], squarings: int = 6) -> NDArray[np.float32]:
    """The displacement ``(3, x, y, z)`` in voxels of a stationary velocity field: its exponential.

    Scaling and squaring (Arsigny et al. 2006, A log-Euclidean framework for statistics on diffeomorphisms).

    Args:
        velocity: ``(3, x, y, z)`` in voxels.
        squarings: the flow is composed of 2^squarings small steps.
    """
    grid = np.indices(velocity.shape[1:], dtype=np.float32)
    field = velocity / np.float32(2**squarings)
    for _ in range(squarings):
        moved = [ndimage.map_coordinates(f, grid + field, order=1, mode="nearest") for f in field]
        field = field + np.stack(moved)
    return field


def random_field(rng: np.random.Generator, shape: Sequence[int], spacing: float) -> NDArray[np.float32]:
    """A smooth Gaussian random field of mean 0 and deviation 1: cubic B-splines on random control points.

    Args:
        rng: draws the control points.
        shape: ``(x, y, z)``.
        spacing: of the control points, in voxels.
    """
    bases = [_spline_basis(n, spacing) for n in shape]
    controls = [int(start[-1]) + 4 for start, _, _ in bases]
    scale = np.prod([power for _, _, power in bases]) ** -0.5
    field = (scale * rng.normal(size=controls)).astype(np.float32)
    (start_x, x, _), (start_y, y, _), (start_z, z, _) = bases
    return _splines(field, start_x, x, start_y, y, start_z, z)


@lru_cache(maxsize=64)
def _spline_basis(n: int, spacing: float) -> tuple[NDArray[np.int64], NDArray[np.float32], float]:
    """First control point ``(n,)`` and four weights ``(n, 4)`` at n voxels, and the weights' mean power."""
    at = np.arange(n) / spacing
    start = np.floor(at).astype(np.int64)
    distance = np.abs((at - start)[:, None] + 1 - np.arange(4))
    near, far = 2 / 3 - distance**2 + distance**3 / 2, np.maximum(2 - distance, 0) ** 3 / 6
    weights = np.where(distance < 1, near, far)
    return start, weights.astype(np.float32), float((weights**2).sum(1).mean())


@numba.njit(cache=True)
def _splines(
    controls: NDArray[np.float32],
    start_x: NDArray[np.int64],
    x: NDArray[np.float32],
    start_y: NDArray[np.int64],
    y: NDArray[np.float32],
    start_z: NDArray[np.int64],
    z: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Tensor-product splines, in loops of fixed order: the same bytes with any number of threads."""
    out = np.empty((len(start_x), len(start_y), len(start_z)), np.float32)
    plane = np.empty(controls.shape[1:], np.float32)
    row = np.empty(controls.shape[2], np.float32)
    for i in range(out.shape[0]):
        plane[:] = 0
        for a in range(4):
            plane += x[i, a] * controls[start_x[i] + a]
        for j in range(out.shape[1]):
            row[:] = 0
            for b in range(4):
                row += y[j, b] * plane[start_y[j] + b]
            for k in range(out.shape[2]):
                first = start_z[k]
                out[i, j, k] = (
                    z[k, 0] * row[first]
                    + z[k, 1] * row[first + 1]
                    + z[k, 2] * row[first + 2]
                    + z[k, 3] * row[first + 3]
                )
    return out


def _check(label: str) -> None:
    group, number = label[:7], label[7:]
    if group not in ("control", "patient") or not number.isdigit() or int(number) == 0:
        raise InputError(f"no phantom subject {label!r}: labels are control001, ..., patient001, ...")


def _generator(config: PhantomConfig, label: str, what: str, scan: int = 0) -> np.random.Generator:
    """Another stream for each purpose, so that a lesion does not change the anatomy around it."""
    again = [scan] if scan else []
    return np.random.default_rng([config.seed, zlib.crc32(label.encode()), zlib.crc32(what.encode()), *again])


def _person(config: PhantomConfig, label: str) -> dict[str, Any]:
    rng = _generator(config, label, "person")
    age, sex = float(np.round(rng.uniform(20, 60))), "fm"[rng.integers(2)]
    return {"age": age, "sex": sex, "site": "B" if rng.random() < config.second_site else "A"}


@dataclass(frozen=True)
class _Anatomy:
    """A healthy brain at 1 mm: ``tissue`` ``(3, x, y, z)`` and three maps ``(x, y, z)``.

    ``brain`` is a soft mask, ``depth`` the distance to its surface in mm, ``detail`` how far the signal of
    grey and white matter goes from the one to the other (deep nuclei, brain stem; 1: all the way).
    """

    tissue: Tissue
    brain: NDArray[np.float32]
    depth: NDArray[np.float32]
    detail: NDArray[np.float32]


def _border(config: PhantomConfig, label: str, shape: Sequence[int]) -> Any:
    """The level of the soft brain mask at which a subject's brain ends; uneven where the mask has errors."""
    error = config.conditions.brain_error
    if not error:
        return 0.5
    rng = _generator(config, label, "brain")
    coarse = [-(-n // config.voxel_size) for n in shape]
    field = error * random_field(rng, coarse, 12 / config.voxel_size) + error * rng.normal()
    return np.clip(0.5 + field, 0.05, 0.95)


def _anatomy(config: PhantomConfig, label: str) -> _Anatomy:
    rng = _generator(config, label, "anatomy")
    conditions = config.conditions
    maps, near = _atlas()
    shape = near.shape
    # What a good registration leaves: 1 to 3 mm, smooth, invertible.
    small = tuple(-(-n // WARP_GRID) + 2 for n in shape)
    velocity = np.stack(
        [
            0.9 / WARP_GRID * random_field(rng, small, 20 / WARP_GRID)
            + 0.5 / WARP_GRID * random_field(rng, small, 9 / WARP_GRID)
            for _ in range(3)
        ]
    ) * np.float32(conditions.residual)
    field = np.moveaxis(displacement(velocity) * WARP_GRID, 0, -1)
    turn = np.eye(3) + conditions.residual * rng.normal(scale=0.006, size=(3, 3))
    shift = conditions.residual * rng.normal(scale=0.5, size=3)
    # The template's maps are averages: sharpened, with smooth noise in their odds, they are one's own.
    white = 0.8 * conditions.folds * random_field(rng, shape, 3.0)
    fluid = 0.6 + 0.8 * conditions.folds * random_field(rng, shape, 3.5)
    ageing = 0.02 * conditions.ageing * (_person(config, label)["age"] - 40)
    tissue, brain, depth, detail = _pull(
        maps, near, np.ascontiguousarray(field), turn, shift, white, fluid, ageing
    )
    return _Anatomy(tissue, brain, depth, detail)


@lru_cache(maxsize=1)
def _atlas() -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Maps ``(x, y, z, 6)`` of the template at 1 mm: gm, wm, csf, brain, depth, detail; and where to look."""
    template, coarse = load_template(1), load_template(2)
    brain = template.brain_mask.astype(np.float32)
    depth = ndimage.distance_transform_edt(coarse.brain_mask, sampling=2).astype(np.float32)
    depth = ndimage.zoom(depth, np.array(brain.shape) / depth.shape, order=1)
    classes = [np.median(template.t1[np.asarray(p) > 0.95]) for p in (template.gm, template.wm, template.csf)]
    solid = (template.gm + template.wm > 0.9).astype(np.float32)
    mixed = sum(float(c) * p for c, p in zip(classes, (template.gm, template.wm, template.csf), strict=True))
    detail = (template.t1 - mixed) / float(classes[1] - classes[0]) * solid
    detail = ndimage.gaussian_filter(detail, 1.5) / np.maximum(ndimage.gaussian_filter(solid, 1.5), 0.2)
    maps = np.stack([*_without_rim(template), brain, depth, detail], axis=-1)
    near = ndimage.uniform_filter(brain, 17) > 0
    return np.ascontiguousarray(maps, dtype=np.float32), near


def _without_rim(template: Template) -> Tissue:
    """The template's tissue without the film of false grey matter where ventricles and white matter mix."""
    gm, wm, csf = (np.array(p) for p in (template.gm, template.wm, template.csf))
    low = np.linalg.inv(template.affine) @ [-45, -60, -25, 1]
    high = np.linalg.inv(template.affine) @ [45, 40, 40, 1]
    box = tuple(slice(int(a), int(b)) for a, b in zip(low[:3], high[:3], strict=True))
    components, _ = ndimage.label(csf[box] > 0.5)
    ventricles = components == np.bincount(components.ravel())[1:].argmax() + 1
    near = ndimage.binary_dilation(ventricles, iterations=5)
    film = np.where(near, gm[box] - np.minimum(gm[box], ndimage.grey_opening(gm[box], size=5)), 0)
    white = np.clip((template.t1[box] - 0.28) / (0.87 - 0.28), 0, 1)  # T1w of csf and wm in the template
    gm[box] -= film
    wm[box] += white * film
    csf[box] += (1 - white) * film
    return np.stack([gm, wm, csf])


@numba.njit(cache=True)
def _pull(
    maps: NDArray[np.float32],
    near: NDArray[np.bool_],
    field: NDArray[np.float32],
    turn: NDArray[np.float64],
    shift: NDArray[np.float64],
    white: NDArray[np.float32],
    fluid: NDArray[np.float32],
    ageing: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Pull the template through a subject's warp, and turn it into the tissue of that subject's own folds.

    ``maps`` (x, y, z, 6) of the template, ``field`` (i, j, k, 3) mm of displacement on every ``WARP_GRID``-th
    voxel, ``turn`` (3, 3) and ``shift`` (3,) about the centre, ``white`` and ``fluid`` (x, y, z) log odds.
    """
    nx, ny, nz, _ = maps.shape
    tissue = np.zeros((3, nx, ny, nz), np.float32)
    brain = np.zeros((nx, ny, nz), np.float32)
    depth = np.zeros((nx, ny, nz), np.float32)
    detail = np.zeros((nx, ny, nz), np.float32)
    middle = np.array([(nx - 1) / 2, (ny - 1) / 2, (nz - 1) / 2])
    value = np.empty(6)
    at = np.empty(3)
    for i in range(nx):
        for j in range(ny):
            for k in range(nz):
                if not near[i, j, k]:
                    continue
                gi, gj, gk = i // WARP_GRID, j // WARP_GRID, k // WARP_GRID
                fi, fj, fk = i / WARP_GRID - gi, j / WARP_GRID - gj, k / WARP_GRID - gk
                for d in range(3):
                    at[d] = (
                        middle[d]
                        + shift[d]
                        + turn[d, 0] * (i - middle[0])
                        + turn[d, 1] * (j - middle[1])
                        + turn[d, 2] * (k - middle[2])
                    )
                for c in range(8):
                    a, b, e = c >> 2, (c >> 1) & 1, c & 1
                    w = (fi if a else 1 - fi) * (fj if b else 1 - fj) * (fk if e else 1 - fk)
                    for d in range(3):
                        at[d] += w * field[gi + a, gj + b, gk + e, d]
                x, y, z = int(np.floor(at[0])), int(np.floor(at[1])), int(np.floor(at[2]))
                if x < 0 or y < 0 or z < 0 or x >= nx - 1 or y >= ny - 1 or z >= nz - 1:
                    continue
                fi, fj, fk = at[0] - x, at[1] - y, at[2] - z
                value[:] = 0
                for c in range(8):
                    a, b, e = c >> 2, (c >> 1) & 1, c & 1
                    w = (fi if a else 1 - fi) * (fj if b else 1 - fj) * (fk if e else 1 - fk)
                    for d in range(6):
                        value[d] += w * maps[x + a, y + b, z + e, d]
                if value[3] <= 0:
                    continue
                central = min(max((value[4] - 20) / 10, 0), 1)
                grey = max(value[0], 1e-3) ** 3
                bright = max(value[1], 1e-3) ** 3 * np.exp(white[i, j, k])
                dark = max(value[2], 1e-3) ** 3 * np.exp(fluid[i, j, k] + ageing * central)
                total = (grey + bright + dark) / value[3]
                tissue[0, i, j, k] = grey / total
                tissue[1, i, j, k] = bright / total
                tissue[2, i, j, k] = dark / total
                brain[i, j, k] = value[3]
                depth[i, j, k] = value[4]
                detail[i, j, k] = value[5]
    return tissue, brain, depth, detail


def _signal(
    config: PhantomConfig,
    label: str,
    modality: str,
    anatomy: _Anatomy,
    implant: Implant | None,
    scan: int = 0,
) -> NDArray[np.float32]:
    """The signal of a modality at 1 mm, without texture, bias and noise."""
    rng = _generator(config, label, f"contrast {modality}", scan)
    conditions, place = config.conditions, config.modalities.index(modality)
    spread = 1 + conditions.spread * rng.normal(scale=(0.02, 0.01, 0.05))
    grey, white, fluid = (float(s) for s in np.array(SIGNAL[modality]) * spread)
    if conditions.grey:
        grey = white + conditions.grey[place] * (grey - white)
    if conditions.fluid:
        fluid *= conditions.fluid[place]
    if _person(config, label)["site"] == "B":
        grey, fluid = grey + 0.35 * (white - grey), 1.3 * fluid
    tissue = anatomy.tissue if implant is None else implant.tissue
    signal: NDArray[np.float32] = grey * tissue[0] + white * tissue[1] + fluid * tissue[2]
    signal += DETAIL[modality] * (white - grey) * anatomy.detail * (tissue[0] + tissue[1])
    if implant is not None:
        signal[implant.box] *= implant.gain(modality, grey / white)
    return signal


def _acquire(
    config: PhantomConfig,
    label: str,
    modality: str,
    signal: NDArray[np.float32],
    mask: NDArray[np.bool_],
    scan: int = 0,
) -> NDArray[np.float32]:
    """What the scanner makes of a signal, normalised: resolution, texture, bias field, Rician noise."""
    rng = _generator(config, label, f"scan {modality}", scan)
    second = _person(config, label)["site"] == "B"
    conditions = config.conditions
    worse = np.exp(conditions.unsteady * _generator(config, label, "quality", scan).normal(size=2))
    blur = PET_FWHM / 2.355 if modality == "pet" else 0.9 if second else 0.0
    if conditions.blur:
        blur = float(np.hypot(blur, worse[0] * conditions.blur))
    if blur:
        signal = ndimage.gaussian_filter(signal, blur)
    image, size = _coarsen(signal, config.voxel_size), config.voxel_size
    fine, broad = (random_field(rng, image.shape, mm / size) for mm in (3, 8))
    bias = conditions.bias * float(rng.uniform(0.01, 0.03)) * random_field(rng, image.shape, 60 / size)
    fine, broad = 0.012 * conditions.fine * fine, 0.02 * conditions.broad * broad
    image = image * (1 + fine + broad) * (1 + bias)
    sigma = conditions.noise * float(worse[1]) * (1.5 if second else 1.0) / SNR
    real, imaginary = rng.normal(scale=sigma, size=(2, *image.shape)).astype(np.float32)
    return normalise(np.hypot(image + real, imaginary), mask)[0]


def _coarsen(volume: NDArray[np.float32], voxel_size: int) -> NDArray[np.float32]:
    """From the 1 mm grid to the output grid, whose voxel centres lie on every second 1 mm voxel."""
    if voxel_size == 1:
        return volume
    for axis in range(3):
        shape = list(volume.shape)
        shape[axis] = (shape[axis] + 1) // 2
        halved = np.empty(shape, np.float32)
        before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        _halve(
            np.ascontiguousarray(volume, np.float32).reshape(before, -1, after),
            halved.reshape(before, -1, after),
        )
        volume = halved
    return volume


@numba.njit(cache=True)
def _halve(volume: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Every second entry of the second axis, mixed with a quarter of each neighbour."""
    blocks, n, width = volume.shape
    half, quarter = np.float32(0.5), np.float32(0.25)
    for block in range(blocks):
        for i in range(out.shape[1]):
            low, middle, high = max(2 * i - 1, 0), 2 * i, min(2 * i + 1, n - 1)
            for k in range(width):
                ends = volume[block, low, k] + volume[block, high, k]
                out[block, i, k] = half * volume[block, middle, k] + quarter * ends


def _smooth(subject: Subject, fwhm_mm: float) -> NDArray[np.float32]:
    """The image ``(x, y, z, m)`` under a Gaussian that looks inside the brain mask alone."""
    if fwhm_mm == 0:
        return subject.image
    sigma = fwhm_mm / 2.355 / float(abs(subject.affine[0, 0]))
    weight = ndimage.gaussian_filter(subject.brain_mask.astype(np.float32), sigma)
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(subject.image, (sigma, sigma, sigma, 0))
    smooth = smooth / np.maximum(weight, 1e-3)[..., None] * subject.brain_mask[..., None]
    return smooth


def _auroc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    ranks, hits = rankdata(scores), int(positive.sum())
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * (len(scores) - hits)))
