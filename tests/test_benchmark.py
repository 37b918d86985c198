import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from epizoo import supervised
from epizoo.benchmark import BASELINES, ON_CODES, benchmark, entry_of
from epizoo.detection import DETECTORS
from epizoo.evaluation import evaluate
from epizoo.export import export_run
from epizoo.finished_run import open_run
from epizoo.outputs import score_cohort
from epizoo.registry import MODELS
from epizoo.run import Run
from epizoo.run_config import RunConfig
from epizoo.run_folder import RunFolder
from epizoo.run_metadata import Metadata, Step
from tests.scored import scored
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import read_json, write_json
from tfds_epilepsy.volumes import read_nifti


@pytest.fixture
def quick(monkeypatch):
    """A supervised reference that is trained in a second, on spots: the cohort has no cortex."""

    def spots(controls, modalities, n):
        for control in itertools.islice(controls, n):
            lesion = np.zeros_like(control.brain_mask)
            lesion[10:13, 10:13, 4:7] = True
            yield replace(control, image=np.maximum(control.image, lesion[..., None]), lesion_mask=lesion)

    monkeypatch.setattr(supervised, "annotated_controls", spots)
    monkeypatch.setattr(supervised, "TRAINING", {"epochs": 2, "steps_per_epoch": 2, "batch_size": 2})


@pytest.mark.slow
def test_every_method_has_its_row_and_detectors_share_an_encoder(cohort, data_dir, tmp_path, quick):
    def run():
        return benchmark(
            str(cohort),
            tmp_path,
            ["siamese"],
            ["gaussian", "knn"],
            ["zscore"],
            preset="deviation_t1w_flair",
            seeds=1,
            supervised=3,
            data_dir=data_dir,
            epochs=1,
            steps_per_epoch=3,
            batch_size=16,
        )

    table = run()
    rows = pd.read_csv(tmp_path / "leaderboard.tsv", sep="\t")
    assert set(rows["method"]) == {
        *("siamese + gaussian", "siamese + knn", "zscore"),
        "two_pathways + supervised",
        "deviation (preset) + profiles",
    }
    for method in rows["method"]:
        assert method in table.read_text()
    models = [(tmp_path / f"siamese-{name}-0" / "model.keras").read_bytes() for name in ("gaussian", "knn")]
    assert models[0] == models[1]
    trained = [
        read_json(tmp_path / f"siamese-{name}-0" / "metadata.json")["steps"]["train"]
        for name in ("gaussian", "knn")
    ]
    assert trained[0] == trained[1]
    assert rows.set_index("method")["supervised"].to_dict() == {
        method: "supervised" in method for method in rows["method"]
    }
    assert "two_pathways + supervised †" in table.read_text()
    assert "two_pathways + supervised †" in (tmp_path / "leaderboard.html").read_text()
    metrics = list(tmp_path.glob("*/metrics.json"))
    before = [path.stat().st_mtime_ns for path in metrics]
    run()
    assert [path.stat().st_mtime_ns for path in metrics] == before


@pytest.mark.slow
def test_the_supervised_reference_is_marked_and_opened_like_any_run(cohort, data_dir, tmp_path, quick):
    config = supervised.supervised_config(str(cohort), patients=4)
    run = Run(config, tmp_path / "cnn", data_dir=data_dir)
    run()
    metadata = read_json(run.folder.metadata)
    assert metadata["supervised"] is True
    assert metadata["fitted_on"] == "4 annotated lesions implanted in training controls"
    assert read_json(run.folder.detector / "manifest.json")["subjects"] == ["c0", "c1", "c2", "c3"]
    assert "Supervised reference, an upper bound: learnt from 4 annotated" in run.folder.report.read_text()
    assert "made again by" in run.folder.report.read_text()
    assert "epizoo.Run(epizoo.RunConfig(data=" in run.folder.report.read_text()
    assert "Around the peaks: a patch of 15 × 15" in run.folder.report.read_text()
    again = Run.open(run.folder.path, data_dir=data_dir)
    assert again.evaluate().to_json() == read_json(run.folder.metrics)
    score_cohort(run.folder.path, str(cohort), tmp_path / "maps", data_dir=data_dir)
    maps = RunFolder(tmp_path / "maps").score_map("p1", run.space)
    np.testing.assert_array_equal(read_nifti(maps)[0], run.score_map("p1"))
    with pytest.raises(InputError, match="unknown method 'guess'"):
        Run(replace(config, method="guess"), tmp_path / "other", data_dir=data_dir)
    with pytest.raises(InputError, match="supervised reference is a bound"):
        export_run(run.folder.path, tmp_path / "export", what="pipeline")
    with pytest.raises(InputError, match="0 annotated patients"):
        supervised.supervised_config(str(cohort), patients=0)


