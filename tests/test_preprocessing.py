"""From raw scans to a derivative in template space: what it holds, what it refuses, how it goes on."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from tests.heads import turned, whole_head
from tfds_epilepsy import bids, preprocessing, quality, registration
from tfds_epilepsy.bids import RawSubject, read_derivative, read_subject
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import hold
from tfds_epilepsy.preprocessing import Options, preprocess, preprocess_subjects, to_native
from tfds_epilepsy.regions import cerebrum_mask
from tfds_epilepsy.registration import Scan, resample
from tfds_epilepsy.volumes import load_template, normalise, read_nifti, write_nifti

pytest.importorskip("ants", reason="antspyx (the preprocessing extra) is not installed")

SPACE = "space-MNI152NLin2009aSym"
FIGURES = {"Quality": {"MaskDice": 0.97, "TemplateCorrelation": 0.8, "MutualInformationWithT1w": {}}}
LESION = (30.0, 20.0, 30.0)  # millimetres in the template: right frontal


def save(path: Path, scan: Scan, codes: str, dtype=np.float32) -> None:
    """Write with the axes of the file running along ``codes``, as scanners do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(scan.array.astype(dtype), scan.affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(scan.affine), nib.orientations.axcodes2ornt(codes)
    )
    nib.save(image.as_reoriented(turn), path)


def native(array: np.ndarray, move: np.ndarray, spacing: tuple[float, ...]) -> Scan:
    """An array of the template's grid as a scanner would have seen it after ``move``."""
    template = load_template(2)
    shape = np.ceil(np.array((170, 210, 180)) / spacing).astype(int)
    grid = np.diag([*spacing, 1.0])
    grid[:3, 3] = move[:3, 3] + (0, -17, 6) - np.array(spacing) * (shape - 1) / 2
    return resample(
        Scan(array.astype(np.float32), move @ template.affine), Scan(np.zeros(shape, np.float32), grid)
    )


def make_raw(folder: Path) -> Path:
    """Three people; the second has her head on, and a stripped FLAIR elsewhere with a lesion drawn on it."""
    template = load_template(2)
    rng = np.random.default_rng(0)
    world = nib.affines.apply_affine(template.affine, np.moveaxis(np.indices(template.shape), 0, -1))
    lesion = np.linalg.norm(world - LESION, axis=-1) < 12
    t1 = 900 * template.t1 * template.brain_mask
    flair = (700 * template.gm + 560 * template.wm + 100 * template.csf + 300 * lesion) * template.brain_mask
    for label, codes in (("01", "LAS"), ("02", "PIR"), ("03", "RAS")):
        move = turned(float(rng.uniform(-6, 6)), rng.uniform(-15, 15, 3)) @ np.diag([1.05, 0.97, 1.02, 1])
        anat = folder / f"sub-{label}" / "anat"
        if label != "02":
            save(anat / f"sub-{label}_T1w.nii.gz", native(t1, move, (3.0, 3.0, 3.4)), codes)
        else:
            save(anat / "sub-02_T1w.nii.gz", whole_head(move, (3.0, 3.0, 3.4))[0], codes)
            elsewhere = turned(4, (6, -5, 8)) @ move
            save(anat / "sub-02_FLAIR.nii.gz", native(flair, elsewhere, (2.6, 2.6, 5.0)), "LPS")
            drawn = native(lesion, elsewhere, (2.6, 2.6, 5.0))
            save(anat / "sub-02_FLAIR_roi.nii.gz", drawn.with_array(drawn.array > 0.5), "LPS", np.uint8)
    (folder / "participants.tsv").write_text(
        "participant_id\tgroup\tage\tgender\nsub-01\thc\t31\tF\nsub-02\tfcd\tn/a\tM\nsub-03\thc\t40\tM\n"
    )
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return make_raw(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def derivative(raw, tmp_path_factory) -> Path:
    """The first two, really preprocessed, with fewer iterations than in earnest."""
    out = tmp_path_factory.mktemp("out") / "derivative"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registration, "N4_ITERATIONS", (6, 3))
        patch.setattr(registration, "SYN_ITERATIONS", (15, 3, 0))
        patch.setattr(registration, "HEAD_SYN_ITERATIONS", (10, 0, 0))
        patch.setattr(registration, "RIGID_ITERATIONS", (60, 20, 0))
        return preprocess(raw, out, participant_labels=["sub-01", "02"])


@pytest.fixture
def counted(monkeypatch):
    """In place of a subject's work: a mark; the labels that were worked on."""
    done: list[str] = []

    def work(subject, anat, options):
        anat.mkdir(parents=True)
        (anat / "mark").write_text(subject.subject)
        done.append(subject.subject)
        return FIGURES

    monkeypatch.setattr(preprocessing, "_preprocess_subject", work)
    return done


