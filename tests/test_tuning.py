"""Spaces, cases and trials: what is proposed, what it is judged by, what one trial does."""

import dataclasses
import json
import subprocess
import sys
import time

import keras
import keras_tuner
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

import tfds_epilepsy
from epizoo import models
from epizoo.dense import DenseEncoder
from epizoo.detection import FittedDetector
from epizoo.models.patch_model import PatchModel
from epizoo.registry import MODELS
from tests.small_cohort import write_cohort
from tfds_epilepsy import phantom
from tfds_epilepsy.errors import InputError
from tuning import DetectionTuner, cases, process, spaces, trial
from tuning.trial import Spec


def drawn(model, seed):
    """Values of a space as keras-tuner draws them."""
    space = keras_tuner.HyperParameters()
    spaces.declare(spaces.space_of(model), space)
    oracle = keras_tuner.oracles.RandomSearchOracle("val_loss", hyperparameters=space, seed=seed + 1)
    return oracle._random_values()


# === Spaces ===


@pytest.mark.parametrize("model", list(MODELS.own))
def test_what_is_proposed_has_a_dense_form(model):
    values = {**drawn(model, seed=3), "tuner/epochs": 2}  # as Hyperband writes it among them
    encoder = spaces.create(model, values, modalities=["T1w"], seed=0).encoder
    DenseEncoder(encoder)  # compares itself with the encoder
    assert encoder.output_shape == (None, values["latent_dim"])


def test_no_value_exists_that_nothing_reads():
    for seed in range(30):
        values = drawn("siamese", seed)
        assert ("nu" in values) == (values["detector"] == "ocsvm")
        assert ("k" in values) == (values["detector"] == "knn")
        assert ("shrinks" in values) == ("widen" in values) == (values["shrink"] != "none")


def test_values_become_layers_losses_and_rates():
    values = {
        **{"patch": 11, "latent_dim": 8, "depth": 3, "filters": 8, "kernel": 3, "shrink": "stride"},
        **{"shrinks": 1, "widen": "yes", "norm": "batch", "alpha": 0.5, "learning_rate": 3e-3},
        **{"detector": "ocsvm", "nu": 0.1, "fwhm": 4},
    }
    model = spaces.create("siamese", values, modalities=["T1w", "FLAIR"], seed=5)
    convolutions = [layer for layer in model.encoder.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [(c.filters, c.strides) for c in convolutions] == [(8, (2, 2)), (16, (1, 1)), (16, (1, 1))]
    assert any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.encoder.layers)
    assert (model.patch_shape, model.latent_dim, model.alpha, model.seed) == ((11, 11), 8, 0.5, 5)
    assert float(model.optimizer.learning_rate) == pytest.approx(3e-3)
    assert spaces.detector_config(values) == ("ocsvm", {"nu": 0.1}, 4.0)


def test_a_gan_gets_a_rate_for_each_optimiser():
    model = spaces.create(
        "bigan", {"d_learning_rate": 1e-4, "g_learning_rate": 2e-4}, modalities=["T1w"], seed=0
    )
    assert float(model.d_optimizer.learning_rate) == pytest.approx(1e-4)
    assert float(model.g_optimizer.learning_rate) == pytest.approx(2e-4)


def test_a_schedule_begins_at_the_rate():
    model = spaces.create(
        "synthetic", {"cube": 15, "width": 8, "learning_rate": 5e-3}, modalities=["T1w"], seed=0
    )
    own = models.create("synthetic").default_optimizers()["optimizer"].get_config()["learning_rate"]
    schedule = model.optimizer.get_config()["learning_rate"]
    assert schedule["config"] == {**own["config"], "initial_learning_rate": 5e-3}


def test_a_model_knows_its_modalities_as_in_a_run():
    model = spaces.create("synthetic", {"cube": 15, "width": 8}, modalities=["FLAIR", "T1w"], seed=0)
    assert list(model.directions) == [1, -1]


def test_the_context_gans_patch_holds_its_widest_surround():
    config = MODELS.get("context_gan").config_of_values({"centre": 5, "scales": "3 5", "position": "no"})
    assert config == {"scales": [3, 5], "patch_shape": [25, 25], "position": False}


def test_no_values_are_the_default_architecture():
    made = spaces.create("siamese", {}, modalities=["T1w", "FLAIR"], seed=0)
    assert made.get_config() == models.create("siamese", modalities=["T1w", "FLAIR"]).get_config()


