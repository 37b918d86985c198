import shutil

import numpy as np
import pandas as pd
import pytest

import epizoo.run
from epizoo.benchmark import benchmark
from epizoo.evaluation import Metrics, check_no_leak
from epizoo.folds import make_folds
from tests.bids_files import write_participants
from tfds_epilepsy import bids
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import write_json
from tfds_epilepsy.volumes import TEMPLATE_SPACE, load_template, write_nifti

LABELS = [f"{n:02}" for n in range(1, 10)]


@pytest.fixture(scope="module")
def controls(tmp_path_factory):
    """Nine T1w of one anatomy and much noise."""
    folder = tmp_path_factory.mktemp("controls")
    template, rng = load_template(2), np.random.default_rng(0)
    for label in LABELS:
        stem = f"sub-{label}/anat/sub-{label}_space-{TEMPLATE_SPACE}"
        image = (template.t1 + 0.05 * rng.normal(size=template.shape)).clip(0, 1) * template.brain_mask
        write_nifti(folder / f"{stem}_T1w.nii.gz", image, template.affine)
        write_json(folder / f"{stem}_T1w.json", {"Normalisation": {"method": "unit"}})
        mask = template.brain_mask
        write_nifti(folder / f"{stem}_desc-brain_mask.nii.gz", mask, template.affine, dtype=np.uint8)
    rows = [[f"sub-{label}", "control", str(20 + n), "f"] for n, label in enumerate(LABELS)]
    write_participants(folder, rows, "participant_id\tgroup\tage\tsex")
    return folder


@pytest.fixture(scope="module")
def folds(controls, tmp_path_factory):
    return make_folds(controls, tmp_path_factory.mktemp("folds"), 3)


def test_each_control_is_tested_once_with_and_without_a_lesion(controls, folds):
    tested, calibrating = [], set()
    for fold in folds:
        everyone, problems = bids.template_subjects(fold)
        assert problems == []
        by_split = {
            split: {one.subject: one for one in everyone if one.participant.split == split}
            for split in bids.SPLITS
        }
        test, train = by_split["test"], by_split["train"]
        patients = {label for label, one in test.items() if one.participant.group == "patient"}
        assert patients == {f"{label}lesion" for label in set(test) - patients}
        assert (len(train), len(by_split["validation"]), len(patients)) == (4, 2, 3)
        assert all(one.participant.group == "control" for one in train.values())
        calibrating |= set(by_split["validation"])
        check_no_leak([*train, *by_split["validation"]], [label.removesuffix("lesion") for label in test])
        for label in set(test) - patients:
            healthy, ill = (bids.read_subject(test[name], ["T1w"]) for name in (label, f"{label}lesion"))
            raw = bids.template_subjects(controls)[0][LABELS.index(label)]
            np.testing.assert_array_equal(healthy.image, bids.read_subject(raw, ["T1w"]).image)
            changed = (healthy.image != ill.image)[..., 0]
            assert changed.any()
            assert ill.lesion_mask[changed].mean() > 0.2
            assert healthy.age == ill.age == 20 + LABELS.index(label)
        tested += set(test) - patients
    assert sorted(tested) == LABELS
    assert len(calibrating) >= 5  # two a fold, and not the same two


def test_folds_are_found_again_and_nothing_is_copied(controls, folds):
    before = {path: path.lstat().st_mtime_ns for path in folds[0].parents[1].rglob("*.nii.gz")}
    assert make_folds(controls, folds[0].parents[1], 3) == folds
    assert before == {path: path.lstat().st_mtime_ns for path in folds[0].parents[1].rglob("*.nii.gz")}


@pytest.mark.slow
def test_folds_are_pooled_into_one_table_and_a_killed_benchmark_goes_on(
    controls, folds, tmp_path, monkeypatch
):
    shutil.copytree(folds[0].parents[1] / "implanted", tmp_path / "out" / "implanted", symlinks=True)
    done = []
    score_subject = epizoo.run.score_subject

    def killed(normative, subject, *rest):
        if len(done) == 8:
            raise KeyboardInterrupt
        done.append(subject.subject)
        score_subject(normative, subject, *rest)

    def run():
        arguments = {"supervised": 0, "folds": 3, "data_dir": tmp_path / "prepared"}
        return benchmark(str(controls), tmp_path / "out", [], [], ["zscore"], **arguments)

    monkeypatch.setattr(epizoo.run, "score_subject", killed)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(
        epizoo.run, "score_subject", lambda *a: (done.append(a[1].subject), score_subject(*a))
    )
    table = run()
    assert len(done) == 3 * (2 + 6)  # validation and test of each fold, nobody twice
    (row,) = pd.read_csv(table.with_suffix(".tsv"), sep="\t").to_dict("records")
    assert "9 patients, 9 controls" in table.read_text()
    metrics = [Metrics.read(tmp_path / "out" / f"fold-{n}" / "zscore" / "metrics.json") for n in (1, 2, 3)]
    patients = [one for fold in metrics for one in fold.annotated]
    controls = [one for fold in metrics for one in fold.rows if one.group == "control"]
    assert row["auroc"] == pytest.approx(np.mean([one.voxel.auroc for one in patients]), rel=1e-4)
    assert row["sensitivity_5_overlap"] == pytest.approx(
        np.mean([one.lesion["overlap"].rank <= 5 for one in patients]), rel=1e-4
    )
    assert row["fp_per_control"] == pytest.approx(
        np.mean([one.clusters_at_threshold for one in controls]), rel=1e-4
    )


def test_what_cannot_be_folded_is_refused(controls, tmp_path):
    with pytest.raises(InputError, match="folds are made of a folder"):
        make_folds("phantom_2mm", tmp_path, 3)
    with pytest.raises(InputError, match="2 folds of 9 controls"):
        make_folds(controls, tmp_path / "two", 2)
    with pytest.raises(InputError, match="1 folds"):
        make_folds(controls, tmp_path / "one", 1)
    ill = tmp_path / "ill"
    for label in LABELS:
        (ill / f"sub-{label}").parent.mkdir(exist_ok=True)
        (ill / f"sub-{label}").symlink_to(controls / f"sub-{label}", target_is_directory=True)
    rows = [[f"sub-{label}", "patient" if label == "03" else "control"] for label in LABELS]
    write_participants(ill, rows, "participant_id\tgroup")
    with pytest.raises(InputError, match="sub-03 is a patient"):
        make_folds(ill, tmp_path / "none", 3)
    assert not (tmp_path / "none").exists()


def test_a_table_of_other_words_is_benchmarked_with_and_without_folds(controls, tmp_path):
    source = tmp_path / "source"
    for label in LABELS:
        (source / f"sub-{label}").parent.mkdir(exist_ok=True)
        (source / f"sub-{label}").symlink_to(controls / f"sub-{label}", target_is_directory=True)
    write_participants(source, [[f"sub-{label}", "typ"] for label in LABELS], "participant_id\tarm")
    told = {"group_column": "arm", "groups": {"typ": "control"}}
    with pytest.raises(InputError, match="no group"):
        make_folds(source, tmp_path / "none", 3)
    first = make_folds(source, tmp_path / "folds", 3, **told)[0]
    everyone, problems = bids.template_subjects(first)  # which leaves nothing open
    assert problems == []
    assert {one.participant.group for one in everyone} == {"control", "patient"}
