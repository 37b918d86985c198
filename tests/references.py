"""What several tests compare with: plain loops, from the definition."""

import numpy as np


def mean_around(values, mask, zooms, at, fwhm):
    """Of the voxels in the mask, by a Gaussian in millimetres: voxel by voxel."""
    offsets = (np.argwhere(mask) - at) * zooms
    weights = np.exp(-0.5 * (offsets**2).sum(1) / (fwhm / np.sqrt(8 * np.log(2))) ** 2)
    return (weights * values[mask]).sum() / weights.sum()
