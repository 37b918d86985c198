import json
import shutil

import numpy as np
import pytest

from tests.bids_files import AFFINE, SHAPE, write_participants, write_subject
from tfds_epilepsy import bids
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import read_nifti, write_nifti

LESION = np.zeros(SHAPE)
LESION[4, 2:-2, 2:-2] = 1


@pytest.fixture
def derivative(tmp_path):
    """A control who trains, one who does not, and a patient."""
    for label in ("c1", "c2"):
        write_subject(tmp_path, label)
    write_subject(tmp_path, "p1", lesion=True)
    rows = [["sub-c1", "control", "train"], ["sub-c2", "control", "test"], ["sub-p1", "patient", "test"]]
    write_participants(tmp_path, rows, "participant_id\tgroup\tsplit")
    return tmp_path


def lesion_of(folder):
    return next((folder / "sub-p1").glob("anat/*lesion_mask.nii.gz"))


def problems_of(folder, **options):
    with pytest.raises(InputError) as error:
        bids.read_derivative(folder, **options)
    return error.value.problems


@pytest.mark.parametrize("name", ["label-lesion_mask", "desc-lesion_roi", "lesion"])
def test_a_lesion_mask_that_says_no_space_is_taken_where_its_grid_fits(derivative, name):
    path = lesion_of(derivative)
    path = path.rename(path.with_name(f"sub-p1_{name}.nii.gz"))
    found = bids.read_derivative(derivative)
    assert found.subjects["p1"].lesion_mask == path
    write_nifti(path, np.zeros((5, 5, 5)) + np.eye(5), AFFINE)
    (problem,) = problems_of(derivative)
    assert "the others' grid" in problem


def test_the_session_with_the_lesion_mask_is_taken_in_a_derivative(derivative):
    anat = derivative / "sub-p1" / "anat"
    for session in ("1", "2"):
        there = derivative / "sub-p1" / f"ses-{session}" / "anat"
        there.mkdir(parents=True)
        for path in anat.iterdir():
            if "lesion" not in path.name or session == "2":
                shutil.copy(path, there / path.name.replace("sub-p1", f"sub-p1_ses-{session}"))
    shutil.rmtree(anat)
    found = bids.read_derivative(derivative)
    assert found.subjects["p1"].session == "2"
    assert any("session 2 taken of 2" in note for note in found.notes)


@pytest.mark.parametrize(("values", "voxels"), [((0, 255), 24), ((0.0, 0.4), 24), ((0.2, 1.0), 24)])
def test_a_lesion_mask_is_cut_at_half_of_its_maximum_in_a_derivative(derivative, values, voxels):
    low, high = values
    write_nifti(lesion_of(derivative), np.where(LESION, high, low), AFFINE)
    found = bids.read_derivative(derivative)
    mask = bids.read_subject(found.subjects["p1"], ["T1w"]).lesion_mask
    assert np.array_equal(mask, LESION > 0)
    assert mask.sum() == voxels


def test_a_lesion_outside_the_brain_and_masks_of_one_voxel_are_found(derivative):
    write_nifti(lesion_of(derivative), np.indices(SHAPE)[0] == 0, AFFINE)
    brain = next((derivative / "sub-c1").glob("anat/*brain_mask.nii.gz"))
    one = np.zeros(SHAPE)
    one[4, 4, 4] = 1
    write_nifti(brain, one, AFFINE)
    problems = problems_of(derivative)
    assert len(problems) == 2
    assert any("none of the lesion lies in the brain" in problem for problem in problems)
    assert any("holds one voxel" in problem and "sub-c1" in problem for problem in problems)
    write_nifti(lesion_of(derivative), one, AFFINE)
    assert any("one voxel is marked" in note for note in bids.check(derivative).notes)


def test_broken_sidecars_are_found_before_a_subject_is_read(derivative):
    for label, text in (("c1", "{"), ("c2", "[1]")):
        path = next((derivative / f"sub-{label}").glob("anat/*T1w.nii.gz"))
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(text)
    problems = problems_of(derivative)
    assert len(problems) == 2
    assert all("cannot be read as JSON" in problem for problem in problems)
    assert bids.check(derivative).problems == problems


def test_the_same_scan_in_train_and_test_is_refused(derivative):
    for modality in ("T1w", "FLAIR"):
        (first,), (second,) = (
            list((derivative / f"sub-{label}").glob(f"anat/*{modality}.nii.gz")) for label in ("c1", "c2")
        )
        shutil.copy(first, second)
    problems = problems_of(derivative)
    assert len(problems) == 2
    for problem in problems:
        assert "sub-c2 is in split 'test', sub-c1 in 'train'" in problem


