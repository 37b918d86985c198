import math
import re
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import epizoo
from epizoo.models import blocks, training
from epizoo.testing.models import Case
from tfds_epilepsy.errors import InputError

ONE, SEVERAL = Case("autoencoder", (5, 5), 1), Case("bigan", (5, 5), 1)


def test_figure_is_the_mean_of_the_batches_that_define_it():
    figure = training.Figure("loss")
    assert math.isnan(figure.result())
    for value, n in ((2.0, 3), (math.nan, 5), (6.0, 1)):
        figure.update_state(value, sample_weight=n)
    assert float(figure.result()) == 3
    figure.reset_state()
    figure.update_state(math.nan, sample_weight=2)
    assert math.isnan(figure.result())


def test_models_built_in_threads_at_once_are_those_built_alone():
    built = {}

    def build(number):
        dtype = ("float32", "mixed_bfloat16")[number % 2]
        built[number] = epizoo.create("autoencoder", patch_shape=(5, 5), seed=number % 3, dtype=dtype)

    threads = [threading.Thread(target=build, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, model in built.items():
        alone = epizoo.create("autoencoder", patch_shape=(5, 5), seed=number % 3).get_weights()
        assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), alone, strict=True))
        assert model.encoder.layers[1].compute_dtype == ("float32", "bfloat16")[number % 2]


@pytest.mark.parametrize("kind", ["Conv", "MaxPooling", "UpSampling"])
def test_blocks_have_their_channels_last_outside_a_model_too(kind):
    keras.config.set_image_data_format("channels_first")
    try:
        made = blocks.layer(kind, 2)(**({"filters": 3, "kernel_size": 1} if kind == "Conv" else {}))
    finally:
        keras.config.set_image_data_format("channels_last")
    assert made.data_format == "channels_last"


def test_another_backend_of_keras_is_named(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    with pytest.raises(InputError, match="KERAS_BACKEND=tensorflow"):
        ONE.create()


def test_data_of_ones_own_train_as_the_page_on_models_shows(tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.save("patches.npy", rng.integers(0, 256, (6, 15, 15, 2)).astype(np.uint8))
    names = {"np": np, "tf": tf, "keras": keras, "epizoo": epizoo}
    names["held_out_patches"] = rng.random((4, 15, 15, 2))
    exec(code.replace("epochs=20", "epochs=2").replace("fit(", "fit(verbose=0, x="), names)
    assert (names["model"].epochs, names["model"].steps) == (2, 2)


def test_learning_rate_of_several_optimisers_is_asked_of_each():
    model = SEVERAL.create()
    assert [optimiser.name for optimiser in model.optimizer.optimizers] == ["d_optimizer", "g_optimizer"]
    model.summary(print_fn=lambda line: None)
    for touch in (
        lambda: model.optimizer.learning_rate,
        lambda: setattr(model.optimizer, "learning_rate", 1),
    ):
        with pytest.raises(AttributeError, match=r"model\.d_optimizer\.learning_rate"):
            touch()


def test_optimiser_of_another_model_is_refused():
    model, other = ONE.create(), ONE.create()
    with pytest.raises(InputError, match="weights of another model: give a new one"):
        model.compile(other.optimizer)
    model.compile(model.optimizer)
    shared = keras.optimizers.SGD()
    with pytest.raises(InputError, match="each needs its own"):
        SEVERAL.create().compile(d_optimizer=shared, g_optimizer=shared)


def test_averaged_weights_of_an_optimiser_become_the_models_when_training_ends():
    model = SEVERAL.create()
    model.compile(
        d_optimizer=keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5),
        g_optimizer="sgd",
        run_eagerly=True,
    )
    model.fit(SEVERAL.batch(4), batch_size=2, verbose=0)
    averaged = model.d_optimizer._model_variables_moving_average
    for weight, average in zip(model.trained_by("d_optimizer"), averaged, strict=True):
        assert np.array_equal(weight, average)


def test_regularisers_are_refused_because_no_loss_holds_them():
    model = ONE.create()
    with training.keras_settings():
        model.encoder = keras.Sequential(
            [keras.Input((5, 5, 1)), keras.layers.Flatten(), keras.layers.Dense(64, kernel_regularizer="l2")]
        )
    with pytest.raises(InputError, match="add their terms in compute_losses"):
        model.compile()


def test_replaced_average_of_another_shape_is_named():
    model = SEVERAL.create()
    with training.keras_settings():
        model.encoder = blocks.conv_encoder((5, 5), 1, 64, [blocks.Stage(7, 5)], linear=True)
    with pytest.raises(InputError, match="change live_encoder, too"):
        model.fit(SEVERAL.batch(2), verbose=0)


def test_frozen_network_of_several_stays_and_the_others_learn():
    model = SEVERAL.create()
    model.discriminator.trainable = False
    model.compile(run_eagerly=True)
    before = model.discriminator.get_weights(), model.live_encoder.get_weights()
    model.fit(SEVERAL.batch(2), verbose=0)
    after = model.discriminator.get_weights(), model.live_encoder.get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert not np.array_equal(before[1][0], after[1][0])


def test_skipped_step_moves_neither_weights_nor_averages():
    """What a LossScaleOptimizer does in its first steps, until its scale fits."""
    model = SEVERAL.create()
    optimiser = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), initial_scale=1e38)
    model.compile(d_optimizer="sgd", g_optimizer=optimiser, run_eagerly=True)
    before = model.live_encoder.get_weights() + model.encoder.get_weights()
    model.fit(SEVERAL.batch(2), verbose=0)
    after = model.live_encoder.get_weights() + model.encoder.get_weights()
    assert int(optimiser.iterations) == 0
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_weights_beside_a_data_set_are_named():
    data = tf.data.Dataset.from_tensors((ONE.batch(2), None, np.ones(2)))
    with pytest.raises(InputError, match="sample_weight was given"):
        ONE.create().fit(data, verbose=0)


def test_nan_in_a_corner_that_the_network_does_not_look_at_is_warned_of():
    case = Case("deviation", (7, 7), 1)
    batch = case.batch(2)
    batch["patch"][0, 0, 0, 0] = np.nan
    with pytest.warns(UserWarning, match="1.02 % of the values in patches lie outside"):
        case.create().fit(batch, verbose=0)
