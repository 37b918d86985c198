import shutil

import nibabel as nib
import numpy as np
import pytest

from tfds_epilepsy import bids
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import normalise, write_nifti

AFFINE = np.diag([2.0, 2, 3, 1])
SHAPE = (9, 10, 8)


def write_subject(folder, label, modalities=("T1w", "FLAIR"), lesion=False, mask=True, seed=0):
    rng = np.random.default_rng([seed, *label.encode()])
    brain = np.zeros(SHAPE, bool)
    brain[2:-2, 2:-2, 2:-2] = True
    stem = folder / f"sub-{label}" / "anat" / f"sub-{label}_space-MNI152NLin2009aSym"
    for modality in modalities:
        write_nifti(f"{stem}_desc-preproc_{modality}.nii.gz", rng.uniform(50, 100, SHAPE) * brain, AFFINE)
    if mask:
        write_nifti(f"{stem}_desc-brain_mask.nii.gz", brain, AFFINE, dtype=np.uint8)
    if lesion:
        write_nifti(
            f"{stem}_label-lesion_mask.nii.gz", brain & (np.indices(SHAPE)[0] == 4), AFFINE, dtype=np.uint8
        )


def write_participants(folder, rows, header="participant_id\tgroup\tsplit\tage\tsex\tsite"):
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join([header, *("\t".join(row) for row in rows)]) + "\n"
    (folder / "participants.tsv").write_text(text, encoding="utf-8-sig")


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
    who = {label: subject.participant for label, subject in found.subjects.items()}
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
    controls = [bids.Participant(f"s{i}", "control") for i in range(2000)]
    splits = [bids.split_of(control) for control in controls]
    shares = {split: splits.count(split) / 2000 for split in bids.SPLITS}
    assert shares == {"train": pytest.approx(0.7, abs=0.03), "validation": pytest.approx(0.1, abs=0.02),
                      "test": pytest.approx(0.2, abs=0.03)}  # fmt: skip
    assert bids.split_of(bids.Participant("s1", "patient")) == "test"


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
    write_nifti(lesion, np.ones((9, 10, 9)), AFFINE)
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
    [(np.full(SHAPE, np.nan), "NaN"), (np.zeros((*SHAPE, 2)), "4-D"), (np.ones((8, 10, 8)), "grid")],
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
    for word in ("one name", "stands twice", "martian", "patient in the train split"):
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
        anat = tmp_path / "sub-a" / f"ses-{session}" / "anat"
        stem = f"sub-a_ses-{session}"
        write_nifti(anat / f"{stem}_acq-x_run-1_T1w.nii.gz", np.ones(SHAPE), AFFINE)
        write_nifti(anat / f"{stem}_FLAIR.nii", np.ones(SHAPE), AFFINE)
        write_nifti(anat / f"{stem}_FLAIR_roi.nii.gz", np.ones(SHAPE), AFFINE)
        write_nifti(
            tmp_path / "sub-a" / f"ses-{session}" / "pet" / f"{stem}_pet.nii.gz", np.ones(SHAPE), AFFINE
        )
    write_nifti(tmp_path / "sub-b" / "anat" / "sub-b_T1w.nii.gz", np.ones(SHAPE), AFFINE)
    lesion = tmp_path / "derivatives" / "masks" / "sub-b" / "anat" / "sub-b_label-lesion_mask.nii.gz"
    write_nifti(lesion, np.ones(SHAPE), AFFINE)
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
    write_nifti(tmp_path / "sub-a" / "anat" / "sub-a_FLAIR.nii.gz", np.ones(SHAPE), AFFINE)
    write_nifti(tmp_path / "sub-b" / "anat" / "sub-b_T1w.nii.gz", np.full(SHAPE, np.nan), AFFINE)
    with pytest.raises(InputError) as error:
        bids.raw_subjects(tmp_path, ["a", "b", "z"])
    problems = "\n".join(error.value.problems)
    for word in ("sub-a: no T1w", "NaN", "no folder sub-z"):
        assert word in problems
