import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.bids_files import AFFINE, SHAPE, raw_scan, write_participants, write_subject
from tfds_epilepsy import bids
from tfds_epilepsy.bids.voxels import read_grid
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import normalise, read_nifti, write_nifti


@pytest.fixture
def derivative(tmp_path):
    """Three controls and a patient."""
    for label in ("c1", "c2", "c3"):
        write_subject(tmp_path, label)
    write_subject(tmp_path, "p1", lesion=True)
    write_participants(
        tmp_path,
        [
            ["sub-c1", "control", "train", "31", "F", "A"],
            ["sub-c2", "hc", "train", "n/a", "M", "n/a"],
            ["sub-c3", "control", "test", "20-24", "", "A"],
            ["sub-p1", "fcd", "test", "40", "f", "B"],
        ],
    )
    return tmp_path


def problems_of(folder, **options):
    with pytest.raises(InputError) as error:
        bids.read_derivative(folder, **options)
    return error.value.problems


def test_a_derivative_is_found_with_groups_splits_and_modalities(derivative):
    found = bids.read_derivative(derivative)
    assert found.modalities == ("T1w", "FLAIR")
    assert found.splits == {"c1": "train", "c2": "train", "c3": "test", "p1": "test"}
    assert found.space == "MNI152NLin2009aSym"
    assert found.voxel_size == (2, 2, 3)
    who = {label: one.participant for label, one in found.subjects.items()}
    assert [who[label].group for label in ("c1", "c2", "p1")] == ["control", "control", "patient"]
    assert (who["c1"].age, who["c3"].age, who["c1"].sex, who["c2"].site) == (31, 22, "f", "")
    assert np.isnan(who["c2"].age)


def test_a_subject_is_normalised_inside_its_brain_and_keeps_its_lesion(derivative):
    found = bids.read_derivative(derivative)
    subject = bids.read_subject(found.subjects["p1"], found.modalities)
    raw = nib.load(found.subjects["p1"].images["FLAIR"]).get_fdata()
    assert np.allclose(subject.image[..., 1], normalise(raw, subject.brain_mask)[0])
    assert np.array_equal(np.unique(np.argwhere(subject.lesion_mask)[:, 0]), [4])
    assert np.allclose(subject.affine, AFFINE)


def test_without_a_mask_the_brain_is_what_a_stripped_image_shows(tmp_path):
    write_subject(tmp_path, "c1", mask=False)
    write_participants(tmp_path, [["sub-c1", "control", "train", "", "", ""]])
    found = bids.read_derivative(tmp_path)
    subject = bids.read_subject(found.subjects["c1"], found.modalities)
    assert subject.brain_mask[2:-2, 2:-2, 2:-2].all()
    assert subject.brain_mask.sum() == np.prod(np.array(SHAPE) - 4)


def test_an_image_whose_sidecar_says_normalised_is_taken_as_it_is(derivative):
    path = next((derivative / "sub-c1").glob("anat/*T1w.nii.gz"))
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text('{"Normalisation": {"method": "unit"}}')
    found = bids.read_derivative(derivative)
    subject = bids.read_subject(found.subjects["c1"], found.modalities)
    assert subject.image[..., 0].max() > 50


def test_without_a_split_column_a_subject_keeps_its_split_whoever_joins():
    controls = [bids.Participant(subject=f"s{i}", group="control") for i in range(2000)]
    splits = [bids.split_of(control) for control in controls]
    shares = {split: splits.count(split) / 2000 for split in bids.SPLITS}
    assert shares == {"train": pytest.approx(0.7, abs=0.03), "validation": pytest.approx(0.1, abs=0.02),
                      "test": pytest.approx(0.2, abs=0.03)}  # fmt: skip
    assert bids.split_of(bids.Participant(subject="s1", group="patient")) == "test"


def test_the_fingerprint_follows_contents_not_places(derivative, tmp_path_factory):
    before = bids.read_derivative(derivative).fingerprint
    copy = tmp_path_factory.mktemp("copy") / "data"
    shutil.copytree(derivative, copy)
    assert bids.read_derivative(copy).fingerprint == before
    write_subject(copy, "c1", seed=1)
    assert bids.read_derivative(copy).fingerprint != before


