"""What a model must do: one function for each property, and ``check_model`` for all of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import epizoo
from epizoo.models import callbacks, patch_model
from epizoo.registry import MODELS
from epizoo.testing.outcomes import named, refused
from tfds_epilepsy.errors import InputError

BATCH = 8


def check_model(name: str, patch_shape: tuple[int, ...] = (15, 15), channels: int = 2) -> None:
    """Hold a model of your own to what every model of the zoo does.

    It builds from its seed; a killed training resumes to the same bits; what is saved holds all; a code does
    not depend on the other patches of its batch, is the same at every voxel of a volume (dense form) and in
    an export; training takes what Keras users give it, or says why not. It takes a minute or two on a small
    model.

    >>> check_model("siamese")  # doctest: +SKIP

    Args:
        name: in the registry (``epizoo.register_model``, or an entry point).
        patch_shape, channels: of a small form of the model; it is built with defaults for the rest.

    Raises:
        AssertionError: a property that the model lacks; its note names the property.
        InputError: an unknown name, or a form that the model refuses.
    """
    case = Case(name, patch_shape, channels)
    for check in CHECKS:
        with named(check), TemporaryDirectory() as folder:
            check(case, Path(folder))


@dataclass(frozen=True)
class Case:
    """A model of the zoo with arguments that make it small."""

    name: str
    patch_shape: tuple[int, ...] = (15, 15)
    channels: int = 2

    def __str__(self) -> str:
        return f"{self.name}-{'x'.join(map(str, self.patch_shape))}x{self.channels}"

    def create(self, *, eager: bool = True, **config: Any) -> patch_model.PatchModel:
        """A compiled model; eager, because a graph costs more than the few steps that it would take."""
        model = epizoo.create(self.name, patch_shape=self.patch_shape, channels=self.channels, **config)
        model.compile(run_eagerly=eager)
        return model

    def dataset(self, start: int = 0) -> tf.data.Dataset:
        """Endless smooth random patches, batch k a function of k."""
        shape = (BATCH, *self.patch_shape, self.channels)
        pairs = MODELS.get(self.name).sampling == "pair"

        def batch(k: tf.Tensor) -> dict[str, tf.Tensor]:
            def draw(stream: int) -> tf.Tensor:
                noise = tf.random.stateless_uniform(shape, (k, stream), maxval=0.3)
                level = tf.random.stateless_uniform((BATCH, *[1] * len(self.patch_shape), 1), (k, 7))
                return 0.7 * level + noise

            element = {"patch": draw(0), "position": tf.random.stateless_uniform((BATCH, 3), (k, 2), -1, 1)}
            if pairs:
                element["partner"] = draw(1)
            return element

        return tf.data.Dataset.counter(start).map(batch)

    def patches(self, n: int = BATCH) -> NDArray[np.float32]:
        return np.random.default_rng(0).random((n, *self.patch_shape, self.channels), dtype=np.float32)

    def batch(self, n: int) -> dict[str, NDArray[Any]]:
        """The first n patches of the data set, and what belongs to them."""
        return {name: values[:n].numpy() for name, values in next(iter(self.dataset())).items()}

    def train(self, model: patch_model.PatchModel, folder: Path, **options: Any) -> list[dict[str, float]]:
        options = {"epochs": 2, "steps_per_epoch": 2, "validation_data": self.dataset(100)} | options
        return callbacks.train(model, self.dataset, folder=folder, validation_steps=2, **options)


class Killed(keras.callbacks.Callback):
    """Ends the process's training in the middle of an epoch."""

    def __init__(self, epoch: int):
        super().__init__()
        self.epoch = epoch
        self.now = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.now = epoch == self.epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.now:
            raise KeyboardInterrupt


def builds(case: Case) -> None:
    model = case.create()
    assert model.encoder.inputs[0].name == "patch"
    assert model.encoder.input_shape == (None, *case.patch_shape, case.channels)
    assert list(model.encoder.output_names) == ["latent"]
    assert model.encoder.output_shape == (None, model.latent_dim)
    assert model.patch_shape == case.patch_shape
    assert model.sampling in ("patch", "pair")
    assert model.paper
    assert model.monitor.removeprefix("val_") in model.tracked
    if model.reconstructs:
        assert model.reconstruct(case.patches()).shape == case.patches().shape
    if model.generates:
        generated = model.imagine(case.patches(3))
        assert generated.shape == (3, *case.patch_shape, case.channels)
        assert generated.min() >= 0
        assert generated.max() <= 1
    same = case.create()
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), same.get_weights(), strict=True))
    other = case.create(seed=1)
    assert not np.allclose(model.encode(case.patches()), other.encode(case.patches()))


