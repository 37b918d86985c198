"""The cerebrum mask against anatomy that is known in MNI152 millimetres."""

import nibabel as nib
import numpy as np
import pytest

from tfds_epilepsy.regions import cerebrum_mask, region_names
from tfds_epilepsy.volumes import load_template


def at(mask, template, place):
    return mask[tuple(np.rint(nib.affines.apply_affine(np.linalg.inv(template.affine), place)).astype(int))]


@pytest.mark.parametrize("voxel_size", [1, 2])
def test_cerebellum_and_brain_stem_are_out_and_all_else_is_in(voxel_size):
    template, mask = load_template(voxel_size), cerebrum_mask(voxel_size)
    for place in [
        (20, -70, -35),
        (-35, -55, -45),
        (0, -55, -15),
        (0, -25, -30),
        (2, -42, -55),
        (4, -26, -14),
    ]:
        assert not at(mask, template, place), place
        assert at(template.brain_mask, template, place), place
    for place in [(25, -22, -14), (-30, -40, -18), (10, -85, -2), (-14, -20, 8), (45, 10, -30), (5, -14, 4)]:
        assert at(mask, template, place), place
    assert not (mask & ~template.brain_mask).any()


def test_the_hindbrain_has_the_volume_of_one_and_both_sides_alike():
    template = load_template(2)
    hindbrain = template.brain_mask & ~cerebrum_mask(2)
    # 120 to 160 ml of cerebellum, about 25 ml of brain stem and the fluid around them
    assert 190e3 < hindbrain.sum() * 8 < 270e3
    np.testing.assert_array_equal(cerebrum_mask(2), cerebrum_mask(2)[::-1])


def test_both_grids_agree():
    fine = cerebrum_mask(1)[::2, ::2, ::2]
    coarse = cerebrum_mask(2)
    assert 2 * (fine & coarse).sum() / (fine.sum() + coarse.sum()) > 0.985


@pytest.mark.parametrize(
    ("place", "region"),
    [
        ((-40, 40, 20), "frontal"),
        ((2, 60, -10), "frontal"),
        ((-50, -50, 45), "parietal"),
        ((60, -20, -15), "temporal"),
        ((-26, -14, -20), "mesial temporal"),
        ((10, -92, 4), "occipital"),
        ((38, 4, 2), "insula and operculum"),
        ((-4, 20, 28), "cingulate"),
        ((12, -16, 8), "deep grey matter"),
        ((25, -65, -40), "cerebellum or brain stem"),
        ((0, -28, -35), "cerebellum or brain stem"),
        ((0, 300, 0), "frontal"),
    ],
)
def test_the_region_of_a_position(place, region):
    assert region_names([place, np.multiply(place, (-1, 1, 1))]) == [region, region]


def test_no_position_has_no_region():
    assert region_names([]) == []
