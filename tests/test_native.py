"""Maps in template space and in the patient's own: header codes, orientation, and what lies where."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from epizoo.outputs import score_cohort
from epizoo.run import Run
from epizoo.run_config import RunConfig
from epizoo.run_folder import RunFolder
from tests.bids_files import write_participants
from tfds_epilepsy.files import read_json, write_json
from tfds_epilepsy.volumes import TEMPLATE_SPACE, load_template, read_nifti, write_nifti

ants = pytest.importorskip("ants", reason="the preprocessing extra is not installed")

SPOT = (22, 60, 45)  # voxel of the template, in the left frontal lobe
SHAPE = (60, 66, 52)
# The patient's T1w lies askew, has voxels of 3 x 2.8 x 3.2 mm and runs from right to left, front to back.
MATRIX = np.array([[0.97, 0.1, 0.0], [-0.1, 0.98, 0.05], [0.02, -0.05, 1.04]])
AFFINE = np.array([[-3, 0, 0, 92], [0, -2.8, 0, 80], [0, 0, 3.2, -78], [0, 0, 0, 1]], float)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A patient with a bright spot, scored against three controls; the raw T1w; and where the maps are."""
    from tfds_epilepsy.registration import Scan, resample

    folder, rng = tmp_path_factory.mktemp("derivative"), np.random.default_rng(0)
    template = load_template(2)
    spot = np.zeros(template.shape, bool)
    spot[SPOT] = True
    spot = ndimage.binary_dilation(spot, iterations=4)
    for label in ("c1", "c2", "c3", "p1"):
        stem = folder / f"sub-{label}" / "anat" / f"sub-{label}_space-{TEMPLATE_SPACE}"
        image = (0.8 * template.t1 + 0.03 * rng.normal(size=template.shape)).clip(0, 1)
        image = np.where(spot & (label == "p1"), 1, image) * template.brain_mask
        write_nifti(f"{stem}_desc-preproc_T1w.nii.gz", image, template.affine)
        mask = template.brain_mask
        write_nifti(f"{stem}_desc-brain_mask.nii.gz", mask, template.affine, dtype=np.uint8)
        record = {
            "Normalisation": {"method": "unit"},
            "Settings": {"voxel_size": 2},
            "NativeGrid": {"Shape": SHAPE, "Affine": AFFINE.tolist()},
        }
        write_json(f"{stem}_desc-preproc_T1w.json", record)
        way = ants.create_ants_transform(matrix=MATRIX, translation=(7, -4, 5), dimension=3)
        back = stem.with_name(f"sub-{label}_from-{TEMPLATE_SPACE}_to-T1w_mode-image_xfm.h5")
        ants.write_transform(
            way, str(stem.with_name(f"sub-{label}_from-T1w_to-{TEMPLATE_SPACE}_mode-image_xfm.h5"))
        )
        ants.write_transform(way.invert(), str(back))
    rows = [[f"sub-c{n}", "control", "train"] for n in (1, 2, 3)] + [["sub-p1", "patient", "test"]]
    write_participants(folder, rows, "participant_id\tgroup\tsplit")
    raw = Scan(np.zeros(SHAPE, np.float32), AFFINE)
    own = resample(Scan(image, template.affine), raw, [back]).array
    place = tmp_path_factory.mktemp("scores")
    run = Run(RunConfig.resolve(str(folder), model="none", detector="zscore"), place / "run", data_dir=place)
    run.fit()
    score_cohort(place / "run", str(folder), place / "maps", native=True, data_dir=place)
    return own, RunFolder(place / "maps")


def test_a_native_map_overlays_the_patients_own_t1w(scored):
    own, maps = scored
    image = nib.load(maps.score_map("p1", "T1w"))
    assert image.shape == own.shape
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    score = image.get_fdata()
    head, brain = own > 0.05, score != 0
    assert 2 * (head & brain).sum() / (head.sum() + brain.sum()) > 0.95
    bright = ndimage.label(own > 0.9)[0]
    largest = bright == np.bincount(bright.ravel())[1:].argmax() + 1  # the spot
    assert score[largest].mean() > 5
    away = ndimage.center_of_mass(score > 0.8 * score.max()) - np.array(ndimage.center_of_mass(largest))
    assert np.abs(away).max() < 1  # voxel
    template = load_template(2)
    here = nib.affines.apply_affine(AFFINE, ndimage.center_of_mass(largest))
    assert np.linalg.norm(here - nib.affines.apply_affine(template.affine, SPOT)) > 5  # not template space


