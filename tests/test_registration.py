"""Arrays in, ANTs underneath, arrays out: geometry checked against scipy and hand-made transforms."""

import itertools
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from tests.heads import turned
from tfds_epilepsy import registration
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.registration import Scan, correct_bias, register, register_rigid, resample
from tfds_epilepsy.volumes import load_template, voxel_to_world

pytest.importorskip("ants", reason="antspyx (the preprocessing extra) is not installed")


def world_of(scan: Scan) -> np.ndarray:
    return voxel_to_world(
        np.moveaxis(np.indices(scan.array.shape), 0, -1).reshape(-1, 3), scan.affine
    ).reshape(*scan.array.shape, 3)


def head_of(affine: np.ndarray, shape=(52, 64, 54), spacing=3.2, invert=False) -> Scan:
    """The template's brain after ``affine``, sampled on a coarse grid of its own."""
    template = load_template(2)
    grid = np.diag([spacing, spacing, spacing, 1.0])
    grid[:3, 3] = affine[:3, 3] - spacing * (np.array(shape) - 1) / 2 + (0, -17, 6)
    brain = 1 - template.t1 if invert else template.t1
    moved = Scan(brain * template.brain_mask, affine @ template.affine)
    return resample(moved, Scan(np.zeros(shape, np.float32), grid))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(registration, "N4_ITERATIONS", (20, 10))
    monkeypatch.setattr(registration, "SYN_ITERATIONS", (15, 3, 0))
    monkeypatch.setattr(registration, "RIGID_ITERATIONS", (60, 20, 0))


def test_a_new_grid_holds_the_same_world():
    affine = turned(20, (5, -7, 3)) @ np.diag([1.5, 2.5, 4.0, 1.0])
    scan = Scan(np.zeros((30, 22, 14), np.float32), affine)
    ramp = scan.with_array(world_of(scan) @ (0.3, -0.2, 0.5))
    moved = ramp.at(2)
    expected = world_of(moved) @ (0.3, -0.2, 0.5)
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(moved.array[inner], expected[inner], atol=0.02)
    np.testing.assert_allclose(moved.spacing, 2)
    # the two grids fill the same box: opposite corners agree within a voxel
    for corner in itertools.product((-0.5, 1), repeat=3):
        ends = [
            voxel_to_world(
                np.where(np.array(corner) < 0, -0.5, np.array(s.array.shape) - 0.5)[None], s.affine
            )
            for s in (scan, moved)
        ]
        assert np.linalg.norm(ends[0] - ends[1]) < 2


def test_resampling_equals_scipy_on_an_oblique_grid():
    rng = np.random.default_rng(0)
    moving = Scan(rng.random((9, 11, 7), dtype=np.float32), turned(10) @ np.diag([2, 1.5, 3, 1.0]))
    fixed = Scan(np.zeros((6, 5, 8), np.float32), turned(-15, (6, 2, 5)) @ np.diag([1.2, 2, 1, 1.0]))
    index = (
        np.linalg.inv(moving.affine)
        @ np.concatenate([world_of(fixed), np.ones((*fixed.array.shape, 1))], axis=-1).reshape(-1, 4).T
    )
    expected = ndimage.map_coordinates(moving.array, index[:3], order=1).reshape(fixed.array.shape)
    inside = ((index[:3] >= 0) & (index[:3] <= np.array(moving.array.shape)[:, None] - 1)).all(axis=0)
    inside = inside.reshape(fixed.array.shape)
    assert inside.sum() > 50
    np.testing.assert_allclose(resample(moving, fixed).array[inside], expected[inside], atol=1e-4)


def test_band_limiting_widens_finer_axes_to_the_target_and_leaves_coarser_ones():
    scan = Scan(np.zeros((31, 31, 31), np.float32), np.diag([1.0, 0.5, 3.0, 1.0]))
    scan.array[15, 15, 15] = 1
    profile = scan.band_limited(2).array
    assert profile.sum() == pytest.approx(1, abs=1e-3)
    offsets = np.arange(31) - 15
    for axis, spacing in ((0, 1.0), (1, 0.5)):
        along = profile.sum(axis=tuple({0, 1, 2} - {axis}))
        fwhm = np.sqrt((along * offsets**2).sum() * 8 * np.log(2)) * spacing
        assert fwhm == pytest.approx(np.sqrt(4 - spacing**2), rel=0.02)
    assert np.count_nonzero(profile.sum(axis=(0, 1))) == 1