def survives_kill_save_and_load(case: Case, folder: Path, *, eager: bool = True) -> None:
    """Fits with figures that are numbers; a killed run resumes to the same bits; the file holds all of it."""
    steps = 1 if eager else 2  # an epoch; a step of a GAN, op by op, takes seconds
    whole = case.create(eager=eager)
    rows = case.train(whole, folder / "whole", steps_per_epoch=steps)
    figures = np.array([list(row.values()) for row in rows])
    assert len(rows) == 2
    assert np.isfinite(figures).all()
    assert f"{whole.monitor}" in rows[0]
    assert ("val_coverage" in rows[0]) == whole.generates
    assert [row["epoch"] for row in rows] == [1, 2]

    killed = case.create(eager=eager)
    with refused(KeyboardInterrupt):
        case.train(killed, folder / "killed", steps_per_epoch=steps, callbacks=[Killed(epoch=1)])
    resumed = case.create(eager=eager)
    assert case.train(resumed, folder / "killed", steps_per_epoch=steps) == rows
    same_state(resumed, whole)
    history = [(folder / run / "history.csv").read_text() for run in ("whole", "killed")]
    assert history[0] == history[1]

    loaded = epizoo.load_model(folder / "whole" / "model.keras")
    same_state(loaded, whole)
    assert loaded.get_config() == whole.get_config()
    assert (loaded.epochs, loaded.steps) == (2, 2 * steps)
    assert np.array_equal(loaded.encode(case.patches()), whole.encode(case.patches()))


def same_state(a: patch_model.PatchModel, b: patch_model.PatchModel) -> None:
    """Equal weights and optimisers' states, to the bit."""
    for x, y in zip(a.get_weights(), b.get_weights(), strict=True):
        assert np.array_equal(x, y)
    for name in b.trains:
        x, y = ([v.numpy() for v in getattr(m, name).variables] for m in (a, b))
        assert len(x) == len(y) > 2
        assert all(np.array_equal(u, v) for u, v in zip(x, y, strict=True))
        assert getattr(b, name).iterations.numpy() > 0


def encodes_each_patch_alone(case: Case) -> None:
    model = trained(case)
    patches = case.patches(9)
    codes = model.encode(patches)
    assert codes.shape == (9, model.latent_dim)
    assert codes.dtype == np.float32
    assert np.ptp(codes, 0).max() > 0
    order = np.random.default_rng(1).permutation(9)
    assert np.allclose(model.encode(patches[order]), codes[order], atol=1e-5)
    assert np.allclose(model.encode(patches[3:4]), codes[3:4], atol=1e-5)
    assert np.allclose(model.encode(patches, batch_size=4), codes, atol=1e-5)


