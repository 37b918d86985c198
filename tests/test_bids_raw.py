import re

import nibabel as nib
import numpy as np
import pytest

from tests.bids_files import AFFINE, SHAPE, raw_scan, write_participants
from tfds_epilepsy import bids
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import write_nifti


def only(folder, **options):
    (subject,) = bids.raw_subjects(folder, **options)
    return subject


def problem_of(folder, **options):
    with pytest.raises(InputError) as error:
        bids.raw_subjects(folder, **options)
    (problem,) = error.value.problems
    return problem


def moved(mm):
    affine = AFFINE.copy()
    affine[0, 3] += mm
    return affine


def test_hidden_files_are_no_scans(tmp_path):
    path = raw_scan(tmp_path, "sub-a_T1w.nii.gz")
    (path.parent / "._sub-a_T1w.nii.gz").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    (path.parent / "._sub-a_T1w_roi.nii.gz").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    subject = only(tmp_path)
    assert (subject.images["T1w"], subject.lesion_mask) == (path, None)


def test_labels_that_look_like_patterns_name_one_folder(tmp_path):
    for label in ("a", "[a]"):
        raw_scan(tmp_path, f"sub-{label}_T1w.nii.gz")
    assert [one.images["T1w"].parent.parent.name for one in bids.raw_subjects(tmp_path)] == [
        "sub-[a]",
        "sub-a",
    ]


@pytest.mark.parametrize("odd", ["ce-gad", "acq-localizer", "acq-AAHScout", "part-phase", "part-imag"])
def test_contrast_enhanced_localizer_and_phase_images_come_after_plain_ones(tmp_path, odd):
    raw_scan(tmp_path, f"sub-a_{odd}_T1w.nii.gz")
    plain = raw_scan(tmp_path, "sub-a_run-1_T1w.nii.gz")
    assert only(tmp_path).images["T1w"] == plain
    plain.unlink()
    if odd.startswith("part"):
        assert "no T1w" in problem_of(tmp_path)
    else:
        subject = only(tmp_path)
        assert any("there is no plain T1w" in note for note in subject.notes)


@pytest.mark.parametrize(
    "name",
    ["lesion", "lesion_mask", "desc-T1lesion_mask", "label-L_mask", "desc-fcd_mask", "T1w_label-lesion_roi"],
)
def test_lesion_masks_of_other_common_names_are_found(tmp_path, name):
    raw_scan(tmp_path, "sub-a_T1w.nii.gz")
    mask = write_nifti(
        tmp_path / "sub-a" / "anat" / f"sub-a_{name}.nii.gz", np.indices(SHAPE)[0] == 4, AFFINE
    )
    assert only(tmp_path).lesion_mask == mask


@pytest.mark.parametrize("name", ["label-hippocampus_roi", "desc-nonlesional_mask", "label-GM_probseg"])
def test_masks_of_something_else_are_no_lesions(tmp_path, name):
    raw_scan(tmp_path, "sub-a_T1w.nii.gz")
    raw_scan(tmp_path, f"sub-a_{name}.nii.gz")
    assert only(tmp_path).lesion_mask is None


def test_the_session_with_the_lesion_mask_is_taken(tmp_path):
    for name in ("ses-1_T1w", "ses-1_FLAIR", "ses-2_T1w", "ses-2_T1w_roi"):
        raw_scan(tmp_path, f"sub-a_{name}.nii.gz")
    assert only(tmp_path).session == "2"
    first = only(tmp_path, session="1")
    assert first.lesion_mask is None
    assert any("sub-a_ses-2_T1w_roi.nii.gz is not taken; it is of session 2" in note for note in first.notes)


def test_a_session_without_what_is_needed_is_not_taken_for_its_mask(tmp_path):
    for name in ("ses-1_T1w", "ses-2_FLAIR", "ses-2_FLAIR_roi"):
        raw_scan(tmp_path, f"sub-a_{name}.nii.gz")
    subject = only(tmp_path)
    assert subject.session == "1"
    assert any("is not taken; it is of session 2" in note for note in subject.notes)


def test_a_mask_without_a_session_belongs_to_the_one_whose_grid_it_shares(tmp_path):
    raw_scan(tmp_path, "sub-a_ses-1_T1w.nii.gz")
    raw_scan(tmp_path, "sub-a_ses-2_T1w.nii.gz", affine=moved(7))
    mask = raw_scan(tmp_path / "derivatives/masks", "sub-a_label-lesion_mask.nii.gz", affine=moved(7))
    subject = only(tmp_path)
    assert (subject.session, subject.lesion_mask, subject.lesion_modality) == ("2", mask, "T1w")


def test_a_mask_of_no_grid_is_a_problem_also_without_a_session(tmp_path):
    raw_scan(tmp_path, "sub-a_ses-1_T1w.nii.gz")
    raw_scan(tmp_path / "derivatives/masks", "sub-a_label-lesion_mask.nii.gz", affine=moved(7))
    assert "on the grid of none of the images" in problem_of(tmp_path)