def test_of_several_spaces_one_can_be_chosen(derivative):
    for label in ("c1", "c2", "p1"):
        for path in list((derivative / f"sub-{label}" / "anat").iterdir()):
            shutil.copy(path, path.with_name(path.name.replace("2009aSym", "6Asym")))
    assert "choose one, as in --space MNI152NLin2009aSym" in problems_of(derivative)[0]
    assert bids.read_derivative(derivative, space="MNI152NLin6Asym").space == "MNI152NLin6Asym"
    assert bids.check(derivative, space="MNI152NLin6Asym").problems == []
    assert "there are: MNI152NLin2009aSym" in problems_of(derivative, space="T2")[0]


def test_controls_with_lesions_are_told_to_whoever_reads(derivative):
    shutil.copy(
        lesion_of(derivative),
        derivative / "sub-c1" / "anat" / lesion_of(derivative).name.replace("p1", "c1"),
    )
    assert any(
        "sub-c1: is a control, and has a lesion mask" in note
        for note in bids.read_derivative(derivative).notes
    )


def test_options_that_do_not_apply_are_refused(derivative, tmp_path_factory):
    with pytest.raises(InputError, match="choose among raw scans"):
        bids.check(derivative, session="1")
    raw = tmp_path_factory.mktemp("raw")
    write_nifti(raw / "sub-a" / "anat" / "sub-a_T1w.nii.gz", LESION, AFFINE)
    with pytest.raises(InputError, match="--space chooses among images in template space"):
        bids.check(raw, space="MNI")


def test_a_derivative_that_also_holds_native_images_is_one_when_it_says_so(derivative):
    write_nifti(derivative / "sub-c1" / "anat" / "sub-c1_desc-preproc_T1w.nii.gz", LESION, AFFINE)
    assert bids.check(derivative).kind == "raw"
    (derivative / "dataset_description.json").write_text(json.dumps({"DatasetType": "derivative"}))
    assert bids.check(derivative).kind == "derivative"


def test_a_sidecar_whose_content_was_not_fetched_is_named_and_not_taken_for_none(derivative):
    image = next((derivative / "sub-c1").glob("anat/*T1w.nii.gz"))
    image.with_name(image.name.replace(".nii.gz", ".json")).symlink_to(".git/annex/objects/x")
    (problem,) = problems_of(derivative)
    assert "T1w.json: a link to .git/annex/objects/x, which is not there" in problem
    assert bids.check(derivative).problems == [problem]


def test_a_whole_head_in_air_of_one_value_is_no_brain(tmp_path):
    volume = np.zeros((60, 60, 60), np.float32)
    volume[5:-5, 5:-5, 5:-5] = np.random.default_rng(0).uniform(1, 9, (50, 50, 50))
    for label in ("c1", "c2"):
        stem = f"sub-{label}/anat/sub-{label}_space-MNI152NLin2009aSym"
        write_nifti(tmp_path / f"{stem}_T1w.nii.gz", volume + (label == "c2"), np.diag([3, 3, 3, 1]))
    write_participants(tmp_path, [["sub-c1", "control"], ["sub-c2", "control"]], "participant_id\tgroup")
    assert all("no brain mask" in problem for problem in problems_of(tmp_path))  # 3.4 litres
    assert bids.check(tmp_path).notes == []
    for path in tmp_path.glob("sub-*/anat/*T1w.nii.gz"):
        write_nifti(path, read_nifti(path)[0], np.diag([2, 2, 2, 1]))
    notes = bids.read_derivative(tmp_path).notes  # 1 litre
    assert notes == tuple(f"sub-c{n}: no brain mask; the skull-stripped T1w gives it." for n in (1, 2))


def test_who_lacks_a_modality_is_told_how_to_do_without(derivative):
    next((derivative / "sub-c1").glob("anat/*FLAIR.nii.gz")).unlink()
    (problem,) = problems_of(derivative)
    assert problem.endswith("of sub-c1. Or do without: --modality T1w.")
    (problem,) = problems_of(derivative, modalities=["T1w", "FLAIR"])
    assert "--modality" not in problem
    assert bids.read_derivative(derivative, ["T1w"]).modalities == ("T1w",)
