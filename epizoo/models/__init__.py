"""The zoo: models of healthy patches behind one interface."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras

from epizoo.models.autoencoder import Autoencoder
from epizoo.models.bigan import BiGAN
from epizoo.models.context_gan import ContextGAN
from epizoo.models.dcgan import DCGAN, OriginalDCGAN
from epizoo.models.deviation import Deviation
from epizoo.models.f_anogan import FAnoGAN
from epizoo.models.masked import Masked
from epizoo.models.patch_model import PatchModel
from epizoo.models.siamese import DeepSiamese, Siamese
from epizoo.models.synthetic import Synthetic
from epizoo.models.vae import VAE
from epizoo.models.wae import WAE
from tfds_epilepsy.errors import InputError

REGISTRY: dict[str, type[PatchModel]] = {
    "autoencoder": Autoencoder,
    "masked": Masked,
    "vae": VAE,
    "wae": WAE,
    "siamese": Siamese,
    "deep_siamese": DeepSiamese,
    "dcgan": DCGAN,
    "original_dcgan": OriginalDCGAN,
    "f_anogan": FAnoGAN,
    "bigan": BiGAN,
    "context_gan": ContextGAN,
    "synthetic": Synthetic,
    "deviation": Deviation,
}


def list_models() -> list[str]:
    """Names that :func:`create` knows."""
    return list(REGISTRY)


def describe() -> list[dict[str, str]]:
    """One row per model at its default sizes; the keys are the titles of the columns."""
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
        for name, model in ((name, create(name)) for name in REGISTRY)
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
    if name not in REGISTRY:
        raise InputError(f"unknown model {name!r}: choose one of {', '.join(REGISTRY)}.")
    try:
        return REGISTRY[name](**config)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"model {name!r}: {error}.") from error


def load_model(path: str | Path) -> PatchModel:
    """Read a model that was saved as a ``.keras`` file, its optimisers' states included.

    Raises:
        InputError: no such file, a file that is damaged, or another kind of model.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    try:
        model = keras.saving.load_model(path)
    except Exception as error:  # zip, HDF5, JSON and Keras each raise their own
        raise InputError(f"{path}: cannot be read as a model of the zoo ({error}).") from error
    if not isinstance(model, PatchModel):
        raise InputError(f"{path}: holds a {type(model).__name__}, not a model of the zoo.")
    return model


def from_preset(folder: str | Path) -> PatchModel:
    """Build the model of a folder that ``model.save_preset`` wrote, with its weights.

    Raises:
        InputError: not such a folder, or a model that is not known here.
    """
    folder = Path(folder)
    try:
        preset = json.loads((folder / "config.json").read_text())
        name, config = preset["model"], preset["config"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: not a preset; its config.json cannot be read ({error}).") from error
    known = keras.saving.get_registered_object(name)
    if known is None:
        raise InputError(
            f"{folder}: holds a {name!r}, which is not known; import the module that registers it."
        )
    model: PatchModel = known.from_config(config)
    try:
        model.load_weights(folder / "model.weights.h5")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: model.weights.h5 cannot be read ({error}).") from error
    return model