def volume(folder: Path, subject: str, ending: str):
    (path,) = (folder / f"sub-{subject}" / "anat").glob(f"*{ending}")
    return read_nifti(path)


def test_every_volume_lies_on_the_template_grid(derivative):
    template = load_template(2)
    files = list(derivative.glob("sub-*/anat/*.nii.gz"))
    assert len(files) == 2 + 4  # T1w and brain mask; T1w, FLAIR, brain mask, lesion mask
    for path in files:
        image = nib.load(path)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert image.shape == template.shape
        np.testing.assert_array_equal(image.affine, template.affine)
        sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        assert sidecar


def test_brains_of_any_orientation_meet_the_template(derivative):
    template = load_template(2)
    for subject in ("01", "02"):
        mask = volume(derivative, subject, "desc-brain_mask.nii.gz")[0] > 0
        t1 = volume(derivative, subject, "desc-preproc_T1w.nii.gz")[0]
        dice = 2 * (mask & template.brain_mask).sum() / (mask.sum() + template.brain_mask.sum())
        assert dice > 0.95
        assert np.corrcoef(t1[mask], template.t1[mask])[0, 1] > 0.75
        assert t1.min() == 0
        assert t1.max() == 1
        assert (t1[~mask] == 0).all()


def test_flair_follows_the_t1w_though_it_was_scanned_elsewhere(derivative):
    template = load_template(2)
    mask = volume(derivative, "02", "desc-brain_mask.nii.gz")[0] > 0
    flair = volume(derivative, "02", "desc-preproc_FLAIR.nii.gz")[0]
    expected = 700 * template.gm + 560 * template.wm + 100 * template.csf
    assert np.corrcoef(flair[mask], expected[mask])[0, 1] > 0.7


def test_a_lesion_drawn_on_the_flair_lands_where_it_was(derivative):
    lesion, affine = volume(derivative, "02", "label-lesion_mask.nii.gz")
    assert set(np.unique(lesion)) == {0, 1}
    centre = nib.affines.apply_affine(affine, np.argwhere(lesion > 0)).mean(axis=0)
    assert np.linalg.norm(centre - LESION) < 3
    assert lesion.sum() * 8 == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.25)


@pytest.fixture
def known_moves(monkeypatch):
    """In place of the search for transforms: the head lies as the template's, and moves before the FLAIR."""
    move = turned(4, (10.0, -4.0, 3.0))

    def to_template(brain, forward, inverse):
        for path in (forward, inverse):
            registration._write_affine(np.eye(4), path)

    def to_t1(fixed, mask, moving, path):
        registration._write_affine(move, path)
        return 0.5

    monkeypatch.setattr(preprocessing, "register", to_template)
    monkeypatch.setattr(preprocessing, "register_rigid", to_t1)
    monkeypatch.setattr(preprocessing, "correct_bias", lambda scan, mask: scan)
    return move


@pytest.mark.parametrize(
    ("drawn_on", "name", "codes"),
    [
        ("FLAIR", "FLAIR_roi", "RAS"),
        ("FLAIR", "space-FLAIR_label-lesion_mask", "LPS"),
        ("T1w", "T1w_roi", "RAS"),
        ("T1w", "label-lesion_mask", "SAL"),
    ],
)
def test_a_lesion_goes_with_its_image_though_headers_are_equal_and_the_head_moved(
    tmp_path, known_moves, drawn_on, name, codes
):
    template = load_template(2)
    world = nib.affines.apply_affine(template.affine, np.moveaxis(np.indices(template.shape), 0, -1))
    lesion = np.linalg.norm(world - LESION, axis=-1) < 12
    here = Scan(template.t1 * template.brain_mask, template.affine)

    def moved(scan: Scan) -> Scan:
        return resample(Scan(scan.array, known_moves @ scan.affine), here)

    drawn = here.with_array(lesion)
    anat = tmp_path / "raw/sub-01/anat"
    save(anat / "sub-01_T1w.nii.gz", here, "RAS")
    save(anat / "sub-01_FLAIR.nii.gz", moved(here), "RAS")
    drawn = moved(drawn) if drawn_on == "FLAIR" else drawn
    save(anat / f"sub-01_{name}.nii.gz", drawn.with_array(drawn.array > 0.5), codes, np.uint8)
    out = preprocess(tmp_path / "raw", tmp_path / "out")
    found = volume(out, "01", "label-lesion_mask.nii.gz")[0] > 0
    assert 2 * (found & lesion).sum() / (found.sum() + lesion.sum()) > 0.95