def test_growing_counts_millimetres_not_voxels():
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 4] = True
    spacing = np.array([1.0, 2.0, 3.0])
    distance = np.linalg.norm((np.moveaxis(np.indices(mask.shape), 0, -1) - 4) * spacing, axis=-1)
    grown = registration.grown(mask, 3.2, spacing)
    np.testing.assert_array_equal(grown, distance <= 3.2)
    np.testing.assert_array_equal(registration.grown(grown, -2.5, spacing)[4, 4, 4], True)


def test_the_brain_of_a_stripped_scan_is_its_filled_non_background():
    scan = Scan(np.full((40, 36, 30), -7, np.float32), np.diag([1.5, 1.5, 2.0, 1.0]))
    grid = world_of(scan) - (28, 26, 20)
    brain = ((grid / (24, 22, 24)) ** 2).sum(axis=-1) <= 1  # cut by the volume's floor and ceiling
    scan.array[brain] = 100
    scan.array[18:20, 16:19, 10:13] = -7  # background values inside the brain
    scan.array[1, 1, 1] = 50  # a speck
    found = registration.stripped_brain_mask(scan)
    assert 2 * (found & brain).sum() / (found.sum() + brain.sum()) > 0.995
    assert found[18:20, 16:19, 10:13].all()
    assert not found[1, 1, 1]


def test_a_constant_image_has_no_brain():
    with pytest.raises(InputError, match="no brain"):
        registration.stripped_brain_mask(Scan(np.ones((5, 5, 5), np.float32), np.eye(4)))


def test_the_bias_field_is_taken_out(quick):
    scan = Scan(np.zeros((40, 48, 40), np.float32), np.diag([4.0, 4.0, 4.0, 1.0]))
    place = world_of(scan) / np.array(scan.array.shape) / 4 - 0.5
    mask = (place**2).sum(axis=-1) < 0.2
    rng = np.random.default_rng(1)
    tissue = np.where(np.sin(9 * place).prod(axis=-1) > 0, 100, 60) + rng.normal(0, 1, mask.shape)
    field = np.exp(0.6 * place[..., 0] - 0.5 * place[..., 1] ** 2)
    biased = scan.with_array(tissue * field * mask)
    corrected = correct_bias(biased, mask).array
    bright = mask & (tissue > 80)

    def variation(array):
        return array[bright].std() / array[bright].mean()

    assert variation(corrected) < variation(biased.array) / 3
    assert (corrected[~mask] == 0).all()


@pytest.mark.parametrize("shift", [(4.0, -6.0, 5.0), (70.0, -40.0, 30.0)], ids=["scanner", "far"])
def test_a_rigid_move_is_found_between_contrasts(quick, tmp_path, shift):
    move = turned(6, shift)
    fixed, moving = head_of(np.eye(4)), head_of(move, invert=True)
    register_rigid(fixed, fixed.array > 0, moving, tmp_path / "x.mat")
    point = np.array([[30.0, -20.0, 10.0], [-35.0, 30.0, 25.0], [5.0, -60.0, -30.0]])
    table = pd.DataFrame(point * (-1, -1, 1), columns=list("xyz"))
    found = registration.import_ants().apply_transforms_to_points(
        3, table, [str(tmp_path / "x.mat")]
    ).to_numpy() * (-1, -1, 1)
    expected = voxel_to_world(point, move)
    assert np.linalg.norm(found - expected, axis=1).max() < 2


@pytest.mark.slow
def test_a_brain_meets_the_template_and_the_inverse_leads_back(quick, tmp_path):
    affine = turned(5, (8, -10, 6)) @ np.diag([1.06, 0.95, 1.03, 1.0])
    brain = head_of(affine)
    registration.import_ants(seed=3)
    files = tmp_path / "to.h5", tmp_path / "back.h5"
    register(brain, *files)
    template = load_template(2)
    target = Scan(template.t1, template.affine)
    there = resample(brain, target, files[:1])
    inside = template.brain_mask
    before = np.corrcoef(resample(brain, target).array[inside], template.t1[inside])[0, 1]
    assert np.corrcoef(there.array[inside], template.t1[inside])[0, 1] > max(0.85, before + 0.2)
    ramp = target.with_array(world_of(target)[..., 1])
    round_trip = resample(resample(ramp, brain, files[1:]), target, files[:1]).array
    core = ndimage.binary_erosion(inside, iterations=6)
    assert np.abs(round_trip - ramp.array)[core].max() < 1.5

    again = tmp_path / "to2.h5", tmp_path / "back2.h5"
    register(brain, *again)
    np.testing.assert_array_equal(resample(brain, target, again[:1]).array, there.array)


def test_without_ants_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ants", None)
    with pytest.raises(InputError, match=r"pip install 'epizoo\[preprocessing\]'"):
        registration.import_ants()
