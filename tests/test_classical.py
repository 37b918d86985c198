"""The classical baselines, on volumes made from the template."""

from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console
from scipy import ndimage

from epizoo.detection import create_detector, fit_detector
from epizoo.maps.junction_extension import JunctionExtension
from epizoo.maps.tissue import tissue_probabilities
from tests.people import INTENSITY, fit, from_template
from tfds_epilepsy.errors import InputError


def test_junction_is_the_share_of_voxels_between_grey_and_white():
    person = from_template()
    image = person.image.copy()
    image[20:28, 40:48, :, 0] = 0.65  # between .5 and .8
    image[40:48, 40:48, :, 0] = 0.82
    junction = JunctionExtension()(replace(person, image=image))[..., 0]
    assert junction[22:26, 42:46, 1:3].min() > 0.99
    assert junction[42:46, 42:46, 1:3].max() < 0.01
    assert (junction[~person.brain_mask] == 0).all()


def test_extension_is_high_where_grey_reaches_into_white():
    person = from_template()
    before = JunctionExtension()(person)[..., 1]
    voxel = tuple(np.argwhere(ndimage.binary_erosion(tissue_probabilities(person)[..., 1] > 0.9))[0])
    image = person.image.copy()
    image[tuple(slice(v - 1, v + 2) for v in voxel)] = INTENSITY["t1"][0], INTENSITY["flair"][0]
    after = JunctionExtension()(replace(person, image=image))[..., 1]
    assert after[voxel] > before[voxel] + 0.2


@pytest.mark.parametrize("name", ["zscore", "flair", "junction_extension", "spm", "signs"])
def test_a_baseline_sees_a_bright_ball_of_grey_in_white_matter(tmp_path, name):
    person = from_template(50, age=35)
    white = ndimage.binary_erosion(tissue_probabilities(person)[..., 1] > 0.9, iterations=1)
    voxel = np.argwhere(white)[len(np.argwhere(white)) // 2]
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in white.shape), indexing="ij"), -1)
    ball = (np.linalg.norm(grid - voxel, axis=-1) < 4) & person.brain_mask
    image = person.image.copy()
    image[ball] = INTENSITY["t1"][0], 0.95
    model = fit(tmp_path, name)
    before, after = model.score(person), model.score(replace(person, image=image))
    assert after[ball].mean() > before[ball].mean() + 0.5
    assert after[ball].mean() > np.quantile(after[person.brain_mask], 0.9)


def test_the_flair_map_has_the_order_of_the_intensities(tmp_path):
    model = fit(tmp_path, create_detector("flair", fwhm=0.0))
    person = from_template(50)
    inside = model.mask & person.brain_mask
    score, flair = model.score(person)[inside], person.image[..., 1][inside]
    assert np.all(np.diff(score[np.argsort(flair)]) >= 0)
    assert abs(score.mean()) < 0.2
    assert 0.8 < score.std() < 1.2


def test_a_flair_threshold_needs_flair(tmp_path):
    t1 = [from_template(number, modalities=1) for number in range(3)]
    with pytest.raises(InputError, match="no FLAIR"):
        fit_detector(None, lambda: t1, tmp_path, "flair", console=Console(file=StringIO()))
