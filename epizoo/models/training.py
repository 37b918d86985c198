"""What training takes beside a model's losses: Keras' settings, optimisers, figures and bookkeeping."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import GeneratorType
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from tfds_epilepsy.errors import InputError

if TYPE_CHECKING:
    from epizoo.models.patch_model import PatchModel

# Weights are float32 in all of them, and so are codes, losses and figures.
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
RATE_SETTERS = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)

_one_at_a_time = threading.RLock()


@contextmanager
def keras_settings(policy: Any = "float32", seed: int | None = None) -> Iterator[None]:
    """Keras as the layers need it, whatever the user has set: channels last, float32, a policy.

    Image format and floatx are the process's, and so is Python's generator, of which Keras draws the seed of
    an initialiser that has none: one thread at a time.

    Args:
        policy: of the layers that are made inside.
        seed: of their initial weights; drawn as ever if None.
    """
    with _one_at_a_time:
        config = keras.config
        before = config.dtype_policy(), config.floatx(), config.image_data_format(), random.getstate()
        config.set_floatx("float32")
        config.set_image_data_format("channels_last")
        config.set_dtype_policy(policy)
        if seed is not None:
            random.seed(seed)
        try:
            yield
        finally:
            config.set_dtype_policy(before[0])
            config.set_floatx(before[1])
            config.set_image_data_format(before[2])
            if seed is not None:
                random.setstate(before[3])


FINE_RATE = 0.25  # of the first learning rate of a training


def fine_tune(model: PatchModel) -> None:
    """Make a trained model ready to be trained further: counted anew, at a constant, lower learning rate.

    Args:
        model: of a preset; it is compiled here.
    """
    optimisers = model.default_optimizers()
    for name, optimiser in optimisers.items():
        config = optimiser.get_config()
        rate = config["learning_rate"]
        first = rate["config"]["initial_learning_rate"] if isinstance(rate, Mapping) else rate
        optimisers[name] = type(optimiser).from_config({**config, "learning_rate": FINE_RATE * first})
    model.epochs = model.steps = 0
    model.compile(**optimisers)


def keras_problems(dtype: Any) -> list[str]:
    """Why a model cannot be of a precision, or not with this Keras."""
    problems = []
    try:
        name = keras.dtype_policies.get(dtype).name
    except (TypeError, ValueError):
        name = repr(dtype)
    if name not in POLICIES:
        problems.append(f"dtype {name}: weights must be float32; choose one of {', '.join(POLICIES)}.")
    if keras.config.backend() != "tensorflow":
        problems.append(
            f"Keras runs on {keras.config.backend()}, models on TensorFlow: set KERAS_BACKEND=tensorflow "
            "before keras is imported."
        )
    return problems


def data_problems(model: PatchModel, data: Any) -> list[str]:
    """What keeps a model from training on what ``fit`` was given; batches yet to be made can wait."""
    later = GeneratorType, keras.utils.PyDataset, tf.distribute.DistributedDataset
    if data is None or isinstance(data, later):
        return []
    return batch_problems(model, data.element_spec if isinstance(data, tf.data.Dataset) else data)


def batch_problems(model: PatchModel, data: Any) -> list[str]:
    """What keeps a model from training on a batch, or on the specs of one."""
    batch, y, weight = keras.utils.unpack_x_y_sample_weight(data)
    problems = label_problems(y=y, sample_weight=weight)
    if not isinstance(batch, Mapping):
        return [
            *problems,
            f"{model.name} is fed dicts with {', '.join(model.feeds)} (see patch_dataset); "
            f"received {type(batch).__name__}.",
        ]
    for name, expected in model.feeds.items():
        if name not in batch:
            problems.append(
                f"{model.name} needs {name!r} in each batch, received {', '.join(batch)}: "
                f"make the data set with sampling={model.sampling!r}."
            )
            continue
        shape, dtype = (getattr(batch[name], key, None) for key in ("shape", "dtype"))
        if dtype is None:
            problems.append(f"{name} is a {type(batch[name]).__name__}, not an array.")
            continue
        dtype = tf.as_dtype(dtype)
        if not dtype.is_floating:
            problems.append(
                f"{name} of {dtype.name}: {model.name} takes floats, patches in [0, 1]; "
                "normalise the images and cast them to float32."
            )
        if not tf.TensorShape(shape).is_compatible_with((None, *expected)):
            problems.append(shape_problem(model, name, shape, expected))
    return problems


def shape_problem(model: PatchModel, name: str, shape: Any, expected: Sequence[int]) -> str:
    """That an array has another shape than ``(n, *expected)``."""
    text = f"{name} of shape {tuple(shape)}: {model.name} takes (n, {', '.join(map(str, expected))})"
    if len(expected) == 1:
        return f"{text}."
    return f"{text}, {len(expected) - 1}-D patches of {expected[-1]} modalities."


def label_problems(**given: Any) -> list[str]:
    """That something was given which is for models that learn from labels."""
    return [
        f"{name} was given: a model learns from patches alone, all of the same weight; leave {name} out "
        "(to weigh patches, draw some more often)."
        for name, value in given.items()
        if value is not None
    ]


def compile_problems(model: PatchModel, given: Mapping[str, Any]) -> list[str]:
    """What keeps a model from being compiled with what it was given, by name."""
    problems = [
        f"{model.name} has no {name!r}: its losses and figures are its own, its optimisers are "
        f"{', '.join(model.trains)}."
        for name in given
        if name not in model.trains
    ]
    objects = {name: value for name, value in given.items() if isinstance(value, keras.Optimizer)}
    if len(set(map(id, objects.values()))) < len(objects):
        problems.append("one optimiser was given for two: each needs its own.")
    problems += [
        f"{name} was made for the weights of another model: give a new one."
        for name, value in objects.items()
        if name in model.trains and value.built and not knows(value, model.trained_by(name))
    ]
    if model.distribute_strategy.num_replicas_in_sync > 1:
        problems += [
            f"{name} gathers gradients, which Keras cannot do on several devices: give larger batches."
            for name, value in objects.items()
            if getattr(value, "inner_optimizer", value).gradient_accumulation_steps
        ]
    if model.losses:
        problems.append("regularisers have no effect here: add their terms in compute_losses.")
    return problems


def optimiser_problems(model: PatchModel) -> list[str]:
    """Of a training that would change nothing, or that Keras ends in its first step."""
    trained = {name: model.trained_by(name) for name in model.trains}
    if not any(trained.values()):
        return [f"{model.name} has nothing to train: set trainable = True, then compile again."]
    problems = [
        f"{name} is the moving average of {live} and no longer of its shape: change {live}, too."
        for name, live in model.averages.items()
        if _shapes(getattr(model, name)) != _shapes(getattr(model, live))
    ]
    return problems + [
        f"{name} was made for other weights than {', '.join(model.trains[name])} have now: after replacing "
        "or unfreezing a network, compile again."
        for name, variables in trained.items()
        if not knows(getattr(model, name), variables)
    ]


def as_batches(data: Any) -> Any:
    """A generator's dicts as Keras takes them, in tuples; other data as they are."""
    if not isinstance(data, GeneratorType):
        return data
    return (element if isinstance(element, tuple) else (element,) for element in data)


