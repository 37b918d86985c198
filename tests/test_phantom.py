"""The phantom: deterministic, invertible, like MRI, and hard."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage, stats

from tfds_epilepsy import bids, lesions, phantom
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.phantom import PhantomConfig
from tfds_epilepsy.volumes import load_template

DEFAULT = PhantomConfig()


@pytest.fixture(scope="module")
def control():
    return phantom.subject(DEFAULT, "control001")


@pytest.fixture(scope="module")
def patient():
    return phantom.subject_and_lesion(DEFAULT, "patient009")


def digest(subject) -> str:
    arrays = (subject.image, subject.brain_mask, subject.lesion_mask, subject.affine)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def tissue_means(image, template):
    """Mean intensity where the template is surely grey, white, fluid."""
    return [
        float(np.median(image[ndimage.minimum_filter(p, 3) > 0.7])) for p in (template.gm, template.wm)
    ] + [float(np.median(image[template.csf > 0.95]))]


def test_cohort_has_the_stated_sizes_and_no_subject_twice():
    splits = phantom.cohort(DEFAULT)
    assert {name: len(labels) for name, labels in splits.items()} == {
        "train": 40,
        "validation": 16,
        "test": 30,
    }
    labels = [label for part in splits.values() for label in part]
    assert len(set(labels)) == 86
    assert all(label.startswith("control") for label in splits["train"])


def test_a_subject_is_the_same_bytes_in_another_process_and_after_other_subjects(patient):
    code = (
        "import hashlib; from tfds_epilepsy import phantom; c = phantom.PhantomConfig();"
        "phantom.subject(c, 'patient011'); s = phantom.subject(c, 'patient009');"
        "print(hashlib.sha256(b''.join(a.tobytes() for a in"
        "(s.image, s.brain_mask, s.lesion_mask, s.affine))).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(patient[0])


def test_another_seed_gives_another_subject(control):
    other = phantom.subject(PhantomConfig(seed=1), "control001")
    assert not np.array_equal(other.image, control.image)


def test_record_is_on_the_template_grid_and_within_bounds(control, patient):
    template = load_template(2)
    for subject in (control, patient[0]):
        assert subject.image.shape == (*template.shape, 2)
        assert subject.image.dtype == np.float32
        assert subject.image.min() >= 0
        assert subject.image.max() <= 1
        assert not subject.image[~subject.brain_mask].any()
        np.testing.assert_array_equal(subject.affine, template.affine)
        assert 20 <= subject.age <= 60
        assert subject.sex in "fm"
    assert (control.group, patient[0].group) == ("control", "patient")
    assert not control.lesion_mask.any()
    overlap = np.logical_and(control.brain_mask, template.brain_mask).sum()
    assert 2 * overlap / (control.brain_mask.sum() + template.brain_mask.sum()) > 0.95


def test_contrasts_are_those_of_mri(control):
    grey, white, fluid = tissue_means(control.image[..., 0], load_template(2))
    assert fluid < grey < white
    grey, white, fluid = tissue_means(control.image[..., 1], load_template(2))
    assert fluid < white < grey
    assert 1.15 < grey / white < 1.5


def test_residual_warp_is_small_and_invertible():
    rng = np.random.default_rng(0)
    velocity = np.stack([0.4 * phantom.random_field(rng, (30, 34, 28), 5.0) for _ in range(3)])
    field = phantom.displacement(velocity)
    jacobian = np.stack([np.stack(np.gradient(part), axis=-1) for part in field], axis=-2)
    assert np.linalg.det(jacobian + np.eye(3)).min() > 0
    assert 0.3 < np.linalg.norm(field, axis=0).mean() < 1.5
    # The flow back along the same velocity undoes it: exp(v) after exp(-v) is the identity.
    back = phantom.displacement(-velocity)
    grid = np.indices(field.shape[1:])
    there = np.stack([ndimage.map_coordinates(f, grid + back, order=1, mode="nearest") for f in field])
    inner = (slice(None), *[slice(4, -4)] * 3)
    assert np.abs(back + there)[inner].max() < 0.1


def test_random_field_is_the_tensor_product_of_cubic_b_splines():
    from scipy.interpolate import BSpline

    shape, spacing = (9, 12, 7), 2.5
    field = phantom.random_field(np.random.default_rng(3), shape, spacing)
    sizes = [int((n - 1) / spacing) + 4 for n in shape]
    controls = np.random.default_rng(3).normal(size=sizes)
    bases = []
    for n, size in zip(shape, sizes, strict=True):
        knots = np.arange(size + 4) - 3.0
        bases.append(BSpline.design_matrix(np.arange(n) / spacing, knots, 3).toarray())
    expected = np.einsum("abc,xa,yb,zc->xyz", controls, *bases)
    expected /= np.sqrt(np.prod([(basis**2).sum(1).mean() for basis in bases]))
    np.testing.assert_allclose(field, expected, atol=1e-5)


def test_coarse_voxels_are_weighted_means_of_fine_ones():
    fine = np.random.default_rng(0).random((7, 9, 5)).astype(np.float32)
    coarse = phantom._coarsen(fine, 2)
    assert coarse.shape == (4, 5, 3)
    weights = np.array([0.25, 0.5, 0.25])
    expected = np.einsum("abc,a,b,c->", fine[1:4, 3:6, 1:4], weights, weights, weights)
    assert coarse[1, 2, 1] == pytest.approx(expected, rel=1e-5)


def test_contrast_0_is_the_brain_without_its_lesion(patient):
    none = phantom.subject(PhantomConfig(contrast=0), "patient009")
    healthy = phantom.subject(replace(DEFAULT, kinds=("heterotopia",), contrast=0), "patient009")
    np.testing.assert_array_equal(none.image, healthy.image)  # whatever lesion it does not have
    np.testing.assert_array_equal(none.lesion_mask, patient[0].lesion_mask)
    assert not np.array_equal(none.image, patient[0].image)


def test_the_mask_is_what_was_changed():
    strong = phantom.subject(PhantomConfig(visible=True), "patient009")
    none = phantom.subject(PhantomConfig(visible=True, contrast=0), "patient009")
    change = np.abs(strong.image - none.image).max(-1)
    inside = change[strong.lesion_mask].mean()
    far = ~ndimage.binary_dilation(strong.lesion_mask, iterations=6)
    assert inside > 0.03
    assert change[far].max() < 0.02  # normalisation alone


def test_more_contrast_is_more_change(patient):
    none = phantom.subject(PhantomConfig(contrast=0), "patient009")
    double = phantom.subject(PhantomConfig(contrast=2), "patient009")
    mask = none.lesion_mask
    once = np.abs(patient[0].image - none.image)[mask].mean()
    twice = np.abs(double.image - none.image)[mask].mean()
    assert 0 < once < twice


def test_subjects_are_the_same_as_ever(patient):
    """Sums over the images of 0.1: cohorts stay when kinds of lesion are added."""
    nodule = phantom.subject(replace(DEFAULT, kinds=("heterotopia",)), "patient009")
    np.testing.assert_allclose(
        patient[0].image.sum((0, 1, 2), dtype=float), [146297.6565, 176218.4122], rtol=1e-6
    )
    np.testing.assert_allclose(
        nodule.image.sum((0, 1, 2), dtype=float), [146297.7448, 176204.6355], rtol=1e-6
    )
    assert patient[0].lesion_mask.sum() == 803
    assert nodule.lesion_mask.sum() == 6
    inside = nodule.image[nodule.lesion_mask].sum(0, dtype=float)
    np.testing.assert_allclose(inside, [4.12251729, 4.98387837], rtol=1e-5)


def test_a_lesion_without_a_mask_is_not_the_whole_image():
    """An atrophy far from fluid: a patient's mask was everything."""
    atrophy = replace(DEFAULT, seed=25, kinds=("atrophy",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lesions.Implant, "mask", property(lambda implant: implant.weight > 2))
        assert not phantom.subject(atrophy, "patient002").lesion_mask.any()
    mask = phantom.subject(atrophy, "patient002").lesion_mask
    assert 0 < mask.sum() < 5000


@pytest.mark.slow
def test_sclerosis_is_as_far_from_controls_as_patients_are():
    """Volume 1.7 to 1.9 deviations less (Whelan et al. 2018), FLAIR 2 or more brighter, T1w darker."""
    template, config = load_template(2), replace(DEFAULT, seed=3, kinds=("hippocampal_sclerosis",))
    places = (
        np.moveaxis(np.indices(template.shape), 0, -1) * np.diag(template.affine)[:3] + template.affine[:3, 3]
    )
    tubes = {
        side: lesions._hippocampus(places - np.array(lesions.HIPPOCAMPUS) * [side, 1, 1], [side])
        for side in (-1, 1)
    }

    def measured(subject, tissue, side):
        """Grey matter, and mean FLAIR and T1w of voxels that hold little else."""
        grey, tube = phantom._coarsen(tissue[0], 2), tubes[side]
        pure = subject.image[(tube > 0.5) & (grey > 0.8)].mean(0)
        return [(grey * tube).sum(), pure[1], pure[0]]

    healthy, change = [], []
    for number in range(1, 17):
        label = f"control{number:03d}"
        made, tissue = phantom.subject(config, label), phantom._anatomy(config, label).tissue
        healthy += [measured(made, tissue, side) for side in (-1, 1)]
    for number in range(1, 7):
        label = f"patient{number:03d}"
        patient, implant = phantom.subject_and_lesion(config, label)
        without, nothing = phantom.subject_and_lesion(replace(config, contrast=0.0), label)
        side = int(np.sign(implant.centre_mm[0]))
        change.append(
            np.subtract(measured(patient, implant.tissue, side), measured(without, nothing.tissue, side))
        )
        other = np.subtract(
            measured(patient, implant.tissue, -side), measured(without, nothing.tissue, -side)
        )
        assert abs(other[0]) < 1e-3  # one side alone
    volume, flair, t1 = np.mean(change, axis=0) / np.std(healthy, axis=0, ddof=1)
    assert -1.9 <= volume <= -1.7
    assert 2 <= flair <= 3
    assert t1 < -0.5


def test_age_widens_the_ventricles():
    counts = {}
    for age in (20, 60):
        config = PhantomConfig()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(phantom, "_person", lambda *_, age=age: {"age": age, "sex": "f", "site": "A"})
            counts[age] = float(
                phantom._anatomy(config, "control001").tissue[2][40:110, 60:150, 60:110].sum()
            )
    assert counts[60] > 1.05 * counts[20]


def test_a_second_site_has_other_contrast(control):
    other = phantom.subject(PhantomConfig(second_site=1.0), "control001")
    assert (control.site, other.site) == ("A", "B")
    np.testing.assert_array_equal(control.brain_mask, other.brain_mask)  # the same person
    template = load_template(2)
    ratio = [np.divide(*tissue_means(s.image[..., 0], template)[:2]) for s in (control, other)]
    assert ratio[1] > ratio[0] + 0.03


def test_a_second_site_is_noisier_and_blurrier_and_has_its_share_of_subjects():
    signal = np.full((64, 64, 64), 1.0, np.float32)
    signal[32:] = 0.5
    noise, edge = [], []
    for share in (0.0, 1.0):
        config = PhantomConfig(voxel_size=1, second_site=share)
        image = phantom._acquire(config, "control001", "T1w", signal, np.ones(signal.shape, bool))
        step = image[8:24].mean() - image[40:56].mean()
        noise.append(np.diff(image[8:24], axis=1).std() / step)
        edge.append((image[31] - image[32]).mean() / step)
    assert 1.3 < noise[1] / noise[0] < 1.6  # 1.5 times the noise; texture is the same
    assert edge[1] < 0.6 * edge[0]
    half = PhantomConfig(second_site=0.5)
    sites = [phantom._person(half, f"control{number:03}")["site"] for number in range(200)]
    assert 80 < sites.count("B") < 120


def test_a_person_scanned_again_differs_by_the_scan_alone():
    config = PhantomConfig()
    first, again = (phantom.subject(config, "patient001", scan) for scan in (0, 1))
    np.testing.assert_array_equal(first.brain_mask, again.brain_mask)
    np.testing.assert_array_equal(first.lesion_mask, again.lesion_mask)
    inside = first.brain_mask
    apart = (again.image - first.image)[inside].std(0)
    other = (phantom.subject(config, "patient002").image - first.image)[inside].std(0)
    assert (apart > 0.02).all()  # noise of 1/40 of white matter, in each of the two
    assert (apart < 0.5 * other).all()
    assert again.age == first.age


def test_pet_is_blurred_by_its_point_spread():
    signal = np.zeros((64, 64, 64), np.float32)
    signal[32:] = 1
    image = phantom._acquire(
        PhantomConfig(voxel_size=1), "control001", "pet", signal, np.ones_like(signal) > 0
    )
    profile = image.mean(axis=(1, 2))
    expected = stats.norm.cdf((np.arange(64) - 31.5) / (phantom.PET_FWHM / 2.355))
    assert np.corrcoef(profile, expected)[0, 1] > 0.995
    assert np.abs(np.diff(profile)).max() < 0.3


def test_pet_shows_grey_matter():
    subject = phantom.subject(PhantomConfig(modalities=("T1w", "FLAIR", "pet")), "control001")
    assert subject.image.shape[-1] == 3
    grey, white, fluid = tissue_means(subject.image[..., 2], load_template(2))
    assert grey > white > fluid


def test_1_mm_subject_is_the_2_mm_one_on_a_finer_grid(control):
    fine = phantom.subject(PhantomConfig(voxel_size=1), "control001")
    assert fine.image.shape == (149, 187, 157, 2)
    np.testing.assert_array_equal(fine.affine, load_template(1).affine)
    inside = control.brain_mask
    correlation = np.corrcoef(fine.image[::2, ::2, ::2, 0][inside], control.image[..., 0][inside])[0, 1]
    assert correlation > 0.9


def test_written_cohort_is_read_back_by_the_bids_config(tmp_path, patient):
    config = PhantomConfig(
        n_train=2,
        n_validation_controls=0,
        n_validation_patients=0,
        n_test_controls=0,
        n_test_patients=1,
    )
    out = phantom.write_bids(config, tmp_path / "cohort", progress=False)
    found, problems = bids.template_subjects(out)
    assert problems == bids.voxel_problems(found) == []
    assert {one.subject: one.participant.split for one in found} == {
        "control001": "train",
        "control002": "train",
        "patient001": "test",
    }
    read = bids.read_subject(found[-1], ("T1w", "FLAIR"))
    made = phantom.subject(config, "patient001")
    for name in ("image", "brain_mask", "lesion_mask", "affine", "age", "sex", "site", "group"):
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))
    with (out / "lesions.tsv").open() as file:
        (row,) = csv.DictReader(file, delimiter="\t")
    spec = phantom.lesion(config, "patient001")
    assert row["kind"] == spec.kind
    assert float(row["diameter_mm"]) == pytest.approx(spec.diameter_mm, rel=1e-4)
    assert phantom.lesion_table(config)[0]["split"] == "test"

    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    phantom.write_bids(config, out, progress=False)  # goes on: nothing is left to do
    assert stamps == {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    with pytest.raises(InputError, match="other making"):
        phantom.write_bids(PhantomConfig(seed=5), out, progress=False)
    assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    assert not list(out.rglob(".partial*"))


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        phantom.write_bids(PhantomConfig(n_train=1), tmp_path, progress=False)


@pytest.mark.parametrize("label", ["control", "somebody1", "patient000", "patientX"])
def test_unknown_labels_are_refused(label):
    with pytest.raises(InputError, match="no phantom subject"):
        phantom.subject(DEFAULT, label)


def test_unknown_settings_are_refused():
    with pytest.raises(InputError, match="no CT"):
        PhantomConfig(modalities=("CT",))
    with pytest.raises(InputError, match="voxel size"):
        PhantomConfig(voxel_size=3)
    with pytest.raises(InputError, match="unknown lesion kind"):
        PhantomConfig(kinds=("tumour",))
    with pytest.raises(InputError, match="is a control"):
        phantom.lesion(DEFAULT, "control001")


@pytest.mark.slow
def test_the_default_cohort_is_hard_for_voxelwise_intensities_but_not_empty():
    small = replace(DEFAULT, n_train=14)
    areas = phantom.difficulty(small, fwhm_mm=(4,))
    assert 0.55 < areas[4] <= 0.75


def test_conditions_change_what_they_name(control):
    """Each on the same person: noise in the images, errors in the mask, contrast of grey and white matter."""
    template = load_template(2)

    def made(**conditions):
        return phantom.subject(replace(DEFAULT, conditions=phantom.Conditions(**conditions)), "control001")

    def roughness(subject):
        inside = ndimage.binary_erosion(subject.brain_mask, iterations=4)
        return float(np.abs(ndimage.laplace(subject.image[..., 0]))[inside].mean())

    assert roughness(made(noise=2.5)) > 1.3 * roughness(control)
    assert roughness(made(blur=1.0)) < 0.9 * roughness(control)
    other = made(brain_error=0.15)
    assert 0 < np.mean(other.brain_mask != control.brain_mask) < 0.02
    grey, white, _ = tissue_means(control.image[..., 0], template)
    less, most, _ = tissue_means(made(grey=(0.5, 1.0)).image[..., 0], template)
    assert 0.35 < (most - less) / (white - grey) < 0.75


def test_conditions_need_a_factor_for_each_modality():
    with pytest.raises(InputError, match="conditions: 1 factors grey for 2 modalities"):
        replace(DEFAULT, conditions=phantom.Conditions(grey=(1.0,)))
