import gzip
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from tfds_epilepsy import volumes
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import Subject, open_nifti, orientation_note, read_nifti

AFFINE = np.diag([1.0, 2, 3, 1])


@pytest.mark.parametrize("voxel_size", [1, 2])
def test_template_grid_holds_the_brain_and_mirrors_about_the_midline(voxel_size):
    template = volumes.load_template(voxel_size)
    x = volumes.voxel_to_world(
        np.stack([np.arange(template.shape[0]), *np.zeros((2, template.shape[0]))], 1), template.affine
    )
    assert np.allclose(x[:, 0], -x[::-1, 0])
    assert template.brain_mask.sum() * voxel_size**3 == pytest.approx(1.88e6, rel=0.01)
    assert not template.brain_mask[[0, -1]].any()
    assert not template.brain_mask[:, [0, -1]].any()


def test_positions_are_scaled_to_the_box():
    template = volumes.load_template(2)
    corners = np.array([[0, 0, 0], np.array(template.shape) - 1])
    assert np.allclose(volumes.scaled_position(corners, template.affine), [[-1] * 3, [1] * 3])


def test_reading_turns_any_orientation_into_ras(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    path = tmp_path / "las.nii.gz"
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, 2, 3, 1])), path)
    ras, affine = volumes.read_nifti(path)
    assert np.array_equal(ras, array[::-1])
    assert np.allclose(np.diag(affine), [1, 2, 3, 1])
    assert np.allclose(affine[:3, 3], [-1, 0, 0])


def test_written_volumes_come_back_with_their_affine_and_template_codes(tmp_path):
    array = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    affine = np.array([[2, 0, 0, -10], [0, 2, 0, -20], [0, 0, 2, 5], [0, 0, 0, 1.0]])
    path = volumes.write_nifti(tmp_path / "a" / "map.nii.gz", array, affine)
    back, back_affine = volumes.read_nifti(path)
    assert np.array_equal(back, array)
    assert np.allclose(back_affine, affine)
    header = nib.load(path).header
    assert (header["sform_code"], header["qform_code"]) == (4, 4)
    assert [p.name for p in path.parent.iterdir()] == ["map.nii.gz"]


def test_unreadable_files_are_named(tmp_path):
    good = volumes.write_nifti(
        tmp_path / "good.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 20)), np.eye(4)
    )
    truncated = tmp_path / "truncated.nii.gz"
    truncated.write_bytes(good.read_bytes()[:2000])
    nan = volumes.write_nifti(tmp_path / "nan.nii", np.full((2, 2, 2), np.nan), np.eye(4))
    four = volumes.write_nifti(tmp_path / "four.nii", np.zeros((2, 2, 2, 3)), np.eye(4))
    for path, word in [
        (truncated, "truncated"),
        (nan, "NaN"),
        (four, "4-D"),
        (tmp_path / "none.nii", "no such file"),
    ]:
        with pytest.raises(InputError, match=word) as error:
            volumes.read_nifti(path)
        assert path.name in str(error.value)


@pytest.mark.parametrize("value", [1, 255, 7, 0.3, 0.9999999])
def test_a_lesion_mask_of_any_one_value_is_that_lesion(value):
    drawn = np.zeros((4, 5, 6), np.float32)
    drawn[1:3, 2, 3] = value
    np.testing.assert_array_equal(volumes.lesion_voxels(drawn), drawn > 0)


@pytest.mark.parametrize("highest", [1.0, 0.4])  # the second never reaches a half
def test_a_soft_lesion_mask_neither_swells_nor_vanishes(tmp_path, highest):
    distance = np.linalg.norm(np.moveaxis(np.indices((25, 25, 25)), 0, -1) - 12, axis=-1)
    soft = highest * np.clip((7.5 - distance) / 6 + 0.5, 0, 1)  # half of the highest at 7.5 voxels
    path = volumes.write_nifti(tmp_path / "lesion.nii.gz", soft, np.diag([-2.0, 2, 2, 1]))
    mask, affine = volumes.read_lesion_mask(path)
    np.testing.assert_array_equal(mask, distance <= 7.5)
    assert (soft > 0).sum() > 2 * mask.sum()
    assert affine[0, 0] == 2  # RAS+


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([0], "empty"),
        ([0, 1, 2], r"2 labels \(1, 2\)"),
        ([0, *range(2, 9)], r"7 labels \(2, 3, 4, 5, 6, \.\.\.\)"),
        ([-1, 0, 1], "labels"),
        ([0, 0.2, 3.5], "from 0.2 to 3.5"),
        ([-0.4, 0, 0.9], "from -0.4 to 0.9"),
        ([-2, 0], "no value above 0"),
    ],
)
def test_a_lesion_mask_that_is_none_is_named(tmp_path, values, word):
    array = np.resize(np.array(values, np.float32), (4, 4, 4))
    path = volumes.write_nifti(tmp_path / "lesion.nii.gz", array, np.eye(4))
    with pytest.raises(InputError, match=rf"lesion\.nii\.gz: .*{word}"):
        volumes.read_lesion_mask(path)