def test_all_problems_come_at_once_and_name_their_files(derivative):
    anat = derivative / "sub-c1" / "anat"
    next(anat.glob("*FLAIR.nii.gz")).unlink()
    t1w = next((derivative / "sub-c2").glob("anat/*T1w.nii.gz"))
    t1w.write_bytes(t1w.read_bytes()[:200])
    mask = next((derivative / "sub-c3").glob("anat/*brain_mask.nii.gz"))
    write_nifti(mask, np.zeros(SHAPE), AFFINE)
    lesion = next((derivative / "sub-p1").glob("anat/*lesion_mask.nii.gz"))
    write_nifti(lesion, np.indices((9, 10, 9))[0] == 4, AFFINE)
    problems = problems_of(derivative)
    assert len(problems) == 4
    for word, name in (
        ("no FLAIR", "sub-c1"),
        ("truncated", t1w.name),
        ("empty", mask.name),
        ("grid", lesion.name),
    ):
        assert any(word in problem and name in problem for problem in problems), (word, problems)


@pytest.mark.parametrize(
    ("volume", "word"),
    [(np.full(SHAPE, np.nan), "NaN"), (np.zeros((*SHAPE, 2)), "4-D"), (np.indices((8, 10, 8))[0], "grid")],
)
def test_a_volume_that_cannot_be_used_is_named(derivative, volume, word):
    path = next((derivative / "sub-c2").glob("anat/*FLAIR.nii.gz"))
    write_nifti(path, volume, AFFINE)
    (problem,) = problems_of(derivative)
    assert word in problem
    assert path.name in problem


def test_two_subjects_of_one_name_and_patients_in_training_are_refused(derivative):
    shutil.copytree(derivative / "sub-c1", derivative / "sub-C1")
    for path in (derivative / "sub-C1" / "anat").iterdir():
        path.rename(path.with_name(path.name.replace("sub-c1", "sub-C1")))
    groups = {"c1": "control", "C1": "control", "c2": "control", "c3": "martian", "p1": "fcd"}
    rows = [[f"sub-{label}", group, "train"] for label, group in groups.items()]
    write_participants(derivative, [*rows, rows[2]], "participant_id\tgroup\tsplit")
    problems = "\n".join(problems_of(derivative))
    for word in ("one name", "second row", "martian", "patient in split 'train'"):
        assert word in problems


def test_a_head_without_a_mask_is_not_taken_for_a_brain(tmp_path):
    write_subject(tmp_path, "c1", modalities=("T1w",), mask=False)
    path = next((tmp_path / "sub-c1").glob("anat/*T1w.nii.gz"))
    write_nifti(path, np.random.default_rng(0).uniform(1, 2, SHAPE), AFFINE)
    write_participants(tmp_path, [["sub-c1", "control", "train", "", "", ""]])
    (problem,) = problems_of(tmp_path)
    assert "skull-stripped" in problem


def test_raw_subjects_take_the_first_session_and_never_a_lesion_mask_for_an_image(tmp_path):
    for session in ("01", "02"):
        for name in ("acq-x_run-1_T1w.nii.gz", "FLAIR.nii", "FLAIR_roi.nii.gz", "pet.nii.gz"):
            raw_scan(tmp_path, f"sub-a_ses-{session}_{name}")
    raw_scan(tmp_path, "sub-b_T1w.nii.gz")
    lesion = raw_scan(tmp_path / "derivatives" / "masks", "sub-b_label-lesion_mask.nii.gz")
    a, b = bids.raw_subjects(tmp_path)
    assert {name: path.name for name, path in a.images.items()} == {
        "T1w": "sub-a_ses-01_acq-x_run-1_T1w.nii.gz",
        "FLAIR": "sub-a_ses-01_FLAIR.nii",
        "pet": "sub-a_ses-01_pet.nii.gz",
    }
    assert a.lesion_mask.name == "sub-a_ses-01_FLAIR_roi.nii.gz"
    assert b.lesion_mask == lesion
    assert [s.subject for s in bids.raw_subjects(tmp_path, ["sub-b"])] == ["b"]


def test_raw_problems_come_at_once(tmp_path):
    raw_scan(tmp_path, "sub-a_FLAIR.nii.gz")
    raw_scan(tmp_path, "sub-b_T1w.nii.gz", value=np.nan)
    with pytest.raises(InputError) as error:
        bids.raw_subjects(tmp_path, ["a", "b", "z"])
    problems = "\n".join(error.value.problems)
    for word in ("sub-a: no T1w", "NaN", "sub-z: no such subject"):
        assert word in problems


def test_a_session_that_holds_more_modalities_comes_first(tmp_path):
    for name in ("ses-1_T1w", "ses-2_T1w", "ses-2_FLAIR"):
        raw_scan(tmp_path, f"sub-a_{name}.nii.gz")
    (subject,) = bids.raw_subjects(tmp_path)
    assert subject.session == "2"
    assert any("session 2" in note for note in subject.notes)
    (subject,) = bids.raw_subjects(tmp_path, session="1")
    assert (subject.session, list(subject.images)) == ("1", ["T1w"])