def test_a_searched_architecture_is_kept_in_a_preset(tmp_path):
    model = spaces.create("wae", drawn("wae", 1), modalities=["T1w"], seed=0)
    again = models.from_preset(model.save_preset(tmp_path / "preset"))
    assert again.get_config() == model.get_config()
    patches = np.random.default_rng(0).random((3, *model.patch_shape, 1), np.float32)
    assert np.array_equal(again.encode(patches), model.encode(patches))


def test_stages_that_no_convolution_can_have_are_refused():
    with pytest.raises(InputError, match="stages"):
        models.create("siamese", stages=[[8, 0]])


def test_the_space_can_be_printed():
    rows = list(spaces.describe(spaces.space_of("siamese")))
    assert ("nu", "0.01 to 0.3, log-uniform", "detector is ocsvm") in rows
    with pytest.raises(InputError, match="unknown model 'resnet'"):
        spaces.space_of("resnet")


def test_a_model_without_a_space_says_so(monkeypatch):
    class Own(PatchModel):
        pass

    monkeypatch.setitem(MODELS.registered, "own", Own)
    with pytest.raises(InputError, match="'own' has no search space"):
        spaces.space_of("own")
    with pytest.raises(InputError, match="'own' has no search space"):
        DetectionTuner("phantom_2mm", "nowhere", model="own")


# === Cases ===


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def data(tmp_path_factory, data_dir):
    """A prepared cohort whose test subjects have been taken away: no trial may miss them."""
    folder = write_cohort(tmp_path_factory.mktemp("cohort"))
    tfds_epilepsy.load(folder, data_dir)
    removed = [path.unlink() for path in data_dir.rglob("*-test.tfrecord*")]
    assert removed
    return str(folder)


@pytest.fixture(scope="module")
def cohort(data, data_dir):
    return cases.Visible(data, data_dir)


def test_a_search_cannot_read_a_test_subject(cohort):
    for look in (cohort.read, cohort.subjects, cohort.controls):
        with pytest.raises(PermissionError, match="test"):
            look("test")
    assert {s.subject for split in cases.VISIBLE_SPLITS for s in cohort.read(split)} == {
        *(f"c{i}" for i in range(5)),
        *("v0", "v1", "w0", "w1"),
    }


def test_annotated_validation_patients_are_the_cases(cohort, tmp_path):
    content = cases.write_cases(cohort, tmp_path, seed=0)
    assert content == {"kind": "annotated", "families": [], "cases": ["w0", "w1"]}
    read = list(cases.read_cases(tmp_path))
    written = [s for s in cohort.read("validation") if s.group == "patient"]
    for one, other in zip(read, written, strict=True):
        assert one.subject == other.subject
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.lesion_mask, other.lesion_mask)


class Healthy:
    """A cohort whose validation split is one phantom control."""

    modalities = ("T1w", "FLAIR")

    def __init__(self, test_families):
        self.test_families = test_families
        self.control = phantom.subject(phantom.PhantomConfig(), "control041")

    def read(self, split):
        return iter([self.control])

    controls = read


def test_without_patients_controls_get_lesions_of_a_family_that_the_test_set_does_not_use(tmp_path):
    cohort = Healthy({"fcd_1", "fcd_2a", "fcd_2b"})
    content = cases.write_cases(cohort, tmp_path, seed=0)
    assert content["kind"] == "implanted"
    assert content["families"] == ["heterotopia", "hippocampal_sclerosis"]
    made = list(cases.read_cases(tmp_path))
    assert len(made) == cases.LESIONS_PER_CONTROL
    for case in made:
        changed = (case.image != cohort.control.image).any(-1)
        assert case.lesion_mask.any()
        assert changed[case.lesion_mask].mean() > 0.9
        assert not changed[~case.brain_mask].any()
        assert case.image.max() <= 1
    assert not np.array_equal(made[0].lesion_mask, made[1].lesion_mask)


def test_families_are_those_left_over():
    class Known:
        def __init__(self, families):
            self.test_families = set(families)

    assert cases.unused_families(Known([])) == ["heterotopia", "hippocampal_sclerosis"]
    assert cases.unused_families(Known(["heterotopia"])) == [k for k in cases.KINDS if k != "heterotopia"]
    with pytest.raises(InputError, match="every kind"):
        cases.unused_families(Known(cases.KINDS))


# === Trials ===

