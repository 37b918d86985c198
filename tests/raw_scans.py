"""Scans in raw intensities, and the subjects that they are normalised to."""

import numpy as np

from tfds_epilepsy.volumes import Subject, normalise

SHAPE = (14, 17, 9)
AFFINE = np.diag([2.0, 2, 3, 1])
CONTROLS = 6


def raw_volume(shape, channels, seed=0):
    """Raw intensities and a brain mask with a border around it."""
    rng = np.random.default_rng(seed)
    volume = (800 * rng.random((*shape, channels)) + 40).astype(np.float32)
    mask = np.zeros(shape, bool)
    mask[1:-1, 1:-1, 1:-1] = True
    return volume, mask


def normalised(volume, mask):
    return np.stack([normalise(volume[..., c], mask)[0] for c in range(volume.shape[-1])], -1)


def scanned(name, channels, group="control", seed=0):
    """A record, and the raw volume that it was normalised from."""
    raw, mask = raw_volume(SHAPE, channels, seed)
    mask[:3, :5] = False
    mask[:, :, 4] = False  # a slice without a voxel
    return Subject(name, group, normalised(raw, mask), mask, np.zeros(SHAPE, bool), AFFINE), raw


def controls(channels):
    return [scanned(f"c{i}", channels, seed=i)[0] for i in range(CONTROLS)]