def test_of_several_acquisitions_the_one_that_the_lesion_is_drawn_on_is_taken(tmp_path):
    fine = np.diag([3.0, 3, 3, 1])
    raw_scan(tmp_path, "sub-a_acq-iso08_T1w.nii.gz")
    raw_scan(tmp_path, "sub-a_acq-T2sel_FLAIR.nii.gz", (20, 20, 20), fine)
    raw_scan(tmp_path, "sub-a_acq-thick_FLAIR.nii.gz", (9, 9, 4), fine)
    raw_scan(tmp_path, "sub-a_acq-thick_FLAIR_roi.nii.gz", (9, 9, 4), fine)
    (subject,) = bids.raw_subjects(tmp_path)
    assert subject.images["FLAIR"].name == "sub-a_acq-thick_FLAIR.nii.gz"
    assert subject.lesion_modality == "FLAIR"
    (problem,) = [
        problem
        for problem in bids.check(tmp_path, modalities=["T1w"]).problems
        if "on the grid of none" in problem
    ]
    assert "acq-thick_FLAIR_roi" in problem


def test_acquisitions_can_be_told(tmp_path):
    for name in ("T1w", "acq-a_FLAIR", "acq-b_FLAIR"):
        raw_scan(tmp_path, f"sub-a_{name}.nii.gz")
    (subject,) = bids.raw_subjects(tmp_path, filters={"FLAIR": {"acq": "b"}})
    assert subject.images["FLAIR"].name == "sub-a_acq-b_FLAIR.nii.gz"


@pytest.mark.parametrize("place", ["", "derivatives/manual_masks"])
@pytest.mark.parametrize(
    "name",
    [
        *("T1w_roi", "FLAIR_roi", "label-lesion_roi", "label-lesion_mask", "desc-lesion_mask"),
        *("label-lesion_dseg", "space-T1w_label-lesion_mask", "desc-lesionManual_mask"),
    ],
)
def test_lesion_masks_of_any_usual_name_are_found_and_are_no_images(tmp_path, place, name):
    for image in ("T1w", "FLAIR"):
        raw_scan(tmp_path, f"sub-a_{image}.nii.gz", (9, 10, 8) if image == "T1w" else (5, 6, 7))
    raw_scan(tmp_path / place, f"sub-a_{name}.nii.gz", (5, 6, 7) if "FLAIR" in name else (9, 10, 8))
    (subject,) = bids.raw_subjects(tmp_path)
    assert {m: path.name for m, path in subject.images.items()} == {
        m: f"sub-a_{m}.nii.gz" for m in ("T1w", "FLAIR")
    }
    assert subject.lesion_mask == tmp_path / place / "sub-a" / "anat" / f"sub-a_{name}.nii.gz"
    assert subject.lesion_modality == ("FLAIR" if "FLAIR" in name else "T1w")
    assert not any(subject.others.values())


@pytest.mark.parametrize("name", ["label-lesion_T1w", "desc-lesion_T1w", "T1w_mask", "desc-brain_mask"])
def test_other_masks_are_neither_images_nor_lesions(tmp_path, name):
    raw_scan(tmp_path, "sub-a_acq-z_T1w.nii.gz")  # the mask comes first by name
    raw_scan(tmp_path, f"sub-a_{name}.nii.gz")
    (subject,) = bids.raw_subjects(tmp_path)
    assert subject.images["T1w"].name == "sub-a_acq-z_T1w.nii.gz"
    assert subject.lesion_mask is None


def test_a_lesion_mask_beside_the_image_comes_before_one_in_derivatives(tmp_path):
    for name in ("T1w", "T1w_roi"):
        raw_scan(tmp_path, f"sub-a_{name}.nii.gz")
    raw_scan(tmp_path / "derivatives/masks", "sub-a_label-lesion_mask.nii.gz")
    assert bids.raw_subjects(tmp_path)[0].lesion_mask.name == "sub-a_T1w_roi.nii.gz"
    raw_scan(tmp_path, "sub-a_desc-lesion_mask.nii.gz")
    with pytest.raises(InputError, match="2 lesion masks of sub-a; leave one"):
        bids.raw_subjects(tmp_path)