def dense_equals_patchwise(case: Case) -> None:
    model = trained(case)
    shape = [n + 2 for n in case.patch_shape] + [3] * (3 - len(case.patch_shape))
    volume = np.random.default_rng(0).random((*shape, case.channels), dtype=np.float32)
    dense = epizoo.DenseEncoder(model.encoder)(volume)
    assert dense.shape == (*shape, model.latent_dim)
    margin = [n // 2 for n in case.patch_shape] + [0] * (3 - len(case.patch_shape))
    padded = np.pad(volume, [(n, n) for n in margin] + [(0, 0)])
    voxels = [(0, 0, 0), tuple(n // 2 for n in shape), tuple(n - 1 for n in shape)]
    size = [2 * n + 1 for n in margin]
    patches = np.stack(
        [padded[tuple(slice(v, v + n) for v, n in zip(voxel, size, strict=True))] for voxel in voxels]
    )
    codes = model.encode(patches.reshape(-1, *case.patch_shape, case.channels))
    assert np.allclose(np.stack([dense[v] for v in voxels]), codes, atol=1e-4)


def exports(case: Case, folder: Path) -> None:
    model = trained(case)
    epizoo.export_encoder(model, folder / "export")
    served = tf.saved_model.load(folder / "export").signatures["serving_default"]
    codes = served(patch=tf.constant(case.patches()))["latent"].numpy()
    assert np.allclose(codes, model.encode(case.patches()), atol=1e-5)


def trains_in_bfloat16(case: Case) -> None:
    model = case.create(dtype="mixed_bfloat16")
    hidden = [layer for layer in model.encoder.layers if layer.weights and layer.name != "latent"]
    assert hidden[0].compute_dtype == "bfloat16"
    assert all(w.dtype == "float32" for w in model.trainable_weights)
    before = model.encode(case.patches())
    assert before.dtype == np.float32
    history = model.fit(case.dataset(), steps_per_epoch=2, verbose=0).history
    assert np.isfinite(list(history.values())).all()
    assert not np.array_equal(model.encode(case.patches()), before)


def trains_alike_on_two_devices(case: Case, strategy: tf.distribute.Strategy) -> None:
    def figures(model: patch_model.PatchModel) -> dict[str, list[float]]:
        data, held_out = case.dataset(), case.dataset(100).take(2)
        fitted = model.fit(data, steps_per_epoch=3, validation_data=held_out, verbose=0)
        history: dict[str, list[float]] = fitted.history
        return history

    one = figures(case.create(eager=False))
    with strategy.scope():
        model = case.create(eager=False)
    two = figures(model)
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-3, atol=1e-3, err_msg=name)


def round_trips_its_config(case: Case, folder: Path) -> None:
    model = case.create(seed=3)
    again = type(model).from_config(json.loads(json.dumps(model.get_config())))
    assert again.get_config() == model.get_config()
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), again.get_weights(), strict=True))
    model.set_weights([w + 0.5 for w in model.get_weights()])
    model.save_preset(folder / "preset")
    assert sorted(p.name for p in (folder / "preset").iterdir()) == [
        "card.md",
        "config.json",
        "model.weights.h5",
    ]
    preset = epizoo.from_preset(folder / "preset")
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), preset.get_weights(), strict=True))


def names_wrong_shapes(case: Case) -> None:
    model = case.create()
    for wrong in (case.patches()[0], case.patches()[:, 1:], case.patches()[..., :-1]):
        with refused(InputError, match=r"takes \(n, "):
            model.encode(wrong)
    other = Case(case.name, (5,) * len(case.patch_shape), case.channels)
    with refused(InputError, match="patch of shape"):
        model.fit(other.dataset(), steps_per_epoch=1, verbose=0)
    with refused(InputError, match="needs 'patch'"):
        model.fit(case.dataset().map(lambda element: {"position": element["position"]}))
    with refused(InputError, match="has no 'x_optimizer'"):
        model.compile(x_optimizer="adam")