def test_native_labels_are_the_clusters_of_the_native_map(scored):
    _, maps = scored
    labels = np.asarray(nib.load(maps.labels("p1", "T1w")).dataobj)
    score = nib.load(maps.score_map("p1", "T1w")).get_fdata()
    table = pd.read_csv(maps.clusters("p1", TEMPLATE_SPACE), sep="\t")
    assert set(np.unique(labels)) <= {0, *table["rank"]}
    assert labels.dtype.kind == "i"
    first = table.iloc[0]
    assert score[labels == 1].mean() == pytest.approx(first["mean"], rel=0.2)
    voxel_mm3 = abs(np.linalg.det(AFFINE[:3, :3]))
    volume = first["size_mm3"] / np.linalg.det(MATRIX)  # the transform to the template magnifies
    assert (labels == 1).sum() * voxel_mm3 == pytest.approx(volume, rel=0.15)


def test_the_native_table_points_into_the_clusters_of_the_native_labels(scored):
    _, maps = scored
    labels = nib.load(maps.labels("p1", "T1w"))
    table = pd.read_csv(maps.clusters("p1", "T1w"), sep="\t")
    assert list(table["rank"]) == list(pd.read_csv(maps.clusters("p1", TEMPLATE_SPACE), sep="\t")["rank"])
    first = table.iloc[0]
    there = nib.affines.apply_affine(
        np.linalg.inv(labels.affine), (first["peak_x"], first["peak_y"], first["peak_z"])
    )
    inside = np.argwhere(np.asarray(labels.dataobj) == 1)
    assert np.linalg.norm(inside - there, axis=1).min() < 1.5  # voxels


@pytest.mark.parametrize(("space", "code"), [(TEMPLATE_SPACE, 4), ("T1w", 1)])
def test_nibabel_and_ants_read_the_same_world_from_every_map(scored, space, code):
    _, maps = scored
    for path in (maps.score_map("p1", space), maps.labels("p1", space)):
        image = nib.load(path)
        assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (code, code)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
        assert image.header.get_xyzt_units()[0] == "mm"
        other = ants.image_read(str(path))
        for index in ((0, 0, 0), (10, 20, 30), tuple(n - 1 for n in image.shape)):
            x, y, z = ants.transform_index_to_physical_point(other, index)  # left, posterior, superior
            np.testing.assert_allclose(nib.affines.apply_affine(image.affine, index), (-x, -y, z), atol=1e-3)
        np.testing.assert_allclose(other.numpy(), image.get_fdata(), rtol=1e-5, atol=1e-5)


def test_every_map_has_a_sidecar_with_units_and_provenance(scored):
    _, maps = scored
    for path in maps.path.rglob("*.nii.gz"):
        content = read_json(path.with_name(path.name.replace(".nii.gz", ".json")))
        assert content["Description"]
        assert content["SpatialReference"] == (
            TEMPLATE_SPACE if TEMPLATE_SPACE in path.name else "the voxels of the subject's own T1w"
        )
        if "statmap" in path.name:
            assert "standard deviations" in content["Units"]
            assert (content["Detector"], content["Controls"]) == ("zscore", 3)
            assert content["DataHash"]


def test_the_label_image_and_the_table_agree(scored):
    _, maps = scored
    labels, affine = read_nifti(maps.labels("p1", TEMPLATE_SPACE), dtype=np.int32)
    table = pd.read_csv(maps.clusters("p1", TEMPLATE_SPACE), sep="\t")
    for row in table.itertuples():
        inside = np.argwhere(labels == row.rank)
        assert len(inside) == row.voxels
        peak = nib.affines.apply_affine(np.linalg.inv(affine), (row.peak_x, row.peak_y, row.peak_z))
        assert (np.rint(peak) == inside).all(1).any()
        assert row.hemisphere == ("left" if row.centroid_x < 0 else "right")
