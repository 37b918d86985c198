import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import epizoo.run
from epizoo.detection import find_clusters
from epizoo.evaluation import Metrics
from epizoo.finished_run import open_run
from epizoo.maps.deviations import Deviations
from epizoo.outputs import score_cohort
from epizoo.run import Run
from epizoo.run_config import RunConfig
from epizoo.run_folder import RunFolder
from tests.bids_files import write_participants
from tests.small_cohort import AFFINE, CONTROLS, SPACE, TEST, short_run, write_cohort
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import read_nifti


@pytest.fixture(scope="module")
def finished(cohort, data_dir, tmp_path_factory):
    run = Run(short_run(cohort), tmp_path_factory.mktemp("runs") / "run", data_dir=data_dir)
    run()
    return run


def test_a_run_leaves_maps_clusters_metrics_and_a_report(finished):
    folder = finished.folder
    metrics = Metrics.read(folder.metrics)
    assert (metrics.patients, metrics.controls) == (1, 1)
    assert metrics.voxel.auroc.value > 0.9
    assert metrics.annotated[0].lesion["overlap"].rank == 1
    score_map, affine = read_nifti(folder.score_map("p1", SPACE))
    assert np.allclose(affine, AFFINE)
    labels, _ = read_nifti(folder.labels("p1", SPACE), dtype=np.int32)
    with folder.clusters("p1", SPACE).open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [int(row["rank"]) for row in rows] == list(range(1, labels.max() + 1))
    for row in rows:
        assert float(row["mean"]) == pytest.approx(score_map[labels == int(row["rank"])].mean(), rel=1e-4)
    assert "sub-p1" in folder.report.read_text()
    assert len(folder.history.read_text().splitlines()) == 3
    description = json.loads((folder.path / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"


def test_metadata_say_what_was_used(finished):
    metadata = json.loads(finished.folder.metadata.read_text())
    assert metadata["data_hash"] == finished.builder.fingerprint
    assert sorted(metadata["splits"]["train"]) == [f"c{i}" for i in range(5)]
    assert set(metadata["steps"]) == {"train", "fit", "score", "evaluate", "report"}
    assert metadata["versions"]["tensorflow"]


def test_a_run_is_a_bids_derivative_that_the_validator_accepts(finished):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.is_file():
        pytest.skip("bids-validator-deno is not installed")
    command = [validator, "--format", "json", finished.folder.path]
    found = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
    assert sorted(found["summary"]["subjects"]) == ["h1", "p1", "v0", "v1"]
    assert [i for i in found["issues"]["issues"] if i["severity"] == "error"] == []
    (finished.folder.path / "sub-p1" / "anat" / "sub-p1_nonsense.nii.gz").touch()
    again = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
    (finished.folder.path / "sub-p1" / "anat" / "sub-p1_nonsense.nii.gz").unlink()
    assert "error" in {issue["severity"] for issue in again["issues"]["issues"]}


@pytest.mark.skipif(sys.platform != "linux", reason="the system keeps one peak a process")
def test_the_peak_of_memory_is_that_of_the_step():
    block = np.ones(2**27, np.uint8)  # 128 MiB
    before = epizoo.run.peak_gib()
    del block
    epizoo.run.forget_peak()
    assert epizoo.run.peak_gib() < before - 0.1
    assert epizoo.run.peak_gib() > 0.05


def test_a_finished_run_is_left_as_it_is(finished, cohort, data_dir):
    before = finished.folder.report.stat().st_mtime_ns
    Run(short_run(cohort), finished.folder.path, data_dir=data_dir)()
    assert finished.folder.report.stat().st_mtime_ns == before


def test_a_finished_run_is_opened_by_its_folder(finished, data_dir):
    done = open_run(finished.folder.path, data_dir=data_dir)
    assert (done.name, done.config, done.space) == ("run", finished.config, SPACE)
    assert (done.modalities, done.voxel_size, done.normalisation) == (["T1w", "FLAIR"], 2.0, "unit")
    assert done.splits["test"] == ["h1", "p1"]
    assert done.subjects == ["v0", "v1", "h1", "p1"]
    assert done.fitted_on == [f"c{i}" for i in range(5)]
    assert set(done.seconds) == {"train", "fit", "score", "evaluate", "report"}
    assert len(done.history["loss"]) == 2
    assert done.metrics.rows[1].subject == "p1"
    (patient,) = done.read("test", ["p1"])
    np.testing.assert_array_equal(done.detector.score(patient), done.score_map("p1"))
    clusters, labels = find_clusters(done.score_map("p1"), patient.affine, patient.brain_mask)
    np.testing.assert_array_equal(labels, done.labels("p1"))
    assert len(done.clusters("p1")) == len(clusters)


def test_a_finished_run_whose_data_have_changed_scores_but_does_not_read(finished, data_dir, tmp_path):
    shutil.copytree(finished.folder.path, tmp_path / "run")
    done = open_run(tmp_path / "run", data_dir=data_dir)
    replace(done.metadata, data_hash="other").write(done.folder.metadata)
    with pytest.raises(InputError, match="made from other data"):
        open_run(tmp_path / "run", data_dir=data_dir).read("test")


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_the_uninterrupted_one(
    finished, cohort, data_dir, tmp_path, monkeypatch
):
    score_subject, scored = epizoo.run.score_subject, []

    def killed(normative, subject, *rest):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(subject.subject)
        score_subject(normative, subject, *rest)

    monkeypatch.setattr(epizoo.run, "score_subject", killed)
    with pytest.raises(KeyboardInterrupt):
        Run(short_run(cohort), tmp_path / "run", data_dir=data_dir)()
    monkeypatch.setattr(epizoo.run, "score_subject", score_subject)
    resumed = Run(short_run(cohort), tmp_path / "run", data_dir=data_dir)
    resumed()
    for subject in ("v0", "h1", "p1"):
        assert np.array_equal(resumed.score_map(subject), finished.score_map(subject))
    assert resumed.folder.metrics.read_text() == finished.folder.metrics.read_text()


def test_a_classical_baseline_runs_without_a_model(cohort, data_dir, tmp_path):
    run = Run(short_run(cohort, model="none", detector="zscore"), tmp_path / "run", data_dir=data_dir)
    metrics = run()
    assert not run.folder.model.exists()
    assert metrics.voxel.auroc.value > 0.8


def test_a_run_whose_detector_saw_a_test_subject_is_refused(finished, data_dir, tmp_path):
    shutil.copytree(finished.folder.path, tmp_path / "run")
    run = Run.open(tmp_path / "run", data_dir=data_dir)
    manifest = run.folder.detector / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "subjects": [*content["subjects"], "p1"]}))
    with pytest.raises(InputError, match="p1"):
        run.evaluate()
    assert run.folder.metrics.read_text() == finished.folder.metrics.read_text()