def test_sidecars_may_be_absent_in_upper_case_or_broken(derivative):
    paths = [next((derivative / f"sub-c{n}").glob("anat/*T1w.nii.gz")) for n in (1, 2, 3)]
    paths[0].with_name(paths[0].name.replace(".nii.gz", ".JSON")).write_text('{"Normalisation": {}}')
    paths[1].with_name(paths[1].name.replace(".nii.gz", ".json")).write_text("\ufeff{}")
    found = bids.read_derivative(derivative)
    highest = [bids.read_subject(found.subjects[f"c{n}"], ["T1w"]).image.max() for n in (1, 2, 3)]
    assert highest[0] > 50  # said to be normalised: taken as it is
    assert highest[1:] == [1, 1]
    paths[2].with_name(paths[2].name.replace(".nii.gz", ".json")).write_text("{")
    with pytest.raises(InputError, match=r"c3.*cannot be read as JSON"):
        bids.read_subject(found.subjects["c3"], ["T1w"])


def test_a_lesion_mask_in_another_space_is_left_alone(tmp_path):
    raw_scan(tmp_path, "sub-a_T1w.nii.gz")
    raw_scan(tmp_path, "sub-a_space-MNI152NLin6Asym_label-lesion_mask.nii.gz", (4, 4, 4))
    (subject,) = bids.raw_subjects(tmp_path)
    assert subject.lesion_mask is None


def test_other_contrasts_are_taken_by_name(tmp_path):
    for name in ("T1w", "SWI", "pet"):
        raw_scan(tmp_path, f"sub-a_{name}.nii.gz")
    (subject,) = bids.raw_subjects(tmp_path, modalities=["T1w", "SWI"])
    assert list(subject.images) == ["T1w", "SWI"]
    assert list(bids.raw_subjects(tmp_path)[0].images) == ["T1w", "pet"]


def test_upper_case_endings_and_file_names_of_another_subject(tmp_path):
    raw_scan(tmp_path, "sub-a_T1w.nii.gz")
    anat = tmp_path / "sub-a" / "anat"
    (anat / "sub-a_T1w.nii.gz").rename(anat / "sub-a_T1w.NII.GZ")
    assert [s.subject for s in bids.raw_subjects(tmp_path)] == ["a"]
    shutil.copy(anat / "sub-a_T1w.NII.GZ", anat / "sub-b_FLAIR.nii.gz")
    with pytest.raises(InputError, match=r"sub-b_FLAIR.*does not say sub-a"):
        bids.raw_subjects(tmp_path)


def test_groups_by_other_columns_and_words(tmp_path):
    for label in ("a", "b"):
        raw_scan(tmp_path, f"sub-{label}_T1w.nii.gz")
    write_participants(
        tmp_path,
        [["a", "Typ", "n/a", "89+"], ["sub-b", "Case", "M", "x"]],
        "participant_id\tCohort\tGender\tAGE",
    )
    # No column says the group: it stays unknown.
    a, b = (one.participant for one in bids.raw_subjects(tmp_path))
    assert (a.group, b.group, a.sex, b.sex, a.age) == ("", "", "", "m", 89)
    assert np.isnan(b.age)
    a, b = bids.raw_subjects(tmp_path, group_column="cohort", groups={"typ": "control"})
    assert (a.participant.group, b.participant.group) == ("control", "patient")
    with pytest.raises(InputError, match="'Typ' of sub-a is unknown"):
        bids.raw_subjects(tmp_path, group_column="cohort")
    with pytest.raises(InputError, match="no column 'arm'"):
        bids.raw_subjects(tmp_path, group_column="arm")


def test_check_lists_every_subject_and_every_problem_of_raw_scans(tmp_path):
    raw_scan(tmp_path, "sub-a_T1w.nii.gz")
    raw_scan(tmp_path, "sub-b_T1w.nii.gz", value=np.nan)
    raw_scan(tmp_path, "sub-b_FLAIR.nii.gz")
    raw_scan(tmp_path, "sub-b2_FLAIR.nii.gz")
    found = bids.check(tmp_path)
    assert found.kind == "raw"
    assert [row["subject"] for row in found.rows] == ["a", "b", "b2"]
    assert [row["problems"] for row in found.rows] == ["0", "1", "1"]
    assert [row["FLAIR"] for row in found.rows] == ["n/a", "FLAIR", "FLAIR"]
    assert len(found.problems) == 2


