"""Heads around the template's brain, as T1w shows them, and how they lie in the scanner."""

import nibabel as nib
import numpy as np
from scipy import ndimage

from tfds_epilepsy.registration import Scan, resample
from tfds_epilepsy.volumes import load_template


def whole_head(move: np.ndarray, spacing: tuple[float, float, float], seed: int = 0) -> tuple[Scan, Scan]:
    """A T1w of brain, CSF, skull, scalp, eyes, face and neck, with a bias field and Rician noise.

    Skull and scalp vary in thickness (3 to 10 mm), muscle and bone in the face and neck by chance.

    Args:
        move: ``(4, 4)`` from the template's world to the scanner's.
        spacing: of the scan, mm.
        seed: of what varies.

    Returns:
        The scan and its true brain mask (1 in the brain).
    """
    template, rng = load_template(2), np.random.default_rng(seed)
    room = ((14, 14), (14, 18), (60, 14))
    brain = np.pad(template.t1 * template.brain_mask, room)
    mask = np.pad(template.brain_mask, room)
    affine = template.affine.copy()
    affine[:3, 3] -= 2 * np.array([before for before, _ in room])
    x, y, z = np.moveaxis(nib.affines.apply_affine(affine, np.moveaxis(np.indices(mask.shape), 0, -1)), -1, 0)

    def smooth(sigma: float) -> np.ndarray:
        field = ndimage.gaussian_filter(rng.normal(size=mask.shape), sigma)
        return field / field.std()

    uneven, bone = smooth(8), smooth(4) > 1.5
    distance = ndimage.distance_transform_edt(~mask, sampling=2)
    skull = 2 + np.clip(6 + 1.5 * uneven, 3, 9)
    scalp = skull + np.clip(6 + 2 * uneven, 3, 10)
    face = (x / 62) ** 2 + ((y - 55) / 45) ** 2 + ((z + 75) / 70) ** 2 < 1
    neck = ((x / 55) ** 2 + ((y + 35) / 60) ** 2 < 1) & (z < -55)
    body = face | neck
    head = np.where(body, np.where(bone, 0.15, 0.55 + 0.1 * uneven.clip(-2, 2)), 0)
    head[ndimage.binary_dilation(body, iterations=3) & ~body] = 0.8
    head[(distance > skull) & (distance <= scalp)] = 0.85
    head[(distance > 2) & (distance <= skull)] = 0.08
    head[(distance > 0) & (distance <= 2)] = 0.22
    for side in (-32, 32):
        head[((x - side) ** 2 + (y - 70) ** 2 + (z + 38) ** 2 < 12**2) & (distance > 4)] = 0.2
    head[mask] = brain[mask]
    head *= 1000 * np.exp(0.3 * x / 90 - 0.25 * z / 100)

    shape = np.ceil(np.array(mask.shape) * 2 / spacing).astype(int)
    grid = np.diag([*spacing, 1.0])
    centre = nib.affines.apply_affine(move @ affine, (np.array(mask.shape) - 1) / 2)
    grid[:3, 3] = centre - np.array(spacing) * (shape - 1) / 2
    target = Scan(np.zeros(shape, np.float32), grid)
    seen = resample(Scan(head.astype(np.float32), move @ affine).band_limited(min(spacing)), target)
    noisy = np.hypot(seen.array + rng.normal(0, 15, shape), rng.normal(0, 15, shape))
    inside = resample(Scan(mask.astype(np.float32), move @ affine), target)
    return seen.with_array(noisy), inside.with_array(inside.array > 0.5)


def turned(degrees: float, shift=(0.0, 0.0, 0.0)) -> np.ndarray:
    """A rotation about z then x, and a shift in millimetres."""
    a = np.deg2rad(degrees)
    z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    affine = np.eye(4)
    affine[:3, :3] = z @ x
    affine[:3, 3] = shift
    return affine