def test_a_lesion_that_lies_on_no_image_is_not_moved_by_some_transform(tmp_path, known_moves):
    template = load_template(2)
    anat = tmp_path / "anat"
    mask = template.brain_mask & (np.indices(template.shape)[2] == 40)
    t1 = write_nifti(anat / "sub-01_T1w.nii.gz", template.t1 * template.brain_mask, template.affine)
    lesion = write_nifti(anat / "sub-01_label-lesion_mask.nii.gz", mask, template.affine)
    subject = RawSubject(
        participant=bids.Participant(subject="01"), session="", images={"T1w": t1}, lesion_mask=lesion
    )
    with pytest.raises(InputError, match=r"lesion_mask\.nii\.gz: lies on the grid of none of the images"):
        preprocess_subjects([subject], tmp_path, tmp_path / "out", Options())


def test_a_lesion_outside_the_brain_is_named(tmp_path, known_moves):
    template = load_template(2)
    anat = tmp_path / "raw/sub-01/anat"
    outside = np.zeros(template.shape)
    outside[1, 1:3, 1:3] = 1
    write_nifti(anat / "sub-01_T1w.nii.gz", template.t1 * template.brain_mask, template.affine)
    lesion = write_nifti(anat / "sub-01_label-lesion_mask.nii.gz", outside, template.affine)
    with pytest.raises(InputError, match=r"lesion_mask\.nii\.gz: none of the lesion lies in the brain \("):
        preprocess(tmp_path / "raw", tmp_path / "out")
    lesion.unlink()
    (found,) = bids.raw_subjects(tmp_path / "raw")
    write_nifti(lesion, outside, template.affine)
    unseen = replace(found, lesion_mask=lesion, lesion_modality="T1w")
    with pytest.raises(InputError, match=r"label-lesion_mask\.nii\.gz: none of the lesion lies in the brain"):
        preprocess_subjects([unseen], tmp_path / "raw", tmp_path / "out", Options())


@pytest.mark.parametrize("outside", ["lowest", "zero"])
def test_a_z_scored_brain_keeps_all_its_tissue(tmp_path, monkeypatch, known_moves, outside):
    monkeypatch.setattr(preprocessing, "correct_bias", registration.correct_bias)
    monkeypatch.setattr(registration, "N4_ITERATIONS", (10, 5))
    template = load_template(2)
    mask = template.brain_mask
    t1 = 900 * template.t1 * mask
    scores = (t1 - t1[mask].mean()) / t1[mask].std()
    if outside == "zero":
        scores[~mask] = 0
    assert (scores[mask] < 0).mean() > 0.3
    volumes = {}
    for name, array in (("raw", t1), ("scores", scores)):
        write_nifti(tmp_path / name / "sub-01/anat/sub-01_T1w.nii.gz", array, template.affine)
        out = preprocess(tmp_path / name, tmp_path / f"{name}_out", skull="stripped")
        volumes[name] = volume(out, "01", "desc-preproc_T1w.nii.gz")[0]
        sidecar = json.loads(next(out.glob("sub-01/anat/*T1w.json")).read_text())
    assert ((volumes["scores"] > 0) & mask).sum() > 0.98 * mask.sum()
    assert np.corrcoef(volumes["scores"][mask], volumes["raw"][mask])[0, 1] > 0.995
    low, high = np.percentile(scores[mask], [0.5, 99])  # in the units of the file
    assert sidecar["Normalisation"]["low"] == pytest.approx(low, abs=0.2)
    assert sidecar["Normalisation"]["high"] == pytest.approx(high, abs=0.2)


@pytest.mark.parametrize(
    ("image", "failure"),
    [
        ("T1w", "none"),
        *itertools.product(["T1w", "FLAIR"], ["noise", "shuffled", "upside down", "back to front"]),
        ("T1w", "upper half"),
    ],
)
def test_scans_that_are_none_are_marked_in_the_figures(tmp_path, monkeypatch, known_moves, failure, image):
    template, rng = load_template(2), np.random.default_rng(0)
    mask = template.brain_mask

    def information(fixed, inside, moving, path):
        registration._write_affine(np.eye(4), path)
        other = resample(moving, fixed).array
        return registration.mutual_information(fixed.array[inside], other[inside])

    monkeypatch.setattr(preprocessing, "register_rigid", information)
    scans = {"T1w": template.t1 * mask, "FLAIR": (1.2 * template.gm + template.wm + 0.2) * mask}
    bad = scans[image].copy()
    if failure == "noise":
        bad[mask] = np.abs(rng.normal(1, 0.3, mask.sum()))
    elif failure == "shuffled":
        bad[mask] = rng.permutation(bad[mask])
    elif failure == "upper half":
        bad[:, :, :38] = 0
    elif failure == "upside down":
        bad = bad[:, :, ::-1]
    elif failure == "back to front":
        bad = bad[:, ::-1]
    for name, array in {**scans, image: bad}.items():
        noisy = array + rng.normal(0, 0.01, array.shape) * (array > 0)
        write_nifti(tmp_path / f"raw/sub-01/anat/sub-01_{name}.nii.gz", noisy, template.affine)
    out = preprocess(tmp_path / "raw", tmp_path / "out", skull="stripped")
    marked = quality.outliers(quality.figures(out)).get("01", [])
    assert bool(marked) == (failure != "none")
    if image == "FLAIR":
        assert set(marked) <= {"FLAIR to T1w"}


