"""The zoo: models of healthy patches behind one interface."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras

from epizoo.maps.view import create_view
from epizoo.models import loading
from epizoo.models.patch_model import PatchModel, register_model
from epizoo.presets import WEIGHTS, Preset
from epizoo.registry import MODELS
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import read_keras_config

__all__ = [
    "MODELS",
    "PatchModel",
    "create",
    "describe",
    "from_preset",
    "list_models",
    "load_model",
    "model_class",
    "register_model",
]


def list_models() -> list[str]:
    """Names that :func:`create` knows.

    Example:
        >>> "siamese" in list_models()
        True
    """
    return list(MODELS)


def describe() -> list[dict[str, str]]:
    """One row per model at its default sizes; the keys are the titles of the columns.

    Example:
        >>> next(row["receptive field"] for row in describe() if row["model"] == "siamese")
        '14x14'
    """
    return [
        {
            "model": name,
            "fed": {"patch": "patches", "pair": "pairs"}[model.sampling],
            "encoder parameters": f"{model.encoder.count_params():,}",
            "all parameters": f"{model.count_params():,}",
            "receptive field": "x".join(map(str, model.receptive_field())),
            "FLOPs per voxel": f"{model.flops_per_voxel():,}",
            "paper": model.paper,
        }
        for name, model in ((name, create(name)) for name in MODELS)
    ]


def create(name: str, **config: Any) -> PatchModel:
    """Build a model of the zoo, with random weights that follow ``seed``.

    >>> create("siamese", patch_shape=(9, 9, 9), channels=3).encoder.output_shape
    (None, 64)

    Args:
        name: see :func:`list_models`.
        **config: ``patch_shape`` (15, 15), ``channels`` 2, ``latent_dim`` 64, ``seed`` 0 and the model's own.

    Raises:
        InputError: an unknown name, or arguments that the model does not take.
    """
    model = MODELS.get(name)
    try:
        return model(**config)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"model {name!r}: {error}.") from error


def load_model(path: str | Path) -> PatchModel:
    """Read a model that was saved as a ``.keras`` file, its optimisers' states included.

    The file may be a stranger's: no code of it runs, and it takes no more memory than its size allows.

    Example:
        >>> create("autoencoder", latent_dim=8).save(folder / "model.keras")
        >>> load_model(folder / "model.keras").latent_dim
        8

    Raises:
        InputError: no such file, a file that is damaged, or another kind of model.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    try:
        model_class(_stored_class(path))  # Keras must know the class before it reads the file
        model = loading.load(path)
    except Exception as error:  # zip, HDF5, JSON and Keras each raise their own
        raise InputError(f"{path}: cannot be read as a model of the zoo ({error}).") from error
    if not isinstance(model, PatchModel):
        raise InputError(f"{path}: holds a {type(model).__name__}, not a model of the zoo.")
    return model


def from_preset(preset: str | Path) -> PatchModel:
    """Build the model of a preset, with its weights.

    A view that learns from controls has learnt from none yet: ``model.view.adapt(controls)`` comes next.

    Example:
        >>> model = from_preset("deviation_t1w_flair")
        >>> model.view.adapt(controls) is model.view
        True
        >>> model.view.seen(patient).image.shape
        (24, 26, 10, 3)

    Args:
        preset: the name of one that epizoo ships (``epizoo presets``), or a folder that
            ``model.save_preset`` wrote.

    Raises:
        InputError: no such preset, an incomplete or damaged one, or a model that is not known here.
    """
    found = Preset.read(preset)
    known = model_class(found.model)
    if known is None:
        raise InputError(
            f"{found.folder}: holds a {found.model!r}, which is not known; install the package, or import "
            "the module, that registers it."
        )
    weights = found.folder / WEIGHTS
    try:
        size = weights.stat().st_size
        loading.check_weights(weights, size)
        loading.check_config(found.config)
        with loading.bounded(size):
            model: PatchModel = known.from_config(dict(found.config))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # of layers that the file does not know
            model.load_weights(weights)
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, UserWarning) as error:
        raise InputError(f"{weights}: cannot be read as those of a {found.model} ({error}).") from error
    model.view = create_view(model.view.get_config(), model.modalities)  # an earlier version saved its state
    return model


def model_class(stored: str) -> type[PatchModel] | None:
    """The class that Keras stored under a name, such as ``epizoo>Siamese``; None for one that is not known.

    Example:
        >>> model_class("epizoo>Siamese").__name__
        'Siamese'

    Args:
        stored: what ``keras.saving.get_registered_name`` gave.
    """
    package = stored.partition(">")[0]
    if package == "epizoo":
        for name in MODELS.own:
            MODELS.get(name)
    elif keras.saving.get_registered_object(stored) is None:
        MODELS.load_installed()
    known = keras.saving.get_registered_object(stored)
    return known if isinstance(known, type) and issubclass(known, PatchModel) else None


def _stored_class(path: Path) -> str:
    """The registered name of the class in a ``.keras`` file."""
    return str(read_keras_config(path).get("registered_name"))