def test_masks_that_are_not_taken_get_a_note(tmp_path):
    raw_scan(tmp_path, "sub-a_T1w.nii.gz")
    raw_scan(tmp_path, "sub-a_space-MNI152NLin6Asym_label-lesion_mask.nii.gz", (4, 4, 4))
    assert any("lies in space MNI152NLin6Asym" in note for note in only(tmp_path).notes)
    raw_scan(tmp_path, "sub-a_T1w_roi.nii.gz")
    raw_scan(tmp_path / "derivatives/masks", "sub-a_label-lesion_mask.nii.gz")
    (note,) = only(tmp_path).notes
    assert "label-lesion_mask.nii.gz is not taken; the one beside the image is" in note


def test_a_control_with_a_lesion_mask_gets_a_note(tmp_path):
    for name in ("T1w", "T1w_roi"):
        raw_scan(tmp_path, f"sub-a_{name}.nii.gz")
    write_participants(tmp_path, [["sub-a", "control"]], "participant_id\tgroup")
    assert only(tmp_path).notes == ("sub-a: is a control, and has a lesion mask (sub-a_T1w_roi.nii.gz).",)


def test_a_mask_named_after_an_image_whose_grid_it_does_not_share_falls_back_to_none(tmp_path):
    raw_scan(tmp_path, "sub-a_T1w.nii.gz")
    raw_scan(tmp_path, "sub-a_FLAIR.nii.gz", affine=moved(7))
    raw_scan(tmp_path, "sub-a_FLAIR_roi.nii.gz")
    assert "named after the FLAIR" in problem_of(tmp_path)


def test_a_mask_that_fits_two_images_and_names_none_is_said_to_be_the_first_ones(tmp_path):
    for name in ("T1w", "FLAIR", "label-lesion_mask"):
        raw_scan(tmp_path, f"sub-a_{name}.nii.gz")
    subject = only(tmp_path)
    assert subject.lesion_modality == "T1w"
    assert any("lies on the grids of T1w, FLAIR" in note for note in subject.notes)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (np.zeros(SHAPE), "the lesion mask is empty"),
        (np.ones(SHAPE), "every voxel is lesion"),
        (np.arange(np.prod(SHAPE)).reshape(SHAPE) == 9, "one voxel is marked"),
        (np.indices(SHAPE)[0] % 4, "3 labels"),
        (np.indices(SHAPE)[0] == 0, "none of the lesion lies in the brain"),
    ],
)
def test_a_lesion_mask_that_marks_no_lesion_is_a_problem(tmp_path, content, says):
    brain = np.zeros(SHAPE)
    brain[2:-2, 2:-2, 2:-2] = np.random.default_rng(0).uniform(1, 2, np.array(SHAPE) - 4)
    anat = tmp_path / "sub-a" / "anat"
    write_nifti(anat / "sub-a_T1w.nii.gz", brain, AFFINE)
    write_nifti(anat / "sub-a_T1w_roi.nii.gz", content, AFFINE)
    assert says in problem_of(tmp_path)


def test_constant_flat_and_sheared_images_are_found_at_once(tmp_path):
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.5
    raw_scan(tmp_path, "sub-a_T1w.nii.gz", value=0)
    raw_scan(tmp_path, "sub-b_T1w.nii.gz", (9, 10, 1))
    path = raw_scan(tmp_path, "sub-c_T1w.nii.gz")
    nib.save(nib.Nifti1Image(nib.load(path).get_fdata(), sheared), path)
    problems = bids.check(tmp_path).problems
    for label, word in (("a", "every voxel is 0"), ("b", "single slice"), ("c", "sheared")):
        assert any(f"sub-{label}_T1w" in problem and word in problem for problem in problems), problems
    assert len(problems) == 3


def test_broken_json_is_found_in_raw_data_sets(tmp_path):
    raw_scan(tmp_path, "sub-a_T1w.nii.gz")
    (tmp_path / "sub-a" / "anat" / "sub-a_T1w.json").write_text("{")
    (tmp_path / "dataset_description.json").write_text("[]")
    problems = bids.check(tmp_path).problems
    assert len(problems) == 2
    assert all("cannot be read as JSON" in problem for problem in problems)


def test_the_same_scan_under_two_labels_of_different_splits_is_refused(tmp_path):
    first = raw_scan(tmp_path, "sub-a_T1w.nii.gz")
    image = nib.load(first)
    again = tmp_path / "sub-b" / "anat" / "sub-b_T1w.nii"
    again.parent.mkdir(parents=True)
    nib.save(image, again)  # the same voxels in other bytes
    header = "participant_id\tgroup\tsplit"
    write_participants(tmp_path, [["sub-a", "control", "train"], ["sub-b", "control", "test"]], header)
    assert "the same scan as" in problem_of(tmp_path)
    write_participants(tmp_path, [["sub-a", "control", "train"], ["sub-b", "control", "train"]], header)
    assert any("the same scan" in note for one in bids.raw_subjects(tmp_path) for note in one.notes)


