"""The settings of a run: what is left out, what cannot be, and what earlier versions stored."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import ClassVar

import pytest

from epizoo.models import PatchModel, create
from epizoo.registry import MODELS
from epizoo.run_config import RunConfig, data_name
from tfds_epilepsy.errors import InputError


def resolve(**given):
    return RunConfig.resolve("nowhere", **given)


def test_what_is_left_out_is_that_of_the_model_and_the_detector():
    def settings(**given):
        run = resolve(**given)
        return run.detector, run.epochs, run.steps_per_epoch, run.batch_size, run.fwhm

    assert settings(model="siamese") == ("ocsvm", 10, 500, 256, 0.0)
    assert settings(model="none", detector="zscore") == ("zscore", 0, 0, 0, 0.0)
    assert settings(model="none", detector="signs") == ("signs", 0, 0, 0, 8.0)
    assert settings() == settings(model="deviation") == ("profiles", 8, 250, 16, 0.0)
    assert settings(model="synthetic") == ("signs", 8, 250, 16, 8.0)
    assert settings(model="synthetic", detector="ocsvm", epochs=3) == ("ocsvm", 3, 250, 16, 0.0)
    assert settings(model="siamese", detector="head", fwhm=2.0) == ("head", 10, 500, 256, 2.0)


def test_a_model_of_ones_own_has_its_own_settings(monkeypatch):
    class Own(PatchModel):
        run_defaults: ClassVar = {**PatchModel.run_defaults, "detector": "gaussian", "epochs": 2, "fwhm": 4.0}

    monkeypatch.setitem(MODELS.registered, "own", Own)
    run = resolve(model="own")
    assert (run.detector, run.epochs, run.batch_size, run.fwhm) == ("gaussian", 2, 256, 4.0)


def test_nothing_is_trained_for_a_detector_that_reads_images_alone():
    assert resolve(detector="zscore") == resolve(model="none", detector="zscore")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"model": "nonsense", "detector": "guess"},
            ["unknown model 'nonsense'", "unknown detector 'guess'"],
        ),
        ({"model": "none", "detector": "zscore", "epochs": 3}, ["epochs 3: without effect"]),
        ({"model": "none", "model_config": {"latent_dim": 8}}, ["model_config {'latent_dim': 8}: without"]),
        ({"detector": "zscore", "batch_size": 3}, ["batch_size 3: without effect"]),
        ({"model": "siamese", "detector": "zscore"}, ["model 'siamese': without effect"]),
        ({"model": "siamese", "model_config": {"patch_shape": [4, 4]}}, ["patch_shape (4, 4)"]),
        ({"model": "siamese", "model_config": {"colour": 1}}, ["colour"]),
        ({"model": "deviation", "model_config": {"view": "image"}}, ["view 'image'"]),
        ({"model": "siamese", "detector": "knn", "detector_config": {"nu": 0.1}}, ["no option nu"]),
        ({"model": "siamese", "detector_config": {"k": 1}}, ["no option k"]),
        ({"data": "phantom_2mm", "modalities": ["T1w"]}, ["modalities T1w: without effect"]),
        ({"epochs": 0, "fwhm": -1}, ["epochs 0", "fwhm -1"]),
        (
            {"preset": "p", "model": "siamese", "epochs": 3},
            ["model siamese, epochs 3: without", "neither a preset's folder"],
        ),
    ],
)
def test_what_cannot_be_or_has_no_effect_is_refused_all_at_once(given, words):
    with pytest.raises(InputError) as error:
        RunConfig.resolve(**{"data": "nowhere", **given})
    assert len(error.value.problems) == len(words)
    for problem, word in zip(error.value.problems, words, strict=True):
        assert word in problem


def test_a_preset_brings_its_model_and_the_detector_of_its_search(tmp_path):
    create("siamese", patch_shape=(5, 5), latent_dim=3).save_preset(tmp_path / "preset")
    run = resolve(preset=tmp_path / "preset")
    assert (run.model, run.detector, run.epochs) == ("siamese", "ocsvm", 0)
    stored = {"detector": "knn", "config": {"k": 3}, "fwhm": 4.0, "trained_on": []}
    (tmp_path / "preset" / "detector.json").write_text(json.dumps(stored))
    run = resolve(preset=tmp_path / "preset")
    assert (run.detector, run.detector_config, run.fwhm) == ("knn", {"k": 3}, 4.0)
    other = resolve(preset=tmp_path / "preset", detector="gaussian")
    assert (other.detector, other.detector_config, other.fwhm) == ("gaussian", {}, 0.0)


def test_settings_are_read_as_they_were_written_and_earlier_ones_completed(tmp_path):
    path = tmp_path / "config.json"
    config = resolve(model="siamese", model_config={"patch_shape": (9, 9)}, detector_config={"nu": 0.1})
    path.write_text(json.dumps(config.to_json()))
    assert RunConfig.read(path) == config
    early = {"data": "nowhere", "model": "siamese", "detector": "ocsvm", "epochs": 3}
    path.write_text(json.dumps(early))
    assert RunConfig.read(path) == resolve(model="siamese", epochs=3)
    early = {"data": "nowhere", "model": "none", "detector": "zscore", "epochs": 10, "batch_size": 256}
    path.write_text(json.dumps(early))
    assert RunConfig.read(path) == resolve(model="none", detector="zscore")


@pytest.mark.parametrize(
    ("content", "word"),
    [('{"data": "a", "colour": 1}', "no setting colour"), ("[]", "damaged"), ("{", "JSON")],
)
def test_settings_of_a_later_version_and_damaged_ones_are_refused(tmp_path, content, word):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=word):
        RunConfig.read(tmp_path / "config.json")


def test_a_folder_has_one_name(tmp_path, monkeypatch):
    (tmp_path / "der").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for way in ("der", "der/", "./der", "~/der", tmp_path / "der"):
        assert data_name(way) == str(tmp_path / "der")
    (tmp_path / "phantom_2mm").mkdir()
    assert data_name("phantom_2mm") == "phantom_2mm"  # as the builder takes it
    assert data_name("./phantom_2mm") == str(tmp_path / "phantom_2mm")
    assert data_name("nowhere") == "nowhere"


def test_a_baselines_settings_need_no_tensorflow():
    code = (
        "import sys; from epizoo import RunConfig; RunConfig.resolve('phantom_2mm', detector='zscore'); "
        "print('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_differences_are_named():
    config = resolve(model="siamese")
    assert config.differences(replace(config, epochs=3)) == ["epochs 10 -> 3"]


def test_how_a_folder_is_read_is_kept_and_is_without_effect_on_a_config(tmp_path):
    reading = {"space": "MNI", "groups": {"typ": "control"}}
    assert RunConfig.resolve(tmp_path, reading=reading).reading == reading
    with pytest.raises(
        InputError, match=r"space MNI: without effect, since phantom_2mm is no folder of scans"
    ):
        RunConfig.resolve("phantom_2mm", reading={"space": "MNI"})