class Figure(keras.metrics.Mean):
    """The mean over an epoch's patches of what losses and models report of batches.

    Batches for which it is not defined (NaN) have no part in it; NaN if there are no others.
    """

    def __init__(self, name: str):
        super().__init__(name, dtype="float32")

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        values = tf.cast(values, tf.float32)
        weight = tf.ones_like(values) if sample_weight is None else tf.cast(sample_weight, tf.float32)
        undefined = tf.math.is_nan(values)
        super().update_state(tf.where(undefined, 0.0, values), tf.where(undefined, 0.0, weight))

    def result(self) -> Any:
        return tf.where(tf.equal(self.count, 0), math.nan, super().result())


class Optimizers:
    """``model.optimizer`` of a model that has several: what Keras' callbacks look for there.

    Args:
        optimizers: by name.
    """

    built = True

    def __init__(self, optimizers: Mapping[str, keras.Optimizer]):
        self._optimizers = dict(optimizers)

    @property
    def optimizers(self) -> list[keras.Optimizer]:
        """Those that hold a learning rate."""
        return [getattr(optimizer, "inner_optimizer", optimizer) for optimizer in self._optimizers.values()]

    @property
    def variables(self) -> list[keras.Variable]:
        """The states of all."""
        return [variable for optimizer in self._optimizers.values() for variable in optimizer.variables]

    @property
    def iterations(self) -> Any:
        """Steps of the first."""
        return self.optimizers[0].iterations

    @property
    def learning_rate(self) -> Any:
        raise AttributeError(self._several())

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        raise AttributeError(self._several())

    def _several(self) -> str:
        names = ", ".join(f"model.{name}.learning_rate" for name in self._optimizers)
        return f"the model has several optimisers, each with its own learning rate: {names}."