def test_unit_normalisation_maps_the_percentiles_of_the_mask():
    rng = np.random.default_rng(0)
    volume = rng.normal(100, 10, size=(20, 21, 22))
    mask = rng.random(volume.shape) < 0.5
    volume[~mask] = 1e6
    image, fitted = volumes.normalise(volume, mask)
    low, high = np.percentile(volume[mask], [0.5, 99])
    assert fitted == {"method": "unit", "low": pytest.approx(low), "high": pytest.approx(high)}
    assert np.allclose(image[mask], np.clip((volume[mask] - low) / (high - low), 0, 1), atol=1e-5)
    assert not image[~mask].any()


def test_zscore_normalisation_puts_the_median_in_the_middle():
    rng = np.random.default_rng(0)
    volume = rng.normal(100, 10, size=(20, 21, 22))
    image, fitted = volumes.normalise(volume, np.ones(volume.shape, bool), "zscore")
    assert np.median(image) == pytest.approx(0.5, abs=1e-5)
    assert fitted["high"] - fitted["low"] == pytest.approx(100, rel=0.05)


def test_an_empty_mask_and_a_constant_image_cannot_be_normalised():
    with pytest.raises(InputError, match="empty"):
        volumes.normalise(np.ones((2, 2, 2)), np.zeros((2, 2, 2), bool))
    with pytest.raises(InputError, match="constant"):
        volumes.normalise(np.ones((2, 2, 2)), np.ones((2, 2, 2), bool))


def test_world_positions_lead_back_to_their_voxels():
    affine = np.array([[0.0, -2.0, 0.1, 30], [1.5, 0, 0, -40], [0, 0.2, 3.0, 7], [0, 0, 0, 1]])
    indices = np.array([[0, 0, 0], [3, -2, 5], [40, 17, 9]])
    positions = volumes.voxel_to_world(indices + np.array([0.4, -0.4, 0.3]), affine)
    np.testing.assert_array_equal(volumes.world_to_voxel(positions, affine), indices)
    np.testing.assert_array_equal(volumes.world_to_voxel(positions[1], affine), indices[1])


def test_all_that_keeps_a_subject_off_a_grid_is_said():
    affine, mask = np.diag([2.0, 2, 2, 1]), np.ones((4, 5, 3), bool)
    good = Subject("a", "control", np.ones((4, 5, 3, 2), np.float32), mask, 0 * mask, affine)
    assert volumes.subject_problems(good, (4, 5, 3), affine, 2, "b") == []
    image = np.full((4, 5, 3, 1), np.nan, np.float32)
    spoilt = replace(good, image=image, brain_mask=0 * mask)
    modalities, empty, values = volumes.subject_problems(spoilt, (4, 5, 3), affine + 1e-5, 2, "sub-b")
    assert modalities == "sub-a: image (4, 5, 3, 1); sub-b has 2 modalities."
    assert empty == "sub-a: the brain mask is empty."
    assert values == "sub-a: 60 values are NaN or infinite."
    moved = volumes.subject_problems(good, (4, 5, 3), affine + np.eye(4), 2, "sub-b")
    assert "origin at [0.0, 0.0, 0.0]; sub-b lies on (4, 5, 3) of [3.0, 3.0, 3.0] mm" in moved[0]


