"""Maps of other data: whose they are, what is made anew, and into which folders they may go."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

import epizoo.outputs
from epizoo.outputs import Source, is_current, score_cohort, sidecar
from epizoo.run import Run
from epizoo.run_folder import RunFolder
from tests.small_cohort import SPACE, short_run
from tfds_epilepsy.bids import write_description
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import read_json, write_json
from tfds_epilepsy.volumes import read_nifti, write_nifti


def baseline(cohort, folder, data_dir, detector="zscore"):
    run = Run(short_run(cohort, model="none", detector=detector), folder, data_dir=data_dir)
    run.fit()
    return run


@pytest.fixture(scope="module")
def run(cohort, data_dir, tmp_path_factory):
    return baseline(cohort, tmp_path_factory.mktemp("runs") / "run", data_dir)


@pytest.fixture(scope="module")
def maps(run, cohort, data_dir, tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("maps") / "maps")
    score_cohort(run.folder.path, cohort, folder.path, data_dir=data_dir)
    return folder


@pytest.fixture
def own(maps, tmp_path):
    """A copy of the maps."""
    return RunFolder(shutil.copytree(maps.path, tmp_path / "maps"))


@pytest.fixture
def scored(monkeypatch):
    """Labels of the subjects that are scored."""
    labels, score_subject = [], epizoo.outputs.score_subject

    def watched(scorer, subject, *rest):
        labels.append(subject.subject)
        score_subject(scorer, subject, *rest)

    monkeypatch.setattr(epizoo.outputs, "score_subject", watched)
    return labels


def test_a_scoring_goes_on_where_it_was_and_leaves_edited_files(run, own, cohort, data_dir, scored):
    own.clusters("p1", SPACE).unlink()
    (own.path / "README").write_text("what I think of them")
    score_cohort(run.folder.path, cohort, own.path, data_dir=data_dir)
    assert scored == ["p1"]
    assert (own.path / "README").read_text() == "what I think of them"


def test_maps_of_a_subjects_former_scan_are_made_anew(run, own, cohort, data_dir, scored, tmp_path):
    changed = shutil.copytree(cohort, tmp_path / "changed")
    scan = next((changed / "sub-p1" / "anat").glob("*_T1w.nii.gz"))
    image, affine = read_nifti(scan)
    write_nifti(scan, image[::-1], affine)
    own.score_map("p1", "T1w").touch()  # of the former scan too
    before = read_nifti(own.score_map("p1", SPACE))[0]
    score_cohort(run.folder.path, changed, own.path, data_dir=data_dir)
    assert scored == ["p1"]  # all others' scans are as they were
    assert not np.array_equal(read_nifti(own.score_map("p1", SPACE))[0], before)
    assert not own.score_map("p1", "T1w").exists()


def test_maps_of_another_run_are_not_mixed_with(own, cohort, data_dir, tmp_path):
    other = baseline(cohort, tmp_path / "other", data_dir, detector="flair")
    with pytest.raises(InputError, match=r"score maps of another run \(sub-c0, sub-c1, sub-c2, ...\)"):
        score_cohort(other.folder.path, cohort, own.path, data_dir=data_dir)


def test_maps_of_an_earlier_version_are_known_by_what_it_stored(run, own, data_dir):
    patient = next(run.read("test", ["p1"]))
    source, scorer = Source(SPACE, run.builder.fingerprint), run.fit()
    path = sidecar(own.score_map("p1", SPACE))
    stored = read_json(path)
    for later in ("ScanHash", "ScorerHash"):
        del stored[later]
    write_json(path, stored)
    assert is_current(scorer, patient, own, source)
    assert not is_current(scorer, patient, own, replace(source, data_hash="other"))
    assert not is_current(scorer, patient, own, replace(source, native=own.path))


@pytest.mark.parametrize("kind", ["data", "run", "raw", "derivative", "file", "other"])
def test_maps_go_into_no_folder_with_other_things(run, cohort, data_dir, tmp_path, kind):
    raw, derivative, other, file = (tmp_path / name for name in ("raw", "derivative", "other", "file"))
    write_description(derivative, "of ours", source="raw")
    write_json(raw / "dataset_description.json", {"Name": "raw", "BIDSVersion": "1.10.0"})
    other.mkdir()
    (other / "thesis.txt").touch()
    file.touch()
    out = {"data": cohort, "run": run.folder.path}.get(kind, tmp_path / kind)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(InputError, match=str(out)):
        score_cohort(run.folder.path, cohort, out, data_dir=data_dir)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_native_maps_without_transforms_are_refused_before_any_work(run, cohort, data_dir, tmp_path):
    pytest.importorskip("ants", reason="the preprocessing extra is not installed")
    with pytest.raises(InputError) as error:
        score_cohort(run.folder.path, cohort, tmp_path / "maps", native=True, data_dir=data_dir)
    assert len(error.value.problems) == 2 * 9  # of every subject of the cohort the way there and the way back
    assert not (tmp_path / "maps").exists()