VALUES = {
    **{"patch": 7, "latent_dim": 8, "depth": 2, "filters": 8, "kernel": 3, "shrink": "none", "norm": "none"},
    **{"alpha": 0.01, "learning_rate": 1e-3, "detector": "knn", "k": 3, "fwhm": 4},
}


@pytest.fixture(scope="module")
def spec(cohort, data, data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    cases.write_cases(cohort, folder, seed=0)
    return Spec(
        data=data,
        data_dir=str(data_dir),
        fingerprint=cohort.fingerprint,
        cases=str(folder),
        model="siamese",
        values=VALUES,
        epochs=2,
        steps_per_epoch=4,
        batch_size=32,
    )


@pytest.fixture(scope="module")
def done(spec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trial")
    return folder, trial.run(spec, folder)


def test_a_trial_returns_the_mean_auc_of_the_cases(done, spec):
    folder, result = done
    assert result["status"] == "completed"
    normative = FittedDetector.load(folder / "detector", models.load_model(folder / "model.keras"))
    aucs, precisions = [], []
    for case in cases.read_cases(trial.Path(spec.cases)):
        score_map = normative.score(trial._thinned(case, trial.SLICES))
        seen = case.brain_mask & (np.arange(case.brain_mask.shape[2]) % trial.SLICES == 0)
        aucs.append(roc_auc_score(case.lesion_mask[seen], score_map[seen]))
        precisions.append(average_precision_score(case.lesion_mask[seen], score_map[seen]))
    assert result["figures"]["detection_auc"] == pytest.approx(np.mean(aucs), abs=1e-9)
    assert result["figures"]["detection_auprc"] == pytest.approx(np.mean(precisions), abs=1e-9)
    assert [row["detection_auc"] for row in result["cases"]] == pytest.approx(aucs, abs=1e-9)
    assert normative.subjects == [f"c{i}" for i in range(5)]


def test_a_trial_again_gives_the_same(done, spec, tmp_path):
    assert trial.run(spec, tmp_path)["cases"] == done[1]["cases"]


def test_figures_of_clusters_are_taken_from_whole_volumes(spec, done, tmp_path):
    for name in ("model.keras", "history.csv"):
        (tmp_path / name).write_bytes((done[0] / name).read_bytes())
    result = trial.run(dataclasses.replace(spec, objective="froc_auc"), tmp_path)
    assert set(result["figures"]) == set(trial.OBJECTIVES)
    assert 0 <= result["figures"]["froc_auc"] <= 1


@pytest.mark.slow
def test_maps_of_a_brain_are_made_of_the_whole_brain(spec, tmp_path):
    """In every second slice, neither deviations nor signs are those of the scan."""
    values = {"cube": 15, "width": 4, "latent_dim": 4, "learning_rate": 1e-3, "detector": "signs", "fwhm": 4}
    deviation = dataclasses.replace(spec, model="deviation", values=values, epochs=1, batch_size=4)
    result = trial.run(deviation, tmp_path)
    normative = FittedDetector.load(tmp_path / "detector", models.load_model(tmp_path / "model.keras"))
    assert normative.manifest["code_size"] == normative.manifest["channels"] + 2  # the junction, the logit
    aucs = []
    for case in cases.read_cases(trial.Path(spec.cases)):
        score_map = normative.score(case)
        aucs.append(roc_auc_score(case.lesion_mask[case.brain_mask], score_map[case.brain_mask]))
    assert [row["detection_auc"] for row in result["cases"]] == pytest.approx(aucs, abs=1e-9)


def test_a_hopeless_trial_is_given_up_after_its_epoch(spec, tmp_path):
    result = trial.run(dataclasses.replace(spec, limits={"1": 1e-6}), tmp_path)
    assert result["status"] == "pruned"
    assert "after epoch 1" in result["reason"]
    assert len(result["history"]) == 1
    assert not (tmp_path / "detector").exists()


def test_a_plain_model_that_diverges_fails_its_trial(spec, tmp_path):
    """Its figure would be null in result.json, over which the next trial's limits would break."""
    watcher = trial._watcher(spec, trial._Steps(tmp_path), "val_loss", 1.0)
    watcher.on_train_begin()
    watcher.on_epoch_end(0, {"loss": 0.3, "val_loss": 0.2})
    with pytest.raises(FloatingPointError, match="epoch 2: val_loss nan"):
        watcher.on_epoch_end(1, {"loss": 0.3, "val_loss": float("nan")})


def test_a_cohort_that_changed_during_a_search_ends_the_trial(spec, tmp_path):
    with pytest.raises(InputError, match="has changed"):
        trial.run(dataclasses.replace(spec, fingerprint="other"), tmp_path)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"seconds": 0.3, "gib": 8}, "longer than 0 s"), ({"seconds": 60, "gib": 0.001}, "more than 0.00 GiB")],
)
def test_time_and_memory_are_limited(spec, tmp_path, limits, reason):
    started = time.monotonic()
    result = process.supervise(spec, tmp_path / "trial", **limits)
    assert result["status"] == "failed"
    assert reason in result["reason"]
    assert time.monotonic() - started < 20
    assert json.loads((tmp_path / "trial" / "result.json").read_text()) == result


