"""Presets: what a folder says, which one fits, and that it adapts to whatever controls there are."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import epizoo
from epizoo import presets
from epizoo.models.pretraining import configs
from epizoo.presets import Preset
from epizoo.run import Run
from epizoo.run_config import RunConfig
from tests.small_cohort import CONTROLS, TEST, write_cohort
from tfds_epilepsy.errors import InputError

SHIPPED = presets.shipped()
TWO_MM = (2.0, 2.0, 2.0)


@pytest.fixture
def small(tmp_path):
    """A folder of a network that reads two modalities, with all that a preset can say."""
    model = epizoo.create(
        "deviation", patch_shape=(9, 9, 9), channels=3, filters=2, modalities=["T1w", "FLAIR"]
    )
    return model.save_preset(
        tmp_path / "small", voxel_size=2.0, trained_on="a test", subjects=["h1"], licence="MIT"
    )


# === Folders ===


def test_a_preset_says_what_it_is(small):
    found = Preset.read(small)
    assert (found.model, found.modalities, found.voxel_size) == ("epizoo>Deviation", ("T1w", "FLAIR"), 2.0)
    assert (found.subjects, found.fewest_controls, found.shipped) == (["h1"], 3, False)
    card = (small / "card.md").read_text()
    assert card == presets.card(found)
    for words in ("# small", "T1w, FLAIR at 2 mm", "9x9x9 voxels, 3 maps", "a test", "| licence | MIT |"):
        assert words in card


@pytest.mark.parametrize("gone", ["config.json", "model.weights.h5"])
def test_an_incomplete_preset_is_named(small, gone):
    (small / gone).unlink()
    with pytest.raises(InputError, match=rf"small: not a preset, or an incomplete one: no {gone}\."):
        epizoo.from_preset(small)


def test_a_preset_of_a_later_version_is_refused(small):
    stored = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**stored, "tokeniser": 1, "epizoo": "9.0"}))
    with pytest.raises(InputError, match=r"knows no tokeniser of a preset; it was saved by version 9\.0"):
        epizoo.from_preset(small)


@pytest.mark.parametrize("damage", [b"", b"not weights", None])
def test_damaged_weights_are_named(small, damage, tmp_path):
    weights = small / "model.weights.h5"
    if damage is None:  # of another network
        other = epizoo.create("deviation", patch_shape=(9, 9, 9), channels=3, filters=3)
        shutil.copy(other.save_preset(tmp_path / "other") / weights.name, weights)
    else:
        weights.write_bytes(damage)
    with pytest.raises(
        InputError, match=r"model\.weights\.h5: cannot be read as those of a epizoo>Deviation"
    ):
        epizoo.from_preset(small)


def test_an_unknown_name_lists_what_is_shipped():
    with pytest.raises(InputError) as error:
        epizoo.from_preset("deviation_t2w")
    assert "deviation_t2w: neither a preset's folder nor a preset that epizoo ships" in str(error.value)
    assert all(preset.name in str(error.value) for preset in SHIPPED)


def test_an_unknown_name_is_answered_with_those_that_fit_the_data(cohort):
    size = "voxels of 2 x 2 x 2 mm"
    with pytest.raises(InputError, match=rf"cohort\d+ has T1w, FLAIR, {size}: deviation_t1w_flair fits\.$"):
        RunConfig.resolve(str(cohort), preset="deviation")
    with pytest.raises(InputError, match=rf"cohort\d+ has T1w, {size}: deviation_t1w fits\.$"):
        RunConfig.resolve(str(cohort), preset="deviation", modalities=["T1w"])


def test_an_unknown_name_is_answered_with_those_that_fit_a_phantom():
    with pytest.raises(InputError, match=r"phantom_2mm has T1w, FLAIR, .*: deviation_t1w_flair fits"):
        RunConfig.resolve("phantom_2mm", preset="deviation")
    with pytest.raises(InputError, match="phantom_1mm has T1w, FLAIR, voxels of 1 x 1 x 1 mm: none fits"):
        RunConfig.resolve("phantom_1mm", preset="deviation")


def test_a_preset_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no more")

    model = epizoo.create("siamese", patch_shape=(5, 5))
    monkeypatch.setattr(type(model), "save_weights", fail)
    with pytest.raises(RuntimeError, match="no more"):
        model.save_preset(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_what_a_preset_cannot_say_is_refused(tmp_path):
    with pytest.raises(InputError, match="colour, parameters: not for the caller"):
        epizoo.create("siamese").save_preset(tmp_path / "p", parameters=3, colour="red")
    assert not (tmp_path / "p").exists()


# === What fits ===


def test_why_a_preset_does_not_fit_is_said_in_a_sentence_each(small):
    found = Preset.read(small)
    assert found.problems(["T1w", "FLAIR"], TWO_MM, 3) == []
    assert found.problems(["FLAIR"], (1.0, 1.0, 1.2), 2) == [
        "preset small reads T1w, FLAIR, and the data have FLAIR",
        "preset small is for voxels of 2 mm, and the data have voxels of 1 x 1 x 1.2 mm",
        "preset small adapts to at least 3 controls, and there are 2 to train on",
    ]


def test_a_preset_that_says_little_fits_everything(tmp_path):
    folder = epizoo.create("siamese", patch_shape=(5, 5)).save_preset(tmp_path / "p")
    assert Preset.read(folder).problems(["SWI"], (1.0, 1.0, 1.0), 1) == []


# === It adapts ===


def test_a_preset_holds_nothing_of_the_controls_that_it_was_trained_on(tmp_path, cohort, data_dir):
    model = epizoo.create(
        "deviation", patch_shape=(9, 9, 9), channels=3, filters=2, modalities=["T1w", "FLAIR"]
    )
    controls = list(Run(RunConfig.resolve(str(cohort)), tmp_path / "run", data_dir=data_dir).read("train"))
    model.view.adapt(controls)
    again = epizoo.from_preset(model.save_preset(tmp_path / "p"))
    assert again.view.state() == {}
    with pytest.raises(InputError, match=r"call adapt\(controls\) first"):
        again.view(controls[0])
    sizes = sum(array.size for array in model.get_weights())
    assert (tmp_path / "p" / "model.weights.h5").stat().st_size < 4 * sizes + 200_000
    model.view.adapt(controls[:3])
    assert epizoo.from_preset(tmp_path / "p").view.adapt(controls[:3]).fingerprint == model.view.fingerprint


def test_a_run_with_a_preset_adapts_it_and_trains_nothing(small, cohort, data_dir, tmp_path, capsys):
    stored = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**stored, "subjects": []}))
    run = Run(RunConfig.resolve(str(cohort), preset=small), tmp_path / "run", data_dir=data_dir)
    run()
    assert "its deviations adapted to 5 controls: nothing is trained" in " ".join(
        capsys.readouterr().err.split()
    )
    own = epizoo.load_model(run.folder.model)
    for a, b in zip(own.get_weights(), epizoo.from_preset(small).get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    fresh = epizoo.from_preset(small).view.adapt(run.read("train"))
    assert own.view.fingerprint == fresh.fingerprint
    metadata = json.loads(run.folder.metadata.read_text())
    assert "adapt" in metadata["steps"]
    assert "train" not in metadata["steps"]
    assert run.config.weights == "preset"
    assert metadata["weights"] == "the preset small, adapted to the training controls; nothing was trained"
    again = Run(RunConfig.resolve(str(cohort), preset=small), tmp_path / "run", data_dir=data_dir)
    assert again.finished


def test_fine_tuning_begins_from_the_preset(small, cohort, data_dir, tmp_path):
    stored = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**stored, "subjects": []}))
    config = RunConfig.resolve(
        str(cohort), preset=small, fine_tune=True, epochs=1, steps_per_epoch=1, batch_size=2
    )
    run = Run(config, tmp_path / "run", data_dir=data_dir)
    model = run.train()
    assert (model.epochs, model.steps) == (1, 1)
    before, after = epizoo.from_preset(small).get_weights(), model.get_weights()
    moved = [float(np.abs(a - b).max()) for a, b in zip(before, after, strict=True)]
    assert 0 < max(moved[:1]) <= 6e-4  # Adam's first step is its rate, a quarter of 2e-3
    assert config.differences(Run.open(tmp_path / "run", data_dir=data_dir).config) == []


def test_subjects_that_a_preset_has_seen_are_not_tested(small, cohort, data_dir, tmp_path):
    run = Run(RunConfig.resolve(str(cohort), preset=small), tmp_path / "run", data_dir=data_dir)
    with pytest.raises(InputError, match="h1"):
        run()
    assert not run.folder.metrics.exists()


@pytest.mark.parametrize("maker", ["epizoo phantom", "another tool"])
def test_a_phantom_that_a_preset_was_trained_on_is_not_tested(small, data_dir, tmp_path, maker):
    stored = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**stored, "subjects": [], "phantoms": [1003]}))
    data = write_cohort(tmp_path / "data", {**CONTROLS, **TEST})
    made = {"GeneratedBy": [{"Name": maker, "Parameters": {"seed": 1003}}]}
    description = {"Name": "x", "BIDSVersion": "1.10.0", "DatasetType": "derivative", **made}
    (data / "dataset_description.json").write_text(json.dumps(description))
    config = RunConfig.resolve(str(data), preset=small)
    if maker == "another tool":
        Run(config, tmp_path / "run", data_dir=data_dir)
        return
    with pytest.raises(InputError, match=r"trained on subjects of this very phantom \(seed 1003\)"):
        Run(config, tmp_path / "run", data_dir=data_dir)
    assert not (tmp_path / "run").exists()


def test_a_preset_for_other_scans_is_refused_before_anything_is_written(small, data_dir, tmp_path):
    controls = {name: who for name, who in CONTROLS.items() if name in ("c0", "c1", "c2", "v0")}
    data = write_cohort(tmp_path / "data", {**controls, **TEST})
    config = RunConfig.resolve(str(data), preset=small, modalities=["T1w"])
    with pytest.raises(
        InputError, match=r"preset small reads T1w, FLAIR, and the data have T1w: \w+"
    ) as error:
        Run(config, tmp_path / "run", data_dir=data_dir)
    assert len(error.value.problems) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, "fitting"),
        ({"model": "deviation"}, "fitting"),
        ({"train": True}, "trained"),
        ({"epochs": 3}, "trained"),
        ({"fine_tune": True, "epochs": 3}, "fine-tuned"),
        ({"detector": "zscore"}, "trained"),
    ],
)
def test_where_the_weights_come_from(options, weights):
    assert RunConfig.resolve("data", **options).weights == weights


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train": True, "fine_tune": True}, "train: from the start, without a preset"),
        ({"train": True, "detector": "zscore"}, "train True: without effect, since detector 'zscore'"),
        ({"fine_tune": True, "model": "none"}, "fine_tune True: without effect, since the model is 'none'"),
    ],
)
def test_options_without_effect_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        RunConfig.resolve("data", **options)


def test_a_killed_run_goes_on_whether_its_preset_was_found_or_not():
    config = RunConfig.resolve("data")
    found = replace(config, preset="deviation_t1w", epochs=0, steps_per_epoch=0, batch_size=0)
    assert found.differences(config) == config.differences(found) == config.differences(config) == []
    assert found.differences(RunConfig.resolve("data", train=True))
    assert config.differences(replace(config, epochs=3)) == ["epochs 8 -> 3"]


def test_there_is_nothing_to_fine_tune_where_no_preset_fits():
    with pytest.raises(InputError, match=r"no shipped preset of 'siamese' fits SWI at 2 x 2 x 2 mm"):
        RunConfig.resolve("data", model="siamese", fine_tune=True).settled(["SWI"], TWO_MM)
    assert RunConfig.resolve("data", model="siamese").settled(["SWI"], TWO_MM).preset is None


# === Those that are shipped ===


def test_the_shipped_presets_are_small_and_made_of_no_ones_data():
    assert {"deviation_t1w", "deviation_t1w_flair"} <= {preset.name for preset in SHIPPED}
    files = [path for preset in SHIPPED for path in preset.folder.iterdir()]
    assert sum(path.stat().st_size for path in files) < 1.5e6
    family = list(configs())
    for preset in SHIPPED:
        seen = family[: len(preset.phantoms)]  # those that were taught earlier saw the first ones alone
        assert (list(preset.phantoms), list(preset.subjects)) == ([config.seed for config in seen], [])
        people = sum(config.n_train for config in seen)
        assert f"{people} controls of {len(seen)} phantom cohorts" in preset.trained_on


@pytest.mark.parametrize("preset", SHIPPED, ids=lambda preset: preset.name)
def test_a_shipped_preset_is_what_its_card_says(preset):
    model = epizoo.from_preset(preset.name)
    assert model.count_params() == preset.parameters
    assert model.view.fewest_controls == preset.fewest_controls
    assert model.get_config() == preset.config
    assert (preset.folder / "card.md").read_text() == presets.card(preset)
    assert "| whose data | no person's" in presets.card(preset)
    assert presets.fitting("deviation", preset.modalities, TWO_MM) == preset
    assert presets.fitting("deviation", preset.modalities, (1.0, 1.0, 1.0)) is None
    config = RunConfig.resolve("data").settled(preset.modalities, TWO_MM)
    assert (config.preset, config.epochs, config.weights) == (preset.name, 0, "fitting")