def scales_its_losses(case: Case) -> None:
    """Under a ``LossScaleOptimizer`` it learns the same; in float16 all optimisers are such."""
    plain, scaled = case.create(), case.create()
    for model, wrap in ((plain, lambda optimizer: optimizer), (scaled, keras.optimizers.LossScaleOptimizer)):
        model.compile(**{name: wrap(keras.optimizers.SGD(0.01)) for name in model.trains}, run_eagerly=True)
        model.fit(case.dataset(), steps_per_epoch=1, verbose=0)
    for a, b in zip(plain.get_weights(), scaled.get_weights(), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    half = case.create(dtype="mixed_float16")
    assert all(isinstance(getattr(half, name), keras.optimizers.LossScaleOptimizer) for name in half.trains)
    figures = half.fit(case.dataset(), steps_per_epoch=1, verbose=0).history
    assert np.isfinite(list(figures.values())).all()
    for dtype in ("float16", "float64"):
        with refused(InputError, match="choose one of float32, mixed_bfloat16, mixed_float16"):
            case.create(dtype=dtype)


def trains_on_one_patch(case: Case) -> None:
    """A batch of one patch, as the last of a data set may be: figures and weights stay numbers."""
    model = case.create()
    data = tf.data.Dataset.from_tensors(case.batch(1))
    figures = model.fit(data, validation_data=data, verbose=0).history
    assert np.isfinite(list(figures.values())).all()
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert (model.epochs, model.steps) == (1, 1)


def uses_or_refuses_what_it_is_given(case: Case) -> None:
    """Floats of any width and unknown shapes are read; integers, labels and weights are refused."""
    model, batch = case.create(), case.batch(2)
    double = {name: values.astype(np.float64) for name, values in batch.items()}
    unknown = tf.data.Dataset.from_generator(
        lambda: iter([double]), output_signature={name: tf.TensorSpec(None, tf.float64) for name in batch}
    )
    model.fit(unknown, steps_per_epoch=1, verbose=0)
    stream, held_out = (batch for _ in range(2)), (double for _ in range(2))
    model.fit(stream, validation_data=held_out, steps_per_epoch=1, validation_steps=1, verbose=0)
    model.fit(Sequence(batch), verbose=0)
    model.fit(batch, batch_size=2, verbose=0)
    assert (model.epochs, model.steps) == (4, 4)
    before = model.get_weights()
    integers = {**batch, "patch": (255 * batch["patch"]).astype(np.uint8)}
    with refused(InputError, match="patch of uint8"):
        model.fit(integers, verbose=0)
    given: dict[str, Any] = {"y": batch["patch"], "sample_weight": np.zeros(2)}
    for fed in (model.fit, model.train_on_batch, model.test_on_batch):
        with refused(InputError) as error:
            fed(batch, **given)
        assert [name in error.value.problems[i] for i, name in enumerate(given)] == [True, True]
    with refused(InputError, match="sample_weight was given"):
        model.fit(tf.data.Dataset.from_tensors((batch, None, np.zeros(2))))
    with refused(InputError, match="has no 'loss'"):
        model.compile(None, "mse")
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def works_with_stock_callbacks(case: Case, folder: Path) -> None:
    """Those that watch ``model.monitor`` need no mode; those of the learning rate reach every optimiser."""
    model = case.create()
    data = tf.data.Dataset.from_tensors(case.batch(2))
    file = folder / "best.keras"
    rates = {name: float(np.asarray(getattr(model, name).learning_rate)) for name in model.trains}
    stock = [
        keras.callbacks.EarlyStopping(model.monitor),
        keras.callbacks.ModelCheckpoint(file, model.monitor, save_best_only=True),
    ]
    setters = [
        keras.callbacks.ReduceLROnPlateau(model.monitor),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2),
    ]
    constant = all(isinstance(getattr(model, name).learning_rate, keras.Variable) for name in model.trains)
    if constant:
        stock += setters
    else:
        for setter in setters:
            with refused(InputError, match="follows a schedule"):
                model.fit(data, validation_data=data, callbacks=setter)
    figures = model.fit(data, validation_data=data, verbose=0, callbacks=stock).history
    if constant:
        for name, rate in rates.items():
            np.testing.assert_allclose(np.asarray(getattr(model, name).learning_rate), rate / 2, rtol=1e-6)
        assert sum(name.startswith("learning_rate") for name in figures) == len(model.trains)
    loaded = epizoo.load_model(file)
    assert (loaded.epochs, loaded.steps) == (model.epochs, model.steps) == (1, 1)
    unknown = keras.callbacks.EarlyStopping("val_unheard_of")
    with refused(InputError, match="say mode='min' or mode='max'"):
        model.fit(data, callbacks=[unknown])


def accumulates_gradients(case: Case) -> None:
    """Where two batches make a step: each has noise of its own, and the averages move once."""
    model, batch = case.create(), case.batch(2)
    model.compile(
        **{name: keras.optimizers.SGD(0.01, gradient_accumulation_steps=2) for name in model.trains},
        run_eagerly=True,
    )
    averages = [getattr(model, name) for name in model.averages]
    before = [network.get_weights() for network in averages]
    first = np.asarray(model.noise("any", (4,)))
    model.train_step(batch)
    assert not np.allclose(first, model.noise("any", (4,)))
    if max(int(getattr(model, name).iterations) for name in model.trains) == 0:
        for network, weights in zip(averages, before, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(network.get_weights(), weights, strict=True))


def says_what_to_do_with_replaced_and_frozen_networks(case: Case) -> None:
    """A new encoder encodes, and learns inside another; to train it uncompiled, or nothing, is refused."""
    model, other = case.create(), case.create(seed=1)
    patches = case.patches(2)
    model.encode(patches)
    model.encoder = other.encoder
    assert np.array_equal(model.encode(patches), other.encode(patches))
    inside = keras.Sequential([other.encoder, keras.layers.Dense(1)])
    inside.compile("sgd", "mse", run_eagerly=True)
    before = other.encoder.get_weights()
    inside.fit(patches, np.ones((2, 1)), verbose=0)
    assert not all(np.array_equal(a, b) for a, b in zip(before, other.encoder.get_weights(), strict=True))
    model.trainable = False
    with refused(InputError, match="nothing to train"):
        model.fit(case.batch(2), verbose=0)
    model.compile()
    model.trainable = True
    with refused(InputError, match="compile again"):
        model.fit(case.batch(2), verbose=0)


