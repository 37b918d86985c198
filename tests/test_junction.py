"""The width of the junction: a straight ramp, a loop over the voxels, and what must not change it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, ndimage, stats

from epizoo.maps import junction
from epizoo.maps.junction import EDGE_FWHM, WINDOW_FWHM, junction_width, tissue_weights
from tests.people import from_template, person
from tests.references import mean_around

ZOOMS = np.array([0.5, 2.0, 3.0])
AFFINE = np.diag([*ZOOMS, 1.0])
SIGMA = np.sqrt(8 * np.log(2))  # FWHM over standard deviation


@pytest.fixture
def slabs(monkeypatch):
    """Grey matter at the low end of x, white at the high end, whatever the template has there."""

    def weights(shape, affine):
        x = np.arange(shape[0])[:, None, None] * np.ones(shape)
        return np.stack([x < 10, x >= shape[0] - 10]).astype(np.float32)

    monkeypatch.setattr(junction, "tissue_weights", weights)


def ramps(width, centres=(40.0,), size=(160, 7, 5), grey=0.4, white=0.9):
    """From grey to white along x over ``width`` mm about each of the centres (and back after each)."""
    x = np.arange(size[0]) * ZOOMS[0]
    u = sum((-1) ** k * np.clip((x - c) / width + 0.5, 0, 1) for k, c in enumerate(centres))
    return np.broadcast_to((grey + (white - grey) * u)[:, None, None], size).astype(np.float32)


def width_at(image, x_mm):
    mask = np.ones(image.shape, bool)
    return float(np.exp(junction_width(image, mask, AFFINE)[round(x_mm / ZOOMS[0]), 3, 2]))


@pytest.mark.parametrize("width", [3.0, 5.0, 8.0])
def test_a_straight_ramp_is_as_wide_as_the_integrals_along_it_say(slabs, width):
    x = np.linspace(-15, 15, 10001)  # mm from the middle
    u = np.clip(x / width + 0.5, 0, 1)
    slope = np.gradient(ndimage.gaussian_filter1d(u, EDGE_FWHM / SIGMA / (x[1] - x[0])), x)
    window = stats.norm(0, WINDOW_FWHM / SIGMA).pdf(x)
    volume, area = (window * stats.norm(0.5, s).pdf(u) for s in (1 / 5, 1 / 3))
    expected = (integrate.trapezoid(volume, x) + 0.02) / (integrate.trapezoid(area * slope, x) + 0.02 / 4.0)
    assert width_at(ramps(width), 40.0) == pytest.approx(expected, rel=0.03)
    assert expected == pytest.approx(width, rel=0.5)  # what is near grey or white counts a little too


def test_more_junction_is_no_wider_and_a_blurred_one_is(slabs):
    one, three = ramps(3.0), ramps(3.0, centres=(32.0, 40.0, 48.0))
    assert width_at(three, 40.0) == pytest.approx(width_at(one, 40.0), rel=0.12)
    blurred = ndimage.gaussian_filter1d(one, 2.5 / ZOOMS[0], axis=0)
    assert width_at(blurred, 40.0) > 1.5 * width_at(one, 40.0)


def test_in_csf_it_is_the_usual_one(slabs):
    image = ramps(4.0, size=(240, 7, 5))
    image[110:220] = 0.05
    assert width_at(image, 82.0) == pytest.approx(4.0, rel=0.01)


def test_it_is_that_of_a_loop_over_the_voxels_of_an_anisotropic_grid():
    one, zooms = person(modalities=1), np.array([1.5, 2.0, 3.0])
    t1, mask = one.image[..., 0], one.brain_mask
    grey, white = (
        (t1[mask] * (w[mask] + 1e-6)).sum() / (w[mask] + 1e-6).sum()
        for w in tissue_weights(t1.shape, tuple(one.affine.ravel()))
    )
    blurred = {tuple(at): mean_around(t1, mask, zooms, at, EDGE_FWHM) for at in np.argwhere(mask)}
    measures = np.zeros((2, *t1.shape))
    for x, y, z in np.argwhere(mask):
        here = blurred[x, y, z]
        steps = [
            blurred.get((x + i, y + j, z + k), here) - blurred.get((x - i, y - j, z - k), here)
            for i, j, k in np.eye(3, dtype=int)
        ]
        slope = np.linalg.norm(steps / (2 * zooms)) / abs(white - grey)
        off = (t1[x, y, z] - grey) / (white - grey) - 0.5
        narrow, wide = (np.exp(-0.5 * (off / s) ** 2) / (s * np.sqrt(2 * np.pi)) for s in (1 / 5, 1 / 3))
        measures[:, x, y, z] = narrow, wide * slope
    found = junction_width(t1, mask, one.affine)
    for at in np.argwhere(mask)[::7]:
        volume, area = (mean_around(m, mask, zooms, at, WINDOW_FWHM) for m in measures)
        assert found[tuple(at)] == pytest.approx(np.log((volume + 0.02) / (area + 0.005)), abs=2e-2)
    assert (found[~mask] == 0).all()


@settings(max_examples=10, deadline=None)
@given(gain=st.floats(0.3, 2.0), offset=st.floats(-0.2, 0.2), flip=st.booleans())
def test_brightness_contrast_and_its_direction_do_not_matter(gain, offset, flip):
    one = from_template(modalities=1)
    t1, mask = one.image[..., 0].astype(np.float64), one.brain_mask
    seen = np.where(mask, offset + (-gain if flip else gain) * t1, 0)
    np.testing.assert_allclose(
        junction_width(seen, mask, one.affine), junction_width(t1, mask, one.affine), atol=2e-3
    )


def test_without_contrast_it_is_still_a_number():
    one = from_template(modalities=1)
    assert np.isfinite(junction_width(np.full(one.brain_mask.shape, 0.5), one.brain_mask, one.affine)).all()
