"""Build functions of users: which are taken, what a search remembers of them, and how trials get them."""

import functools
import inspect
import os
import subprocess
import sys
import threading
from pathlib import Path

import keras
import keras_tuner
import pytest
from keras import layers

from epizoo import models
from epizoo.models.patch_model import register_model
from epizoo.registry import MODELS
from tests.small_cohort import write_cohort
from tfds_epilepsy.errors import InputError
from tuning import builds

WIDTH = 4


def small(hp, width=4):
    """An autoencoder of patches (9, 9, 2)."""
    x = patch = keras.Input((9, 9, 2), name="patch")
    for _ in range(hp.Choice("depth", [1, 2])):
        x = layers.Conv2D(width, 3)(x)
    latent = layers.Dense(4, name="latent")(layers.Flatten()(x))
    model = keras.Model(patch, layers.Reshape((9, 9, 2))(layers.Dense(9 * 9 * 2)(latent)))
    model.encoder = keras.Model(patch, latent, name="encoder")
    model.compile("adam", "mse")
    return model


def reading(hp):
    return small(hp, WIDTH)


def counted(build):
    @functools.wraps(build)
    def inner(hp):
        return build(hp)

    return inner


class Hyper(keras_tuner.HyperModel):
    def __init__(self, width=4):
        super().__init__()
        self.width = width

    def build(self, hp):
        return small(hp, self.width)

    def bound(self, hp):
        return small(hp, self.width)


def nested(width):
    def build(hp):
        return small(hp, width)

    return build


KINDS = {
    "function": small,
    "lambda": lambda hp: small(hp, WIDTH),
    "nested function": nested(4),
    "partial": functools.partial(small, width=4),
    "decorated": counted(small),
    "object": Hyper(4),
    "class": Hyper,
    "bound method": Hyper(4).bound,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_build_is_taken_to_a_trial(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "build.pkl").write_bytes(builds.pack(builds.hypermodel_of(KINDS[kind])))
    model, values = builds.make(builds.load(tmp_path / "build.pkl"), {"depth": 2})
    assert values == {"depth": 2}
    assert [layer.filters for layer in model.layers if isinstance(layer, layers.Conv2D)] == [4, 4]


def test_a_model_that_a_script_registers_is_known_in_its_trials(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(MODELS, "registered", {})

    @register_model("own")
    class Own(type(models.create("wae"))):
        pass

    (tmp_path / "build.pkl").write_bytes(builds.pack(None))
    MODELS.registered.clear()
    assert "own" not in MODELS
    assert builds.load(tmp_path / "build.pkl") is None
    assert models.create("own", latent_dim=3).encoder.output_shape == (None, 3)


def test_conditions_scopes_and_fixed_values_come_back_from_the_values_alone():
    def build(hp):
        hp.Int("depth", 0, 2)
        width = hp.Int("width", 4, 8, parent_name="depth", parent_values=[1, 2])
        with hp.conditional_scope("depth", [2]):
            rate = hp.Float("rate", 0, 1)
        with hp.name_scope("encoder"):
            flag = hp.Boolean("flag")
        model = keras.Model()
        model.asked = [width, rate, flag, hp.Fixed("fixed", 3)]
        return model

    hypermodel = builds.hypermodel_of(build)
    given = {"depth": 1, "width": 7, "encoder/flag": True, "fixed": 3}
    model, values = builds.make(hypermodel, given)
    assert model.asked == [7, None, True, 3]
    assert values == given
    assert builds.make(hypermodel, {})[1] == {"depth": 0, "encoder/flag": False, "fixed": 3}


class Fitting(Hyper):
    def fit(self, hp, model, *args, **kwargs):
        return model.fit(*args, batch_size=hp.Int("batch_size", 8, 64), **kwargs)


class NeedsWidth(keras_tuner.HyperModel):
    def __init__(self, width):
        super().__init__()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (3, "a function of hp"),
        (keras.Model, "a function of hp"),
        (NeedsWidth, "give an object of the class"),
        (Fitting(), "does not call its 'fit'"),
        (lambda hp, width: None, "functools.partial"),
        (lambda: None, "called with hp alone"),
    ],
)
def test_what_is_no_build_says_what_to_write(build, message):
    with pytest.raises(InputError, match=message):
        builds.hypermodel_of(build)