def test_a_process_that_breaks_says_its_last_word(spec, tmp_path, monkeypatch):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'the disk is full' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    result = process.supervise(spec, tmp_path / "trial", seconds=60, gib=8)
    assert result["status"] == "failed"
    assert result["reason"] == "ended with code 3: the disk is full"


def test_a_finished_trial_is_not_run_again(spec, tmp_path, monkeypatch):
    folder = tmp_path / "trial"
    folder.mkdir()
    stored = {"status": "completed", "reason": "", "figures": {"detection_auc": 0.5}, "seconds": 9.0}
    (folder / "result.json").write_text(json.dumps(stored))
    (folder / "spec.json").write_text(json.dumps(dataclasses.asdict(spec)))
    monkeypatch.setattr(sys, "executable", "/nowhere")
    later = dataclasses.replace(spec, limits={"1": 0.9})  # other trials have ended since
    assert process.supervise(later, folder, seconds=60, gib=8) == stored
    moved = dataclasses.replace(spec, data="elsewhere", cases="elsewhere")
    assert process.supervise(moved, folder, seconds=60, gib=8) == stored


def test_a_trial_does_not_go_on_with_the_training_of_other_values(spec, tmp_path, monkeypatch):
    folder = tmp_path / "best-1"
    (folder / "preset").mkdir(parents=True)
    (folder / "model.keras").touch()
    (folder / "result.json").write_text(json.dumps({"status": "completed", "seconds": 9.0}))
    (folder / "spec.json").write_text(json.dumps(dataclasses.asdict(spec)))
    monkeypatch.setattr(sys, "executable", "/nowhere")
    with pytest.raises(FileNotFoundError):
        process.supervise(dataclasses.replace(spec, seed=1), folder, seconds=60, gib=8)
    assert {path.name for path in folder.iterdir()} == {"spec.json", "log.txt"}


def test_killed_before_the_search_noted_a_result_the_result_is_whole(spec, tmp_path, monkeypatch):
    """Its own process wrote it: ``seconds`` and ``peak_gib`` once came later."""
    monkeypatch.setattr(trial, "run", lambda spec, folder: {"status": "pruned", "reason": "given up"})
    (tmp_path / "spec.json").write_text(json.dumps(dataclasses.asdict(spec)))
    trial.main(str(tmp_path / "spec.json"), str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/nowhere")
    result = process.supervise(spec, tmp_path, seconds=60, gib=8)
    assert result["status"] == "pruned"
    assert result["seconds"] > 0
    assert 0.1 < result["peak_gib"] < 24


def test_a_result_that_an_earlier_version_left_half_is_made_again(spec, tmp_path, monkeypatch):
    (tmp_path / "result.json").write_text(json.dumps({"status": "completed"}))
    old = {**dataclasses.asdict(spec), "hyperparameters": {}}  # it had one more field
    (tmp_path / "spec.json").write_text(json.dumps(old))
    (tmp_path / "checkpoint.keras").touch()
    monkeypatch.setattr(sys, "executable", "/nowhere")
    with pytest.raises(FileNotFoundError):  # it starts
        process.supervise(spec, tmp_path, seconds=60, gib=8)
    assert (tmp_path / "checkpoint.keras").is_file()  # from where it was


def test_a_process_whose_search_is_gone_does_no_trial(spec, tmp_path):
    """Once the process went on where the search was killed as it started, beside that of the next search."""
    (tmp_path / "spec.json").write_text(json.dumps(dataclasses.asdict(spec)))
    command = [sys.executable, "-m", "tuning.trial", str(tmp_path / "spec.json"), str(tmp_path), "1"]
    ended = subprocess.run(command, env=process.environment(), timeout=60, check=False)
    assert ended.returncode == 1
    assert not (tmp_path / "result.json").is_file()