def test_the_builder_reads_the_derivative(derivative):
    found = read_derivative(derivative, ["T1w"])
    assert sorted(found.subjects) == ["01", "02"]
    subject = read_subject(found.subjects["02"], ["T1w"])
    assert subject.lesion_mask.any()
    table = pd.read_csv(derivative / "participants.tsv", sep="\t", dtype=str)
    assert table.columns.tolist() == ["participant_id", "group", "age", "sex"]
    assert table["group"].tolist() == ["control", "patient"]
    assert table["sex"].tolist() == ["f", "m"]
    description = json.loads((derivative / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "epizoo"


def test_a_map_comes_back_to_the_voxels_of_the_raw_scan(raw, derivative):
    template = load_template(2)
    scan = nib.load(raw / "sub-02/anat/sub-02_T1w.nii.gz")
    back = to_native(template.t1 * template.brain_mask, derivative, "sub-02")
    assert back.shape == scan.shape
    np.testing.assert_allclose(back.affine, scan.affine, atol=1e-5)
    inside = back.get_fdata() > 0.05
    assert np.corrcoef(back.get_fdata()[inside], scan.get_fdata()[inside])[0, 1] > 0.75
    path = next((derivative / "sub-02/anat").glob("*desc-brain_mask.nii.gz"))
    mask = to_native(path, derivative, "02", labels=True)
    assert mask.get_data_dtype() == np.int32
    assert set(np.unique(mask.dataobj)) == {0, 1}


def test_the_brain_is_found_in_a_whole_head(raw, derivative):
    rng = np.random.default_rng(0)
    for _ in ("01", "02"):  # the moves of make_raw, in its order
        move = turned(float(rng.uniform(-6, 6)), rng.uniform(-15, 15, 3)) @ np.diag([1.05, 0.97, 1.02, 1])
    truth = whole_head(move, (3.0, 3.0, 3.4))[1].array > 0
    path = next((derivative / "sub-02/anat").glob("*desc-brain_mask.nii.gz"))
    back = nib.as_closest_canonical(to_native(path, derivative, "02", labels=True))
    found = np.asarray(back.dataobj) > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.95
    records = [json.loads(next(derivative.glob(f"sub-{s}/anat/*T1w.json")).read_text()) for s in ("01", "02")]
    assert [record["BrainMask"].split()[0] for record in records] == ["what", "the"]


def test_a_map_of_another_grid_or_person_is_refused(derivative):
    with pytest.raises(InputError, match=r"shape \(3, 4, 5\)"):
        to_native(np.zeros((3, 4, 5)), derivative, "01")
    with pytest.raises(InputError, match="sub-09 is not a finished subject"):
        to_native(np.zeros((3, 4, 5)), derivative, "09")


def test_a_finished_subject_is_not_done_again(raw, tmp_path, counted):
    preprocess(raw, tmp_path, participant_labels=["01"])
    preprocess(raw, tmp_path)
    assert counted == ["01", "02", "03"]
    preprocess(raw, tmp_path, overwrite=True, participant_labels=["03"])
    assert counted == ["01", "02", "03", "03"]
    assert len(pd.read_csv(tmp_path / "participants.tsv", sep="\t")) == 3


def test_tables_that_users_edited_stay_and_corrections_of_the_raw_table_arrive(
    raw, tmp_path, counted, capsys
):
    source, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(raw, source)
    preprocess(source, out, participant_labels=["01", "02"])
    table, description = out / "participants.tsv", out / "dataset_description.json"
    edited = table.read_text().replace("\tage", "\tsplit\tage").replace("control\t", "control\ttest\t")
    table.write_text(edited.replace("patient\t", "patient\ttest\t"))
    description.write_text(
        json.dumps({**json.loads(description.read_text()), "Name": "ours", "Funding": ["x"]})
    )
    before = table.read_bytes(), description.read_bytes()
    preprocess(source, out, participant_labels=["01", "02"])
    assert (table.read_bytes(), description.read_bytes()) == before

    said = (source / "participants.tsv").read_text().replace("31\tF", "33\tF")
    (source / "participants.tsv").write_text(said)
    preprocess(source, out)
    assert counted == ["01", "02", "03"]  # nobody twice
    people, problems = bids.read_participants(out)
    assert problems == []
    assert people["01"].age == 33
    assert [one.split for one in people.values()] == ["test", "test", ""]
    assert "sub-01: age is 33 now, as in the raw table; it was 31" in capsys.readouterr().err
    preprocess(source, out)
    assert "as in the raw table" not in capsys.readouterr().err


def test_landmarks_that_were_learnt_from_someone_who_trains_no_longer_are_told(
    raw, tmp_path, counted, capsys
):
    preprocess(raw, tmp_path)
    landmarks = {"TrainingControls": ["01"], "Deciles": {}}
    (tmp_path / preprocessing.LANDMARKS).write_text(json.dumps(landmarks))
    table = tmp_path / "participants.tsv"
    table.write_text(table.read_text().replace("sub-01\tcontrol", "sub-01\tpatient"))
    preprocess(raw, tmp_path)
    assert "was learnt from sub-01, no training controls any more" in capsys.readouterr().err


def test_other_columns_words_and_scans_can_be_named(raw, tmp_path, counted):
    source = tmp_path / "raw"
    shutil.copytree(raw, source)
    (source / "participants.tsv").write_text("participant_id\tarm\nsub-01\ttyp\nsub-02\tcase\nsub-03\ttyp\n")
    words = {"group_column": "arm", "groups": {"typ": "control"}}
    with pytest.raises(InputError, match="no FLAIR") as caught:
        preprocess(source, tmp_path / "out", modalities=["T1w", "FLAIR"], **words)
    assert len(caught.value.problems) == 2
    with pytest.raises(InputError, match="T1w is needed"):
        preprocess(source, tmp_path / "out", modalities=["FLAIR"], **words)
    filters = {"T1w": {"acq": "x"}}
    with pytest.raises(InputError, match="no T1w"):
        preprocess(source, tmp_path / "out", participant_labels=["01"], filters=filters, **words)
    assert counted == []
    out = preprocess(source, tmp_path / "out", **words)
    assert counted == ["01", "02", "03"]
    table = pd.read_csv(out / "participants.tsv", sep="\t")
    assert table["group"].tolist() == ["control", "patient", "control"]


def test_a_killed_subject_leaves_nothing_under_its_name_and_is_done_again(
    raw, tmp_path, monkeypatch, counted
):
    finish = preprocessing._preprocess_subject

    def killed(subject, anat, options):
        finish(subject, anat, options)
        if subject.subject == "02":
            raise KeyboardInterrupt
        return FIGURES

    monkeypatch.setattr(preprocessing, "_preprocess_subject", killed)
    with pytest.raises(KeyboardInterrupt):
        preprocess(raw, tmp_path)
    assert [path.name for path in tmp_path.glob("sub-*")] == ["sub-01"]
    monkeypatch.setattr(preprocessing, "_preprocess_subject", finish)
    preprocess(raw, tmp_path)
    assert counted == ["01", "02", "02", "03"]
    assert not list(tmp_path.glob(".partial*"))


def test_one_failing_subject_does_not_stop_the_others(raw, tmp_path, monkeypatch, counted):
    finish = preprocessing._preprocess_subject

    def failing(subject, anat, options):
        if subject.subject == "02":
            raise RuntimeError("Registration failed with error code 1")
        return finish(subject, anat, options)

    monkeypatch.setattr(preprocessing, "_preprocess_subject", failing)
    with pytest.raises(
        InputError, match=r"sub-02: Registration failed(.|\n)*1 of 3 subjects failed; the others are kept"
    ):
        preprocess(raw, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("sub-*")) == ["sub-01", "sub-03"]


@pytest.mark.parametrize("step", ["register_rigid", "register"])
def test_a_failure_names_subject_and_scan_whatever_was_raised(raw, tmp_path, monkeypatch, step):
    finish = getattr(preprocessing, step)

    def failing(*arguments):
        if step == "register" or "sub-02" in str(arguments[-1]):
            raise IndexError("list index out of range")
        finish(*arguments)

    monkeypatch.setattr(preprocessing, step, failing)
    monkeypatch.setattr(preprocessing, "head_brain_mask", lambda head: head.array > 300)
    monkeypatch.setattr(preprocessing, "correct_bias", lambda scan, mask: scan)
    for name in {"register", "register_rigid"} - {step}:
        monkeypatch.setattr(
            preprocessing, name, lambda *a: [write_identity(p) for p in a if isinstance(p, Path)]
        )
    with pytest.raises(InputError) as caught:
        preprocess(raw, tmp_path, participant_labels=["02"])
    scan = raw / "sub-02/anat" / ("sub-02_T1w.nii.gz" if step == "register" else "sub-02_FLAIR.nii.gz")
    assert caught.value.problems[0] == f"sub-02: {scan}: IndexError: list index out of range"


def write_identity(path):
    registration._write_affine(np.eye(4), path)


ENDED = """
import os
from pathlib import Path
from tfds_epilepsy import preprocessing

def work(subject, anat, options):
    if subject.subject == "02":
        os.kill(os.getpid(), 9)
    anat.mkdir(parents=True)
    return {"Quality": {"MaskDice": 0.97, "TemplateCorrelation": 0.8, "MutualInformationWithT1w": {}}}

preprocessing._preprocess_subject = work
"""


def environment_with(folder: Path, startup: str) -> dict[str, str]:
    """Every Python process, also those of the jobs, runs ``startup`` first."""
    (folder / "sitecustomize.py").write_text(startup)
    paths = [str(folder), str(Path(__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(":")]
    return {**os.environ, "PYTHONPATH": ":".join(filter(None, paths))}


def test_a_process_that_is_ended_for_want_of_memory_is_reported_by_subject(raw, tmp_path):
    command = ["-c", "from epizoo.cli import main; main()", "preprocess", str(raw), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, *command, "--jobs", "2"],
        env=environment_with(tmp_path, ENDED),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "sub-02: its process was ended from outside" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").rglob(".partial*"))


SLOW = """
import time
from tfds_epilepsy import preprocessing

def work(subject, anat, options):
    anat.mkdir(parents=True)
    time.sleep(0.5)
    (anat / "mark").write_text(subject.subject)
    return {"Quality": {"MaskDice": 0.97, "TemplateCorrelation": 0.8, "MutualInformationWithT1w": {}}}

preprocessing._preprocess_subject = work
"""


def test_two_processes_in_one_folder_share_the_subjects(raw, tmp_path):
    out, environment = tmp_path / "out", environment_with(tmp_path, SLOW)
    command = [sys.executable, "-c", "from epizoo.cli import main; main()", "preprocess", str(raw), str(out)]
    both = [
        subprocess.Popen([*command, *labels], env=environment, stderr=subprocess.PIPE, text=True)
        for labels in ((), ("--participant-label", "02", "--participant-label", "03"))
    ]
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert [(path.parent.parent.name, path.read_text()) for path in sorted(out.glob("sub-*/anat/mark"))] == [
        (f"sub-{label}", label) for label in ("01", "02", "03")
    ]
    table = pd.read_csv(out / "participants.tsv", sep="\t")
    assert table["participant_id"].tolist() == ["sub-01", "sub-02", "sub-03"]
    assert not list(out.rglob(".partial*"))


def test_histograms_are_matched_by_one_process_alone(raw, tmp_path, counted):
    with hold(tmp_path / "out", shared=True):
        code = "import sys; from tfds_epilepsy.preprocessing import preprocess as p; "
        code += "p(*sys.argv[1:], normalisation='match')"
        table = "participant_id\tgroup\tsplit\nsub-01\thc\ttrain\n"
        source = tmp_path / "raw"
        shutil.copytree(raw / "sub-01", source / "sub-01")
        (source / "participants.tsv").write_text(table)
        done = subprocess.run(
            [sys.executable, "-c", code, str(source), str(tmp_path / "out")],
            env=environment_with(tmp_path, SLOW),
            capture_output=True,
            text=True,
        )
    assert "another process is at work there" in done.stderr


def test_the_subject_of_a_faster_process_stays(raw, tmp_path, monkeypatch, counted):
    finish = preprocessing._preprocess_subject

    def overtaken(subject, anat, options):
        shutil.copytree(theirs, out / "sub-01", dirs_exist_ok=True)
        return finish(subject, anat, options)

    theirs = preprocess(raw, tmp_path / "theirs", participant_labels=["01"]) / "sub-01"
    (theirs / "anat" / "mark").write_text("theirs")
    monkeypatch.setattr(preprocessing, "_preprocess_subject", overtaken)
    out = tmp_path / "out"
    preprocess(raw, out, participant_labels=["01"])
    assert (out / "sub-01" / "anat" / "mark").read_text() == "theirs"
    assert not list(out.glob(".partial*"))
    preprocess(raw, out, participant_labels=["01"], overwrite=True)
    assert (out / "sub-01" / "anat" / "mark").read_text() == "01"


def test_other_options_or_changed_scans_are_refused(raw, tmp_path, counted):
    source, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(raw, source)
    preprocess(source, out, participant_labels=["01", "02"])
    with pytest.raises(InputError, match="voxel_size 2, now 1") as caught:
        preprocess(source, out, voxel_size=1)
    assert len(caught.value.problems) == 2
    scan = source / "sub-02/anat/sub-02_T1w.nii.gz"
    nib.save(nib.Nifti1Image(2 * nib.load(scan).get_fdata(), nib.load(scan).affine), scan)
    with pytest.raises(InputError, match="sub-02: its raw files have changed"):
        preprocess(source, out)
    assert counted == ["01", "02"]
    (out / "sub-99").mkdir()
    with pytest.raises(InputError, match="sub-99: not made by epizoo"):
        preprocess(source, out, overwrite=True)


def test_all_problems_come_at_once_before_any_work(raw, tmp_path, counted):
    source = tmp_path / "raw"
    shutil.copytree(raw, source)
    image = nib.load(source / "sub-01/anat/sub-01_T1w.nii.gz")
    sheared = image.affine @ np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(image.get_fdata(), sheared), source / "sub-01/anat/sub-01_T1w.nii.gz")
    (tmp_path / "out" / "sub-02").mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        preprocess(source, tmp_path / "out")
    assert len(caught.value.problems) == 2
    assert "sub-02: not made by epizoo" in caught.value.problems[0]
    assert "right angles" in caught.value.problems[1]
    assert counted == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"voxel_size": 3}, "voxel_size 3"),
        ({"normalisation": "x"}, "normalisation 'x'"),
        ({"jobs": 0}, "jobs 0"),
    ],
)
def test_options_outside_the_choices_are_refused(raw, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        preprocess(raw, tmp_path, **options)


def test_an_output_that_is_a_file_is_refused(raw, tmp_path, counted):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        preprocess(raw, tmp_path / "file")


def test_deciles_are_mapped_onto_the_standard_piece_by_piece():
    own = np.linspace(0, 1, 11)
    standard = own**2
    values = np.array([0, 0.1, 0.15, 0.5, 0.95, 1], np.float32)
    expected = [0, 0.01, 0.025, 0.25, 0.905, 1]  # 0.15 lies half-way between 0.01 and 0.04
    np.testing.assert_allclose(preprocessing.match_deciles(values, own, standard), expected, atol=1e-6)
    flat = preprocessing.match_deciles(values, np.array([0, *[0.3] * 9, 1]), standard)
    assert np.isfinite(flat).all()
    assert (np.diff(flat) >= 0).all()


def test_histograms_are_matched_to_the_training_controls_alone(raw, tmp_path, monkeypatch):
    template = load_template(2)
    rng = np.random.default_rng(0)
    images = {label: rng.beta(a, 2, template.shape) for label, a in (("01", 1.5), ("02", 5), ("03", 2.5))}

    def work(subject, anat, options):
        scaled, fitted = normalise(images[subject.subject], template.brain_mask, "unit")
        stem = f"sub-{subject.subject}_{SPACE}_res-2"
        write_nifti(anat / f"{stem}_desc-preproc_T1w.nii.gz", scaled, template.affine)
        write_nifti(
            anat / f"{stem}_desc-brain_mask.nii.gz", template.brain_mask, template.affine, dtype=np.uint8
        )
        return {**FIGURES, "Normalisation": dict(fitted)}

    monkeypatch.setattr(preprocessing, "_preprocess_subject", work)
    with pytest.raises(InputError, match="learns from training controls, and none is among"):
        preprocess(raw, tmp_path / "out", normalisation="match", participant_labels=["02"])
    source = tmp_path / "raw"
    shutil.copytree(raw, source)
    (source / "participants.tsv").write_text(
        "participant_id\tgroup\tsplit\nsub-01\thc\ttrain\nsub-02\tfcd\ttest\nsub-03\thc\ttest\n"
    )
    out = preprocess(source, tmp_path / "out", normalisation="match", participant_labels=["01", "03"])
    landmarks = json.loads((out / "intensity_landmarks.json").read_text())
    assert landmarks["TrainingControls"] == ["01"]
    before = (out / "intensity_landmarks.json").read_bytes()
    preprocess(source, out, normalisation="match")  # the patient comes later
    assert (out / "intensity_landmarks.json").read_bytes() == before
    for label in ("01", "02", "03"):
        matched = volume(out, label, "desc-preproc_T1w.nii.gz")[0]
        assert (matched[~template.brain_mask] == 0).all()
        found = preprocessing.deciles(matched[template.brain_mask])
        np.testing.assert_allclose(found, landmarks["Deciles"]["T1w"], atol=2e-3)
    assert (
        json.loads(next((out / "sub-02/anat").glob("*T1w.json")).read_text())["Normalisation"]["method"]
        == "match"
    )
    assert sorted(path.name for path in out.glob(".*")) == [".bidsignore", ".lock"]


def test_a_lesion_too_small_for_the_grid_is_kept():
    share = np.zeros((4, 4, 4), np.float32)
    share[1, 2, 3] = 0.2
    share[1, 2, 2] = 0.1
    assert np.argwhere(preprocessing._lesion_voxels(share)).tolist() == [[1, 2, 3]]
    assert not preprocessing._lesion_voxels(np.zeros((4, 4, 4), np.float32)).any()


HURRIED = """
from tfds_epilepsy import registration

registration.N4_ITERATIONS, registration.RIGID_ITERATIONS = (2, 0), (20, 0, 0)
registration.SYN_ITERATIONS = (3, 0, 0)
"""
COMMAND = """
import sys
from tfds_epilepsy.preprocessing import preprocess

preprocess(*sys.argv[1:], voxel_size=1, region="cerebrum", normalisation="match", jobs=2)
"""


@pytest.fixture(scope="module")
def killed_and_gone_on(tmp_path_factory) -> tuple[Path, dict[str, int]]:
    """T1w and PET of three people at 1 mm, two at a time, killed after the first and started again.

    Returns:
        The derivative, and what was finished before the kill: transform and time of writing.
    """
    folder, template = tmp_path_factory.mktemp("killed"), load_template(2)
    raw, out = folder / "raw", folder / "out"
    for number, label in enumerate(("01", "02", "03")):
        move = turned(3 * number, (2 * number, -4, 3))
        t1 = 700 * template.t1 ** (0.8 + 0.2 * number) * template.brain_mask
        pet = (10 * template.gm + 4 * template.wm) * template.brain_mask
        save(raw / f"sub-{label}/anat/sub-{label}_T1w.nii.gz", native(t1, move, (4.0, 4.0, 4.0)), "RAS")
        elsewhere = native(pet, turned(2, (5, 3, -4)) @ move, (5.0, 5.0, 5.0))
        save(raw / f"sub-{label}/pet/sub-{label}_pet.nii.gz", elsewhere, "LPS")
    (raw / "participants.tsv").write_text(
        "participant_id\tgroup\tsplit\nsub-01\thc\ttrain\nsub-02\tfcd\ttest\nsub-03\thc\ttest\n"
    )
    (folder / "sitecustomize.py").write_text(HURRIED)  # read by every process, also those of the jobs
    paths = [str(folder), str(Path(__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(":")]
    environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, paths))}
    command = [sys.executable, "-c", COMMAND, str(raw), str(out)]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while not (finished := list(out.glob(".unmatched/sub-*"))) and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not list(out.glob("sub-*"))  # matched once all are there
    before = {path.name: path.stat().st_mtime_ns for f in finished for path in f.glob("anat/*_from-T1w*.h5")}
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    return out, before


