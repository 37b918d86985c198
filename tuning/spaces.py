"""A model's search space in keras-tuner's words, as a table, and what its values mean for a trial.

The space itself stands on the model's class (``PatchModel.search_space``). Every encoder that it proposes has
a dense form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from epizoo.models.search_space import Choice, Space
from epizoo.registry import MODELS
from tfds_epilepsy.errors import InputError

if TYPE_CHECKING:
    import keras
    import keras_tuner

    from epizoo.models.patch_model import PatchModel


def space_of(model: str) -> Space:
    """The search space of a model.

    Raises:
        InputError: an unknown model, or one without a search space.
    """
    space = MODELS.get(model).search_space
    if not space:
        raise InputError(
            f"model {model!r} has no search space: give its class a 'search_space' "
            "(epizoo.models.search_space), or search a build function of your own."
        )
    return space


def declare(space: Space, hp: keras_tuner.HyperParameters) -> None:
    """Tell keras-tuner of the parameters of a space."""
    for parameter in space:
        parent, parent_values = parameter.when or (None, None)
        condition = {"parent_name": parent, "parent_values": parent_values and list(parent_values)}
        if isinstance(parameter, Choice):
            hp.Choice(parameter.name, list(parameter.values), **condition)
        else:
            hp.Float(parameter.name, parameter.low, parameter.high, sampling="log", **condition)


def describe(space: Space) -> Iterator[tuple[str, str, str]]:
    """Of each parameter: its name, its values, and when it exists."""
    for parameter in space:
        if isinstance(parameter, Choice):
            values = ", ".join(map(str, parameter.values))
        else:
            values = f"{parameter.low:g} to {parameter.high:g}, log-uniform"
        condition = ""
        if parameter.when is not None:
            name, parent_values = parameter.when
            condition = f"{name} is {' or '.join(map(str, parent_values))}"
        yield parameter.name, values, condition


# === What the values mean ===


def create(model: str, values: Mapping[str, Any], *, modalities: Sequence[str], seed: int) -> PatchModel:
    """The compiled model that values of its space describe; no values give the default architecture."""
    from epizoo import models

    known = MODELS.get(model)
    values = without_tuner(values)
    config = {**known.config_for(modalities), **known.config_of_values(values)}
    created = models.create(model, seed=seed, **config)
    optimizers = created.default_optimizers()
    for name, optimizer in list(optimizers.items()):
        rate = values.get(name.replace("optimizer", "learning_rate"))
        if rate is not None:
            optimizers[name] = _at_rate(optimizer, rate)
    created.compile(**optimizers)
    return created


def detector_config(values: Mapping[str, Any]) -> tuple[str, dict[str, Any], float]:
    """The detector's name and options, and the smoothing of its map in mm; the one-class SVM if not given."""
    name = values.get("detector", "ocsvm")
    options = {option: values[option] for option in ("nu", "k") if option in values}
    return name, options, float(values.get("fwhm", 0))


def without_tuner(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without those that Hyperband adds (``tuner/epochs``, ...)."""
    return {name: value for name, value in values.items() if not name.startswith("tuner/")}


def _at_rate(optimizer: keras.Optimizer, rate: float) -> keras.Optimizer:
    """The same optimiser at another learning rate; a schedule begins there."""
    config = optimizer.get_config()
    if isinstance(config["learning_rate"], dict):
        config["learning_rate"]["config"]["initial_learning_rate"] = rate
    else:
        config["learning_rate"] = rate
    return type(optimizer).from_config(config)