def test_a_supervised_run_of_an_earlier_version_is_opened(tmp_path):
    config = supervised.supervised_config("phantom_2mm", patients=4)
    before = {**config.to_json(), "detector": "supervised"}
    del before["method"]
    write_json(tmp_path / "config.json", before)
    assert RunConfig.read(tmp_path / "config.json") == config
    for later in ("fwhm", "preset", "detector_config"):
        del before[later]
    write_json(tmp_path / "config.json", before)
    assert RunConfig.read(tmp_path / "config.json") == config


def test_names_are_checked_before_any_work(tmp_path):
    with pytest.raises(InputError) as error:
        benchmark("phantom_2mm", tmp_path / "out", ["siamese", "mamba"], ["zscore"], ["ocsvm", "flair"])
    assert len(error.value.problems) == 3
    with pytest.raises(InputError, match="0 seeds run baselines alone"):
        benchmark("phantom_2mm", tmp_path / "out", ["siamese"], seeds=0)
    assert not (tmp_path / "out").exists()


def test_a_preset_that_does_not_fit_is_refused_before_any_work(cohort, data_dir, tmp_path):
    with pytest.raises(InputError, match="preset deviation_t1w reads T1w, and the data have T1w, FLAIR"):
        benchmark(str(cohort), tmp_path, baselines=["zscore"], preset="deviation_t1w", data_dir=data_dir)
    assert not (tmp_path / "zscore").exists()


def test_detectors_say_what_they_read():
    assert set(BASELINES) == {"zscore", "flair", "junction_extension", "spm", "signs", "profiles"}
    assert set(BASELINES) & set(ON_CODES) == {"signs", "profiles"}
    assert set(BASELINES) | set(ON_CODES) == set(DETECTORS)


def test_by_default_everything_is_planned(cohort, data_dir, tmp_path, monkeypatch):
    asked = []

    def plan(data, *methods):
        asked.append(methods)
        return iter(())

    monkeypatch.setattr("epizoo.benchmark._plan", plan)
    with pytest.raises(InputError, match="no method"):
        benchmark(str(cohort), tmp_path, data_dir=data_dir)
    models, detectors, baselines, preset, seeds, supervised, _, _ = asked[0]
    assert list(models) == list(MODELS)
    assert (list(baselines), list(detectors)) == (list(BASELINES), [])
    assert (preset, seeds, supervised) == (None, 3, 60)


def test_an_evaluated_run_is_an_entry_of_the_leaderboard(tmp_path):
    write_json(tmp_path / "config.json", RunConfig.resolve("data", model="siamese", seed=3).to_json())
    Metadata(
        versions={},
        data_hash="d",
        split_hash="s",
        modalities=["T1w"],
        space="MNI",
        splits={},
        steps={"train": Step(5.0, 1.5), "score": Step(2.0, 2.5)},
    ).write(tmp_path / "metadata.json")
    with pytest.raises(InputError, match=r"not finished \(no metrics.json\)"):
        open_run(tmp_path, needs=["metrics"])
    write_json(tmp_path / "metrics.json", evaluate([scored("c0", 1)], threshold=0.0, resamples=50))
    got = entry_of(open_run(tmp_path, needs=["metrics"]))
    assert (got.method, got.seed, got.cohort, got.supervised) == ("siamese + ocsvm", 3, "d/s", False)
    assert (got.seconds, got.peak_gib) == ({"train": 5.0, "score": 2.0}, 2.5)
    assert got.metrics == open_run(tmp_path, needs=["metrics"]).metrics


def test_every_run_of_a_benchmark_reads_the_folder_as_it_was_told(tmp_path, monkeypatch):
    asked = []

    def refused(config, *_, **__):
        asked.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("epizoo.benchmark.Run", refused)
    source = {"modalities": ["T1w"], "reading": {"space": "MNI"}}
    for methods in ({"baselines": ["zscore"]}, {"baselines": [], "seeds": 1, "supervised": 2}):
        options = {"models": [], "seeds": 0, "supervised": 0, **methods}
        with pytest.raises(KeyboardInterrupt):
            benchmark(str(tmp_path), tmp_path / "out", **options, **source)
    with pytest.raises(KeyboardInterrupt):
        benchmark(str(tmp_path), tmp_path / "out", ["siamese"], baselines=[], seeds=1, supervised=0, **source)
    assert [config.method for config in asked] == ["normative", "supervised", "normative"]
    for config in asked:
        assert (config.modalities, config.reading) == (["T1w"], {"space": "MNI"})
    with pytest.raises(InputError, match="without effect"):
        benchmark("phantom_2mm", tmp_path / "out", **source)