def knows(optimizer: keras.Optimizer, variables: Sequence[keras.Variable]) -> bool:
    """Whether an optimiser was built for all of these weights."""
    return {id(variable) for variable in variables} <= {id(v) for v in optimizer._trainable_variables}


def follows_schedule(optimizer: keras.Optimizer | None) -> bool:
    """Whether its learning rate is a function of the step, which nobody can set."""
    return optimizer is not None and not isinstance(optimizer.learning_rate, keras.Variable)


def scaling(optimizer: keras.Optimizer) -> keras.optimizers.LossScaleOptimizer:
    """An optimiser that scales losses, so that gradients of float16 layers do not vanish."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer, name=optimizer.name)


class Bookkeeping(keras.callbacks.Callback):
    """The first callback of every ``fit``: counts epochs and batches, and looks at what the model is fed."""

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.counted = 0

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        # A call may stand for several batches: ``steps_per_execution``.
        self.model.steps += batch + 1 - self.counted
        if self.counted == 0:
            self.model.warn_of_intensities()
        self.counted = batch + 1

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.model.epochs += 1

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        if isinstance(self.model.optimizer, Optimizers):  # Keras does it for a single one
            for name in self.model.trains:
                getattr(self.model, name).finalize_variable_values(self.model.trained_by(name))


def prepared(model: PatchModel, callbacks: Any) -> Any:
    """The callbacks of a ``fit``: bookkeeping first, ``mode`` where only the model can know it.

    Raises:
        InputError: a callback that monitors a figure of which nobody knows which way is better, or that sets
            a learning rate that follows a schedule.
    """
    given = keras.tree.flatten(callbacks or [])
    single = [one for callback in given for one in getattr(callback, "callbacks", [callback])]
    scheduled = [name for name in model.trains if follows_schedule(getattr(model, name, None))]
    problems = []
    for callback in single:
        if scheduled and isinstance(callback, RATE_SETTERS):
            problems.append(
                f"{type(callback).__name__} sets learning rates, but that of {', '.join(scheduled)} follows "
                "a schedule: compile with an optimiser of a fixed rate."
            )
        monitor = getattr(callback, "monitor", None)
        if monitor is None or getattr(callback, "mode", None) != "auto":
            continue
        if monitor.removeprefix("val_") == model.monitor.removeprefix("val_"):
            callback.mode = "min"
        elif monitor.removeprefix("val_") != "loss" and getattr(callback, "save_best_only", True):
            problems.append(
                f"{type(callback).__name__} monitors {monitor!r}: say mode='min' or mode='max' "
                f"({model.name} itself is watched by {model.monitor!r}, the lower the better)."
            )
    if problems:
        raise InputError(problems)
    return [Bookkeeping(), *given]


def _shapes(network: keras.Model) -> list[tuple[int, ...]]:
    return [variable.shape for variable in network.variables]
