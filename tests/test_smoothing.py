"""Smoothing inside a mask, against scipy."""

import numpy as np
import pytest
from scipy import ndimage

from epizoo.maps.smoothing import smooth


@pytest.mark.parametrize("fwhm", [0.5, 4.0, 60.0])  # the last wider than the volume
def test_smoothing_is_that_of_scipy_inside_the_mask(fwhm):
    rng = np.random.default_rng(0)
    volume, mask = rng.random((13, 9, 7, 2)), rng.random((13, 9, 7)) < 0.6
    affine = np.diag([1.0, -2.0, 3.0, 1.0])
    sigma = fwhm / np.sqrt(8 * np.log(2)) / np.array([1.0, 2.0, 3.0])

    def blur(values):
        return ndimage.gaussian_filter(values * mask, sigma, mode="constant")

    expected = np.stack([blur(volume[..., c])[mask] / blur(mask.astype(float))[mask] for c in range(2)], -1)
    found = smooth(volume, mask, affine, fwhm)
    np.testing.assert_allclose(found[mask], expected, rtol=1e-5)
    assert not found[~mask].any()
    np.testing.assert_array_equal(smooth(volume[..., 0], mask, affine, fwhm), found[..., 0])