@pytest.mark.slow
def test_a_killed_cohort_goes_on_with_what_is_missing(killed_and_gone_on):
    out, before = killed_and_gone_on
    assert 1 <= len(before) < 3
    assert sorted(path.name for path in out.glob("sub-*")) == ["sub-01", "sub-02", "sub-03"]
    for name, written in before.items():
        assert next(out.glob(f"sub-*/anat/{name}")).stat().st_mtime_ns == written
    assert not list(out.glob("**/.partial*"))
    assert not (out / ".unmatched").exists()
    assert (out / "quality.html").is_file()
    assert sorted(read_derivative(out).subjects) == ["01", "02", "03"]


@pytest.mark.slow
def test_at_1_mm_the_cerebrum_alone_is_left(killed_and_gone_on):
    out, _ = killed_and_gone_on
    template, cerebrum = load_template(1), cerebrum_mask(1)
    for label in ("01", "02", "03"):
        mask, affine = volume(out, label, "desc-brain_mask.nii.gz")
        assert mask.shape == template.shape
        np.testing.assert_array_equal(affine, template.affine)
        assert (mask[template.brain_mask & ~cerebrum] == 0).all()
        assert 2 * (mask * cerebrum).sum() / (mask.sum() + cerebrum.sum()) > 0.9


@pytest.mark.slow
def test_pet_follows_the_t1w_without_a_bias_field_of_its_own(killed_and_gone_on):
    out, _ = killed_and_gone_on
    template = load_template(1)
    for label in ("01", "02", "03"):
        mask = volume(out, label, "desc-brain_mask.nii.gz")[0] > 0
        pet = volume(out, label, "desc-preproc_pet.nii.gz")[0]
        assert np.corrcoef(pet[mask], (10 * template.gm + 4 * template.wm)[mask])[0, 1] > 0.6
        sidecar = json.loads(next(out.glob(f"sub-{label}/anat/*_pet.json")).read_text())
        assert sidecar["BiasCorrection"] == "none"


@pytest.mark.slow
def test_every_modality_has_the_histogram_of_the_training_controls(killed_and_gone_on):
    out, _ = killed_and_gone_on
    landmarks = json.loads((out / "intensity_landmarks.json").read_text())
    assert landmarks["TrainingControls"] == ["01"]
    for label in ("01", "02", "03"):
        mask = volume(out, label, "desc-brain_mask.nii.gz")[0] > 0
        for name in ("T1w", "pet"):
            matched = volume(out, label, f"desc-preproc_{name}.nii.gz")[0]
            np.testing.assert_allclose(
                preprocessing.deciles(matched[mask]), landmarks["Deciles"][name], atol=5e-3
            )