def test_another_configuration_does_not_go_into_the_folder(finished, cohort, data_dir):
    with pytest.raises(InputError, match="epochs 2 -> 3"):
        Run(short_run(cohort, epochs=3), finished.folder.path, data_dir=data_dir)


def test_a_folder_with_other_things_is_neither_used_nor_deleted(cohort, data_dir, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not a run"):
            Run(short_run(cohort), tmp_path, data_dir=data_dir, overwrite=overwrite)
    assert (tmp_path / "thesis.txt").exists()


def test_a_folder_is_the_same_data_however_it_is_written(finished, cohort, data_dir, monkeypatch, capsys):
    monkeypatch.chdir(cohort.parent)
    for data in (cohort.name, f"{cohort.name}/", f"./{cohort.name}/../{cohort.name}", cohort):
        run = Run(short_run(data), finished.folder.path, data_dir=data_dir)
        assert run.config == finished.config
        run()
    assert "--overwrite" not in capsys.readouterr().err  # nothing differs


def test_a_run_whose_folder_was_stored_as_it_was_typed_goes_on(
    finished, cohort, data_dir, tmp_path, monkeypatch
):
    shutil.copytree(finished.folder.path, tmp_path / "run")
    stored = {**json.loads(finished.folder.config.read_text()), "data": f"../{cohort.name}/"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    monkeypatch.chdir(tmp_path)  # where that path leads to nothing
    assert Run(short_run(cohort), tmp_path / "run", data_dir=data_dir).finished
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"] == str(cohort)


def test_a_run_of_data_that_have_moved_goes_on_and_one_of_other_data_does_not(
    finished, cohort, data_dir, tmp_path
):
    shutil.copytree(finished.folder.path, tmp_path / "run")
    stored = {**json.loads(finished.folder.config.read_text()), "data": str(tmp_path / "before")}
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    assert Run(short_run(cohort), tmp_path / "run", data_dir=data_dir).finished
    other = write_cohort(tmp_path / "other", {**CONTROLS, **TEST}, seed=1)
    with pytest.raises(InputError, match=r"data .*cohort.* -> .*other"):
        Run(short_run(other), tmp_path / "run", data_dir=data_dir)
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match="was made from other data"):
        Run(short_run(other), tmp_path / "run", data_dir=data_dir)


def test_overwrite_deletes_what_the_run_wrote_once_all_is_checked(finished, cohort, data_dir, tmp_path):
    shutil.copytree(finished.folder.path, tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("what I saw")
    with pytest.raises(InputError, match="nowhere"):
        Run(short_run("nowhere"), tmp_path / "run", data_dir=data_dir, overwrite=True)
    assert (tmp_path / "run" / "report.html").exists()
    Run(short_run(cohort, epochs=3), tmp_path / "run", data_dir=data_dir, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        *(".bidsignore", ".lock", "README", "config.json"),
        *("dataset_description.json", "metadata.json", "notes.txt"),
    ]


def test_one_process_at_a_time_works_in_a_folder(finished, cohort, data_dir, tmp_path):
    shutil.copytree(finished.folder.path, tmp_path / "run")
    hold = f"""
from dataclasses import replace
from pathlib import Path
from tfds_epilepsy.files import hold
file = hold({str(tmp_path / "run")!r})
print(flush=True)
input()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        other.stdout.readline()
        for overwrite in (False, True):
            with pytest.raises(InputError, match="another process is at work there"):
                Run(short_run(cohort), tmp_path / "run", data_dir=data_dir, overwrite=overwrite)
    finally:
        other.kill()
        other.communicate()
    assert Run(short_run(cohort), tmp_path / "run", data_dir=data_dir).finished  # a killed process lets go


def test_fewer_than_three_training_controls_are_too_few(cohort, data_dir, tmp_path):
    alone = tmp_path / "alone"
    for name in ("c0", "c1", "p1"):
        (alone / f"sub-{name}").parent.mkdir(exist_ok=True)
        (alone / f"sub-{name}").symlink_to(cohort / f"sub-{name}", target_is_directory=True)
    rows = [["sub-c0", "control", "train"], ["sub-c1", "control", "train"], ["sub-p1", "patient", "test"]]
    write_participants(alone, rows, "participant_id\tgroup\tsplit")
    with pytest.raises(InputError, match="2 controls in split 'train', at least 3"):
        Run(short_run(alone), tmp_path / "run", data_dir=data_dir)
    assert not (tmp_path / "run").exists()


def test_a_view_that_needs_more_controls_says_so(cohort, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(Deviations, "fewest_controls", 6)
    with pytest.raises(InputError, match=r"5 training controls; 'deviation'.* at least 6"):
        Run(RunConfig.resolve(str(cohort)), tmp_path / "run", data_dir=data_dir)
    assert not (tmp_path / "run").exists()


def test_other_data_are_scored_with_a_finished_run(finished, cohort, data_dir, tmp_path):
    score_cohort(finished.folder.path, str(cohort), tmp_path / "scores", data_dir=data_dir)
    scores = RunFolder(tmp_path / "scores")
    assert np.array_equal(read_nifti(scores.score_map("p1", SPACE))[0], finished.score_map("p1"))
    assert scores.clusters("c0", SPACE).is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"detector": "head"}, "no head"),
        ({"detector": "gaussian", "detector_config": {"gamma": 1}}, "no option gamma"),
        ({"model": "siamese", "detector": "signs"}, "no head"),
    ],
)
def test_a_detector_that_cannot_do_it_is_refused_before_anything_is_written(
    cohort, data_dir, tmp_path, settings, message
):
    with pytest.raises(InputError, match=message):
        Run(short_run(cohort, **settings), tmp_path / "run", data_dir=data_dir)
    assert not (tmp_path / "run").exists()


def test_signs_are_those_of_the_cohorts_modalities(cohort, data_dir, tmp_path):
    run = Run(short_run(cohort, model="none", detector="signs"), tmp_path / "run", data_dir=data_dir)
    run.fit()
    manifest = json.loads((run.folder.detector / "manifest.json").read_text())
    assert manifest["modalities"] == list(run.builder.modalities) == ["T1w", "FLAIR"]
    assert manifest["code_size"] == len(run.builder.modalities) + 1
    run.score()
    assert np.isfinite(run.score_map("p1")).all()


def test_a_run_takes_the_modalities_that_it_is_told_to(cohort, data_dir, tmp_path):
    some = tmp_path / "some"
    shutil.copytree(cohort, some)
    next((some / "sub-c0" / "anat").glob("*_FLAIR.nii.gz")).unlink()
    settings = {"model": "none", "detector": "zscore"}
    with pytest.raises(InputError, match="FLAIR"):
        Run(short_run(some, **settings), tmp_path / "run", data_dir=data_dir)
    run = Run(short_run(some, **settings, modalities=["T1w"]), tmp_path / "run", data_dir=data_dir)
    run.fit()
    assert run.builder.modalities == ("T1w",)
    (patient,) = open_run(tmp_path / "run", needs=["detector"], data_dir=data_dir).read("test", ["p1"])
    assert patient.image.shape[-1] == 1


def test_a_model_of_images_reads_deviations_where_it_is_told_to(cohort, data_dir, tmp_path):
    settings = short_run(cohort, detector="gaussian", model_config={"view": "deviations"}, epochs=1)
    run = Run(settings, tmp_path / "run", data_dir=data_dir)
    run.score()
    model = run.train()
    assert model.channels == len(run.builder.modalities) + 1
    control = next(iter(run.read("train")))
    assert model.view(control)[control.brain_mask].mean() == pytest.approx(0.5, abs=0.1)
    assert np.isfinite(run.score_map("p1")).all()


def test_a_run_whose_settings_were_stored_before_there_were_defaults_of_its_model_goes_on(
    cohort, data_dir, tmp_path
):
    run = Run(short_run(cohort), tmp_path / "run", data_dir=data_dir)
    stored = json.loads(run.folder.config.read_text())
    for later in ("fwhm", "detector_config", "preset"):
        del stored[later]
    run.folder.config.write_text(json.dumps(stored))
    assert Run(short_run(cohort), tmp_path / "run", data_dir=data_dir).config == run.config