def test_one_scan_as_two_modalities_is_refused(tmp_path):
    path = raw_scan(tmp_path, "sub-a_T1w.nii.gz")
    path.with_name("sub-a_FLAIR.nii.gz").write_bytes(path.read_bytes())
    assert "T1w and FLAIR of sub-a must differ" in problem_of(tmp_path)


@pytest.mark.parametrize(
    "wanted", [{"FLAIR": {"acq": "c"}}, {"FLAIRE": {"acq": "a"}}, {"FLAIR": {"acqu": "a"}}]
)
def test_a_filter_that_matches_nothing_is_an_error(tmp_path, wanted):
    for name in ("T1w", "acq-a_FLAIR", "acq-b_FLAIR"):
        raw_scan(tmp_path, f"sub-a_{name}.nii.gz")
    assert "matches none of" in problem_of(tmp_path, filters=wanted)


def test_a_file_of_another_session_than_its_folder_is_named(tmp_path):
    path = raw_scan(tmp_path, "sub-a_ses-1_T1w.nii.gz")
    path.with_name("sub-a_ses-2_FLAIR.nii.gz").write_bytes(path.read_bytes())
    assert "does not say ses-1" in problem_of(tmp_path)


@pytest.mark.parametrize(
    ("shape", "size", "word"),
    [
        ((9, 10, 8), (0.002, 0.002, 0.003), r"voxels of 0\.002 x 0\.002 x 0\.003 mm; .* metres"),
        ((9, 10, 8), (2, 2, 30), "voxels of 2 x 2 x 30 mm"),
        ((9, 10, 8), (2000, 2000, 3000), "voxels of"),
        ((80, 10, 8), (10, 10, 10), "field of view of 800 x 100 x 80 mm; heads fill 10 to 700 mm"),
        ((4, 10, 8), (1, 2, 3), "field of view of 4 x 20 x 24 mm"),
    ],
)
def test_voxels_and_fields_of_view_that_no_head_has_are_refused(tmp_path, shape, size, word):
    raw_scan(tmp_path, "sub-a_T1w.nii.gz", shape, np.diag([*size, 1.0]))
    raw_scan(tmp_path, "sub-b_T1w.nii.gz", (180, 60, 60), np.diag([0.2, 0.5, 10, 1]))  # fine, and thick
    (problem,) = bids.check(tmp_path).problems
    assert re.search(rf"sub-a_T1w\.nii\.gz: .*{word}", problem)
    with pytest.raises(InputError, match=word):
        bids.raw_subjects(tmp_path)


@pytest.mark.parametrize("odd", ["inv-1", "inv-02"])
def test_an_inversion_of_an_mp2rage_comes_after_the_plain_image(tmp_path, odd):
    raw_scan(tmp_path, f"sub-a_{odd}_T1w.nii.gz")
    subject = only(tmp_path)
    assert any(
        f"is one inversion of several ({odd}); there is no plain T1w" in note for note in subject.notes
    )
    plain = raw_scan(tmp_path, "sub-a_rec-z_T1w.nii.gz")
    assert only(tmp_path).images["T1w"] == plain


def test_a_t1w_that_is_there_under_another_name_or_format_is_told(tmp_path):
    raw_scan(tmp_path, "sub-a_UNIT1.nii.gz")
    assert "no T1w (*_T1w.nii.gz) of sub-a: sub-a_UNIT1.nii.gz may be named so." in problem_of(tmp_path)
    for name in ("sub-a_T1w.mgz", "sub-a_T1w.dcm", "sub-a_T1w.json", "._sub-a_T1w.mgz"):
        (tmp_path / "sub-a" / "anat" / name).write_bytes(b"x")
    problem = problem_of(tmp_path)
    assert "of sub-a: sub-a_T1w.dcm is no NIfTI, sub-a_T1w.mgz is no NIfTI, sub-a_UNIT1.nii.gz" in problem


@pytest.mark.parametrize("name", ["a_old", "a_ses-1"])
def test_a_folder_whose_label_cannot_be_one_is_told_once(tmp_path, name):
    raw_scan(tmp_path, "sub-a_T1w.nii.gz")
    raw_scan(tmp_path / "x", "sub-a_T1w.nii.gz")
    (tmp_path / "x" / "sub-a").rename(tmp_path / f"sub-{name}")
    assert "a label holds no '_'" in problem_of(tmp_path)
    write_participants(tmp_path, [["sub-a", "hc"], [f"sub-{name}", "hc"]], "participant_id\tgroup")
    assert len(bids.check(tmp_path).problems) == 1  # its row has a folder
    assert only(tmp_path, participant_labels=["a"]).subject == "a"


def test_content_of_sidecars_that_was_not_fetched_is_no_problem_of_raw_scans(tmp_path):
    path = raw_scan(tmp_path, "sub-a_T1w.nii.gz")
    path.with_name("sub-a_T1w.json").symlink_to("../../.git/annex/objects/x")
    assert bids.check(tmp_path).problems == []