def ignores_the_users_keras_configuration(case: Case) -> None:
    """Image format, floatx and policy of the user neither change nor break it, nor does it change them."""
    expected = case.create()
    before = keras.config.dtype_policy()
    keras.config.set_image_data_format("channels_first")
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = case.create()
        figures = model.fit(case.batch(2), verbose=0).history
        codes = model.encode(case.patches())
        set_by = keras.config.image_data_format(), keras.config.floatx(), keras.config.dtype_policy().name
    finally:
        keras.config.set_image_data_format("channels_last")
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy(before)
    assert set_by == ("channels_first", "float64", "mixed_bfloat16")
    # To rounding: kernels that share a step among threads differ in the last bits from one run to the next.
    rtol, atol = 1e-4, 1e-5
    for name, values in expected.fit(case.batch(2), verbose=0).history.items():
        np.testing.assert_allclose(figures[name], values, rtol, atol, err_msg=name)
    np.testing.assert_allclose(codes, expected.encode(case.patches()), rtol, atol)
    for mine, its in zip(model.variables, expected.variables, strict=True):
        assert mine.dtype == its.dtype
        np.testing.assert_allclose(mine.numpy(), its.numpy(), rtol, atol)


def refuses_patches_that_are_not_finite(case: Case, folder: Path) -> None:
    """Neither ``encode`` nor what ``model.export`` wrote makes a code of NaN or infinity."""
    model = trained(case)
    model.export(folder / "export")
    served = tf.saved_model.load(folder / "export").signatures["serving_default"]
    for value in (np.nan, np.inf, -np.inf):
        patches = case.patches(3)
        patches[1].flat[0] = value
        with refused(InputError, match="1 of 3 patches hold NaN or infinity, patch 1 the first"):
            model.encode(patches)
        with refused(tf.errors.InvalidArgumentError, match="NaN or infinity"):
            served(patch=tf.constant(patches))


def warns_once_of_intensities_that_it_does_not_read(case: Case) -> None:
    model, batch = case.create(), case.batch(2)
    batch["patch"] = 255 * batch["patch"]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        model.fit(batch, epochs=2, verbose=0)
    told = [str(one.message) for one in warned if "of the values in patches lie outside" in str(one.message)]
    assert len(told) == 1
    model.fit(batch, verbose=0)


class Sequence(keras.utils.PyDataset):
    """One batch as a ``PyDataset``."""

    def __init__(self, batch: dict[str, NDArray[Any]]):
        super().__init__()
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, NDArray[Any]]:
        return self.batch


_TRAINED: dict[Case, patch_model.PatchModel] = {}


def trained(case: Case) -> patch_model.PatchModel:
    """A model after a few steps, shared by the tests that only read it."""
    if case not in _TRAINED:
        _TRAINED[case] = case.create()
        _TRAINED[case].fit(case.dataset(), steps_per_epoch=2, verbose=0)
    return _TRAINED[case]


def _alone(check: Callable[[Case], None]) -> Callable[[Case, Path], None]:
    """A check that needs no folder, called like one that does."""

    def with_folder(case: Case, folder: Path) -> None:
        check(case)

    with_folder.__name__, with_folder.__doc__ = check.__name__, check.__doc__
    return with_folder


CHECKS: tuple[Callable[[Case, Path], None], ...] = (
    _alone(builds),
    survives_kill_save_and_load,
    _alone(encodes_each_patch_alone),
    _alone(dense_equals_patchwise),
    exports,
    _alone(trains_in_bfloat16),
    round_trips_its_config,
    _alone(names_wrong_shapes),
    _alone(scales_its_losses),
    _alone(trains_on_one_patch),
    _alone(uses_or_refuses_what_it_is_given),
    works_with_stock_callbacks,
    _alone(accumulates_gradients),
    _alone(says_what_to_do_with_replaced_and_frozen_networks),
    _alone(ignores_the_users_keras_configuration),
    refuses_patches_that_are_not_finite,
    _alone(warns_once_of_intensities_that_it_does_not_read),
)