def test_check_shows_sessions_runs_and_acquisitions_that_were_not_taken(tmp_path):
    for name in ("ses-1_T1w", "ses-2_run-1_T1w", "ses-2_run-2_T1w", "ses-2_acq-a_FLAIR", "ses-2_acq-b_FLAIR"):
        raw_scan(tmp_path, f"sub-a_{name}.nii.gz")
    raw_scan(tmp_path, "sub-b_ses-1_T1w.nii.gz")
    first, second = bids.check(tmp_path).rows
    assert first["session"] == "2 (1)"
    assert first["T1w"] == "run-1_T1w (run-2_T1w, ses-1_T1w)"
    assert first["FLAIR"] == "acq-a_FLAIR (acq-b_FLAIR)"
    assert (second["session"], second["T1w"], second["FLAIR"]) == ("1", "T1w", "n/a")
    told = bids.check(tmp_path, session="2", filters={"FLAIR": {"acq": "b"}})
    assert told.rows[0]["FLAIR"] == "acq-b_FLAIR (acq-a_FLAIR)"
    assert any("no T1w" in problem and "sub-b" in problem for problem in told.problems)


def test_check_of_a_derivative_and_its_training_controls(derivative):
    (problem,) = bids.check(derivative, require_controls=True).problems
    assert "2 controls in split 'train', at least 3" in problem
    table = derivative / "participants.tsv"
    table.write_text(table.read_text().replace("control\ttest", "control\ttrain"))
    found = bids.check(derivative, require_controls=True)
    assert (found.kind, found.problems) == ("derivative", [])
    assert [row["group"] for row in found.rows] == ["control"] * 3 + ["patient"]
    write_participants(
        derivative, [[f"sub-{s}", "control", "test", "", "", ""] for s in ("c1", "c2", "c3", "p1")]
    )
    assert bids.check(derivative).problems == []
    (problem,) = bids.check(derivative, require_controls=True).problems
    assert "0 controls in split 'train'" in problem


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
def test_a_header_alone_gives_the_grid_that_the_voxels_lie_on(tmp_path, codes):
    image = nib.Nifti1Image(np.ones(SHAPE, np.float32), AFFINE)
    turn = nib.orientations.axcodes2ornt(codes)
    nib.save(image.as_reoriented(turn), tmp_path / "a.nii.gz")
    header, (voxels, affine) = read_grid(tmp_path / "a.nii.gz"), read_nifti(tmp_path / "a.nii.gz")
    assert header.shape == voxels.shape == SHAPE
    np.testing.assert_allclose(header.affine, affine)


def test_raw_scans_are_no_derivative(tmp_path):
    raw_scan(tmp_path, "sub-a_T1w.nii.gz")
    assert "epizoo preprocess" in problems_of(tmp_path)[0]
    with pytest.raises(InputError, match=r"no subject folder"):
        bids.read_derivative(tmp_path / "sub-a")


def test_stripped_brains_may_hold_negative_values_and_holes():
    volume = np.zeros((12, 12, 12), np.float32)
    volume[3:9, 3:9, 3:9] = -1.0
    volume[5, 5, 5] = 0.0
    volume[0, 0, 0] = 3.0  # a speck
    mask = bids.stripped_mask(volume)
    assert mask.sum() == 6**3
    assert mask[3:9, 3:9, 3:9].all()


def test_real_lesion_patients_are_read(tmp_path):
    data = os.environ.get("EPIZOO_TEST_DATA")
    if not data or not Path(data, "open_ms").is_dir():
        pytest.skip("EPIZOO_TEST_DATA does not hold open_ms")
    for name in ("sub-19", "participants.tsv"):
        (tmp_path / name).symlink_to(Path(data, "open_ms", name).resolve())
    found = bids.read_derivative(tmp_path)
    assert found.modalities == ("T1w", "FLAIR")
    assert set(found.splits.values()) == {"test"}
    subject = bids.read_subject(found.subjects["19"], found.modalities)
    assert subject.image.shape == (182, 218, 182, 2)
    assert 1.0e6 < subject.brain_mask.sum() < 1.4e6  # mm^3
    inside, outside = subject.brain_mask & subject.lesion_mask, subject.brain_mask & ~subject.lesion_mask
    assert subject.image[inside, 1].mean() > 1.3 * subject.image[outside, 1].mean()  # bright on FLAIR
    assert not subject.image[~subject.brain_mask].any()


def test_huge_volumes_are_judged_by_their_header(tmp_path, monkeypatch):
    path = raw_scan(tmp_path, "sub-a_T1w.nii.gz", affine=np.diag([0.018, 0.018, 0.018, 1]))
    monkeypatch.setattr("tfds_epilepsy.bids.voxels.read_nifti", lambda path: pytest.fail("voxels are read"))
    (problem,) = bids.check(tmp_path).problems
    assert f"{path}: voxels of 0.018 x 0.018 x 0.018 mm" in problem
