"""Encoders for other teams: a SavedModel that needs nothing but TensorFlow, and ONNX."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from epizoo.dense import DenseEncoder
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import replacing

FORMAT = 1  # of the metadata; a reader refuses a newer one
METADATA = (
    Path("assets.extra") / "epizoo.json"
)  # the SavedModel's own place for files that are not TensorFlow's


def export_encoder(
    model: keras.Model,
    folder: str | Path,
    *,
    modalities: Sequence[str] | None = None,
    normalisation: str = "unit",
    voxel_size: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an encoder as a SavedModel with two signatures, and what feeds it as JSON.

    ``serve`` (also ``serving_default``): ``patch`` (n, *patch_shape, m) to ``latent`` (n, d).
    ``dense``: ``volume`` (x, y, z, m) to ``latent`` (x, y, z, d), the code of the patch around every voxel.
    ``assets.extra/epizoo.json`` holds patch shape, modalities, latent dimension, normalisation and versions.

    Args:
        model: a PatchModel, or its functional encoder.
        folder: where the SavedModel goes; appears once it is whole.
        modalities: names of the channels in order, such as ``("T1w", "FLAIR")``; None where unknown.
        normalisation: how intensities are made before (see ``tfds_epilepsy.volumes.normalise``).
        voxel_size: millimetres of the grid that the encoder was trained on; None where unknown.
        overwrite: replace a folder that exists.

    Returns:
        The folder.

    Raises:
        InputError: the folder exists, the encoder has no dense form (the layer is named), or the number of
            modalities is not that of its channels.

    Example:
        >>> export_encoder(model, "siamese", modalities=("T1w", "FLAIR"))  # doctest: +SKIP
        >>> encoder = tf.saved_model.load("siamese")  # doctest: +SKIP
        >>> encoder.signatures["dense"](volume=volume)["latent"]  # doctest: +SKIP
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise InputError(
            f"{folder}: exists already; choose another folder, or overwrite it (overwrite=True)."
        )
    dense = DenseEncoder(_encoder_of(model))
    if modalities is not None and len(modalities) != dense.channels:
        raise InputError(f"modalities {list(modalities)}: the encoder takes {dense.channels} channels.")

    patch_shape = (*dense.patch_shape, dense.channels)
    archive = keras.export.ExportArchive()
    archive.track(dense.encoder)
    archive.add_endpoint(
        "serve",
        lambda patch: {"latent": tf.cast(dense.encoder(patch, training=False), tf.float32)},
        input_signature=[tf.TensorSpec((None, *patch_shape), tf.float32, name="patch")],
    )
    archive.add_endpoint(
        "dense",
        lambda volume: {"latent": dense.in_graph(volume)},
        input_signature=[tf.TensorSpec((None, None, None, dense.channels), tf.float32, name="volume")],
    )
    metadata = {
        "format": FORMAT,
        "name": model.name,
        "patch_shape": list(dense.patch_shape),
        "latent_dim": dense.latent_dim,
        "channels": dense.channels,
        "modalities": None if modalities is None else list(modalities),
        "normalisation": normalisation,
        "background": 0.0,
        "orientation": "RAS+",
        "voxel_size": voxel_size,
        "versions": {name: version(name) for name in ("epizoo", "tensorflow", "keras")},
    }
    partial = folder.with_name(f".partial-{os.getpid()}-{folder.name}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        archive.write_out(str(partial), verbose=False)
        (partial / METADATA).parent.mkdir(exist_ok=True)
        (partial / METADATA).write_text(json.dumps(metadata, indent=2) + "\n")
        _replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def export_onnx(model: keras.Model, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write the encoder of patches as ONNX: input ``patch``, output ``latent``. Needs the extra ``onnx``.

    Args:
        model: a PatchModel, or its functional encoder.
        path: the file; appears once it is whole.
        overwrite: replace a file that exists.

    Returns:
        The path.

    Raises:
        InputError: the file exists, or tf2onnx is not installed.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; choose another name, or overwrite it (overwrite=True).")
    try:
        import tf2onnx
    except ImportError as error:
        raise InputError("ONNX needs tf2onnx: pip install epizoo[onnx].") from error
    encoder = _encoder_of(model)
    signature = [tf.TensorSpec(encoder.inputs[0].shape, tf.float32, name="patch")]
    serve = tf.function(
        lambda patch: {"latent": encoder(patch, training=False)}, input_signature=signature, autograph=False
    )
    with replacing(path) as partial:
        tf2onnx.convert.from_function(serve, input_signature=signature, output_path=str(partial))
    return path


def _encoder_of(model: Any) -> Any:
    return getattr(model, "encoder", model)


def _replace(new: Path, folder: Path) -> None:
    """Put a folder in place of another, which stays until the new one is whole."""
    old = folder.with_name(f".replaced-{os.getpid()}-{folder.name}")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)