def test_what_cannot_leave_the_process_is_named():
    lock = threading.Lock()
    with pytest.raises(InputError, match=r"lock.*inside build"):
        builds.pack(builds.hypermodel_of(lambda hp: small(hp) if lock else None))


def changed(**changes):
    model = small(keras_tuner.HyperParameters())
    for name, value in changes.items():
        setattr(model, name, value)
    return model


def uncompiled(channels):
    patch = keras.Input((9, 9, channels))
    model = keras.Model(patch, layers.Dense(channels + 1)(patch))
    model.encoder = keras.Model(patch, layers.Flatten()(patch))
    return model


@pytest.mark.parametrize(
    ("model", "messages"),
    [
        (lambda: None, ["returns NoneType"]),
        (lambda: changed(encoder=None), ["no 'encoder'"]),
        (lambda: changed(encoder=keras.Sequential([layers.Flatten()])), ["without a shape"]),
        (lambda: uncompiled(1), ["2 modalities", "not compiled", "give them back"]),
    ],
)
def test_a_model_that_no_trial_could_use_is_refused_with_all_reasons(model, messages):
    with pytest.raises(InputError) as error:
        builds.check(model(), channels=2)
    assert len(error.value.problems) == len(messages)
    for problem, message in zip(error.value.problems, messages, strict=True):
        assert message in problem


def test_models_that_trials_can_use_pass():
    builds.check(small(keras_tuner.HyperParameters()), channels=2)
    builds.check(models.create("siamese"), channels=2)


def test_a_patch_model_need_not_be_compiled_by_its_build():
    model, _ = builds.make(builds.hypermodel_of(lambda hp: models.create("wae")), {})
    assert model.compiled


def test_a_search_remembers_a_plain_function_by_its_source():
    """As searches of before did, which go on."""
    assert builds.text_of(plain) == inspect.getsource(plain)


def plain(hp):
    return keras.Model()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (functools.partial(small, width=4), functools.partial(small, width=8)),
        (nested(4), nested(8)),
        (Hyper(4), Hyper(8)),
        (Hyper(4).bound, Hyper(8).bound),
        (counted(small), counted(plain)),
    ],
)
def test_a_search_does_not_go_on_with_a_build_that_reads_other_values(one, other):
    assert builds.text_of(one) != builds.text_of(other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_knows_its_build_again_in_another_process(kind):
    assert "0x" not in builds.text_of(KINDS[kind])


def test_a_global_that_was_changed_is_another_build(monkeypatch):
    before = builds.text_of(reading)
    monkeypatch.setitem(reading.__globals__, "WIDTH", 8)
    assert builds.text_of(reading) != before


def test_what_a_module_was_changed_to_is_seen_before_the_first_trial():
    def description(width, rate=1e-3):
        model = small(keras_tuner.HyperParameters(), width)
        model.compile(keras.optimizers.Adam(rate), "mse")
        return builds.describe(model)

    assert description(4) == description(4)  # though Keras numbers the names of layers
    assert description(4) != description(8)
    assert description(4) != description(4, rate=1e-2)


SCRIPT = """
import keras_tuner, sibling
from tuning import DetectionTuner

class Own(keras_tuner.HyperModel):
    def build(self, hp):
        return sibling.small(hp, WIDTH)

WIDTH = 8
tuner = DetectionTuner(
    {data!r}, "a search", build=Own, trials=1, epochs=1, steps_per_epoch=2, data_dir={data_dir!r}
)
tuner.search()
(encoder,) = tuner.get_best_models()
print(encoder.output_shape, encoder.layers[1].filters)
"""


@pytest.mark.slow
def test_a_script_without_a_guard_and_with_a_sibling_is_searched(tmp_path):
    folder = tmp_path / "my scripts"
    folder.mkdir()
    source = "import keras\nfrom keras import layers\n" + inspect.getsource(small)
    (folder / "sibling.py").write_text(source)
    data = write_cohort(tmp_path / "cohort")
    script = SCRIPT.format(data=str(data), data_dir=str(tmp_path / "prepared"))
    (folder / "my search.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "my search.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "(None, 4) 8"