def nifti(path, array=None, affine=AFFINE, **header):
    """A file as it stands, with header fields set after nibabel's own care."""
    image = nib.Nifti1Image(
        np.arange(24, dtype=np.float32).reshape(2, 3, 4) if array is None else array, affine
    )
    for name, value in header.items():
        image.header[name] = value
    with nib.openers.ImageOpener(path, "wb") as file:
        image.header["magic"], image.header["vox_offset"] = b"n+1", 352
        image.header.write_to(file)
        file.write(bytes(4) + np.asarray(image.dataobj).tobytes(order="F"))
    return path


RGB = np.zeros((2, 3, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("content", "header", "says"),
    [
        (None, {"qform_code": 0, "sform_code": 0}, "does not say where left and right are"),
        (np.ones((2, 3, 4), np.complex64), {}, "complex"),
        (RGB, {}, r"colours \(R\+G\+B\)"),
        (None, {"sform_code": 1, "srow_x": [np.nan, 0, 0, 0]}, "affine holds NaN"),
        (None, {"sform_code": 1, "srow_x": [0, 0, 0, 0]}, "singular"),
        (None, {"dim": [3, 3000, 3000, 3000, 1, 1, 1, 1]}, "more than the file can hold"),
        (np.ones((2, 3, 4, 2), np.float32), {}, "4-D"),
    ],
)
def test_a_header_that_cannot_be_believed_is_refused(tmp_path, content, header, says):
    path = nifti(tmp_path / "a.nii.gz", content, **header)
    with pytest.raises(InputError, match=rf"a\.nii\.gz: .*{says}"):
        read_nifti(path)


def test_a_header_of_two_forms_that_mirror_each_other_is_refused(tmp_path):
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.float32), AFFINE)
    image.set_sform(AFFINE, code=1)
    image.set_qform(np.diag([-1, 1, 1, 1]) @ AFFINE, code=1)
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="disagree on left and right"):
        read_nifti(tmp_path / "a.nii.gz")


def test_of_two_forms_that_disagree_the_sform_is_believed_and_that_is_said(tmp_path):
    moved = AFFINE.copy()
    moved[:3, 3] += [0, 3, 4]
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.float32), AFFINE)
    image.set_sform(AFFINE, code=4)
    image.set_qform(moved, code=1)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_nifti(tmp_path / "a.nii")[1], AFFINE)
    assert orientation_note(open_nifti(tmp_path / "a.nii")) == (
        "sform and qform disagree by up to 5.0 mm; the sform is believed."
    )
    image.set_qform(AFFINE, code=1)
    nib.save(image, tmp_path / "b.nii")
    assert orientation_note(open_nifti(tmp_path / "b.nii")) == ""


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.nii.gz", b"", "is empty"),
        ("a.nii.gz", b"<html>404</html>", "is no gzip file"),
        ("a.nii.gz", b"/annex/objects/MD5E-s123--0.nii.gz\n", "get the file's content first"),
        ("a.nii.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "get the file's content"),
        ("a.nii", b"\x1f\x8b\x08\x00damaged", r"is compressed; rename it to a\.nii\.gz"),
    ],
)
def test_a_file_that_is_no_nifti_is_named_for_what_it_is(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_nifti(tmp_path / name)


def test_a_plain_file_named_gz_and_a_link_without_a_file_say_what_to_do(tmp_path):
    plain = nifti(tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"not compressed.*rename it to a\.nii\."):
        read_nifti(plain)
    link = tmp_path / "b.nii.gz"
    link.symlink_to(".git/annex/objects/b.nii.gz")
    with pytest.raises(InputError, match="datalad get, git annex get"):
        read_nifti(link)


@pytest.mark.parametrize("content", [b"\0\0\0\1" * 200, b"NRRD0004\n" * 90])
def test_another_format_under_the_name_of_a_nifti_is_told(tmp_path, content):
    for name, data in (("a.nii.gz", gzip.compress(content)), ("a.nii", content)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=r"holds no header of a NIfTI; .* of another format: convert it"):
            read_nifti(tmp_path / name)


def test_nan_around_the_brain_is_told_what_to_do_with(tmp_path):
    nib.save(nib.Nifti1Image(np.full((2, 3, 4), np.nan, np.float32), AFFINE), tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"24 voxels are NaN or infinite; .* set them to 0"):
        read_nifti(tmp_path / "a.nii")
