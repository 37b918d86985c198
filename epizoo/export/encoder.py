"""An encoder for other teams: patches or whole volumes to codes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from keyword import iskeyword
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from epizoo.dense import DenseEncoder
from epizoo.dense_convert import dilating_in_3d
from epizoo.detection.codes import encoder_fingerprint
from epizoo.export import folder as folders
from epizoo.export import intensities
from epizoo.export.folder import Export
from epizoo.export.signature import Signature
from epizoo.models.patch_model import PatchModel, encoder_of
from tfds_epilepsy import volumes
from tfds_epilepsy.errors import InputError

NORMALISATIONS = (*intensities.METHODS, "none")
VOXELS = 200  # of a test vector
MASK = "mask"


def export_encoder(
    model: keras.Model,
    folder: str | Path,
    *,
    modalities: Sequence[str] | None = None,
    normalisation: str = "unit",
    voxel_size: float | None = None,
    format: str = "savedmodel",
    precision: str = "float32",
    run: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an encoder that needs nothing but TensorFlow (or an ONNX or TFLite runtime).

    Its signatures, by named tensors, sizes of batches and volumes free:

    - ``encode`` (also ``serving_default``): ``patch`` ``(n, *patch_shape, m)`` in [0, 1], cut from a
      normalised volume, to ``latent`` (n, d).
    - ``encode_raw``: ``patch`` in raw intensities with ``low`` and ``high`` (n or 1, m), the intensities that
      become 0 and 1 (``normalise`` finds them), to ``latent``. A patch alone cannot tell them: they are
      percentiles of the whole brain. Outside the brain a patch holds ``low``.
    - ``encode_volume``: one raw volume (x, y, z) a modality, by its name, and ``mask`` (x, y, z) bool, the
      brain, to ``latent`` (x, y, z, d): the code of the patch around every voxel. It normalises; volumes
      that are normalised already stay as they are.
    - ``normalise``: volumes and mask to ``volume`` (x, y, z, m) in [0, 1], ``low`` and ``high`` (m,).

    Since volumes are named, modalities cannot be exchanged. Beside the model: ``metadata.json``,
    ``model_card.md``, ``use_it.py``, and ``verify.py`` with ``vectors.npz``.

    Example:
        >>> from epizoo.models import create
        >>> out = export_encoder(create("autoencoder"), folder / "encoder", modalities=("T1w", "FLAIR"))
        >>> encode = tf.saved_model.load(str(out)).signatures["encode"]
        >>> encode(patch=tf.zeros((1, 15, 15, 2)))["latent"].shape
        TensorShape([1, 64])

    Args:
        model: a PatchModel, or its functional encoder.
        folder: where the export goes; appears once it is whole and gives what the encoder gives.
        modalities: names of the channels in order, such as ``("T1w", "FLAIR")``; ``channel_0``, ... if None.
        normalisation: of raw intensities, ``unit`` or ``zscore`` (see ``tfds_epilepsy.volumes.normalise``);
            with ``none``, volumes are what the encoder reads, and ``encode_raw`` and ``normalise`` are
            left out.
        voxel_size: millimetres of the grid that the encoder was trained on; None where unknown.
        format: ``savedmodel``, ``onnx`` (a file a signature) or ``tflite`` (``encode`` and ``encode_raw``).
        precision: ``float32``, or ``bfloat16``: weights and layers; inputs and outputs stay float32.
        run: facts of the run that it comes from, for card and metadata.
        overwrite: replace an export that exists.

    Returns:
        The folder.

    Raises:
        InputError: the folder exists, the encoder has no dense form (the layer is named), the number of
            modalities is not that of its channels, or an operation has no form in the format.
    """
    folder = Path(folder)
    problems = folders.check_target(folder, format, overwrite)
    if normalisation not in NORMALISATIONS:
        problems.append(f"normalisation {normalisation!r}: choose one of {', '.join(NORMALISATIONS)}.")
    if precision not in folders.TOLERANCE:
        problems.append(f"precision {precision!r}: choose one of {', '.join(folders.TOLERANCE)}.")
    if precision == "bfloat16" and format != "savedmodel":
        problems.append(f"precision 'bfloat16' with format {format!r}: it is a SavedModel's alone.")
    encoder = encoder_of(model)
    about = model.view.about if isinstance(model, PatchModel) else ""
    channels = encoder.inputs[0].shape[-1] if hasattr(encoder, "inputs") else None
    if modalities is not None and channels is not None and len(modalities) != channels:
        problems.append(f"modalities {list(modalities)}: the encoder takes {channels} channels.")
    if problems:
        raise InputError(problems)
    fingerprint = encoder_fingerprint(encoder)
    dense = DenseEncoder(in_precision(encoder, precision))
    names = list(modalities or (f"channel_{i}" for i in range(dense.channels)))
    with dilating_in_3d(format == "onnx"):  # a SavedModel runs wherever TensorFlow does
        export = Export(
            what="encoder",
            format=format,
            precision=precision,
            signatures=_signatures(dense, names, normalisation, format),
            variables=[variable.value for variable in dense.encoder.variables],
            facts={
                "model": model.name,
                "patch_shape": dense.patch_shape,
                "latent_dim": dense.latent_dim,
                "channels": dense.channels,
                "modalities": names,
                "normalisation": normalisation,
                "voxel_size": voxel_size,
                "encoder": fingerprint,
                "parameters": dense.encoder.count_params(),
            },
            run=run or {},
            notes=[*_notes(dense, format, precision), *([about] if about else [])],
        )
        return folders.write(export, folder)


def in_precision(encoder: keras.Model, precision: str) -> keras.Model:
    """An encoder whose weights and layers are of a precision: itself, or a copy; the latent is float32."""
    outputs = {layer.name for layer in encoder.layers if layer.output in encoder.outputs}
    inner = [layer for layer in encoder.layers if layer.name not in outputs]
    if all(layer.dtype_policy.name == precision for layer in inner):
        return encoder

    def change(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            if value.get("class_name") == "DTypePolicy":
                return {**value, "config": {"name": precision}}
            name = value.get("name", name)
            return {
                key: item if key == "dtype" and name in outputs else change(item, name)
                for key, item in value.items()
            }
        return [change(item, name) for item in value] if isinstance(value, list | tuple) else value

    copy = type(encoder).from_config(change(encoder.get_config()))
    copy.set_weights(encoder.get_weights())
    return copy


def by_name(modalities: Sequence[str], form: Sequence[int | None]) -> dict[str, tf.TensorSpec]:
    """A volume input a modality, and the mask."""
    names = [_input_name(name) for name in modalities]
    if len({*(name.lower() for name in names), MASK}) <= len(names):  # a graph's names have no case
        raise InputError(
            f"modalities {list(modalities)}: names that differ in more than case, and not {MASK!r}."
        )
    specs = {name: tf.TensorSpec(form, tf.float32) for name in names}
    return {**specs, MASK: tf.TensorSpec(form, tf.bool)}


def _input_name(modality: str) -> str:
    """A name that TensorFlow and a call in Python both take: ASCII, a letter first."""
    name = re.sub(r"\W", "_", modality, flags=re.ASCII)
    return name if name[:1].isalpha() and not iskeyword(name) and name != "self" else f"image_{name}"


def stacked(names: Sequence[str], inputs: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Volume ``(x, y, z, m)`` in the encoder's order, and mask; refuses shapes that differ."""
    *parts, mask = (inputs[name] for name in names)
    return tf.stack(parts, -1), mask


def drawn_volume(shape: Sequence[int], channels: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Blocks of drawn raw intensities (x, y, z, m) and a box as mask; it packs well, and is nobody's scan."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(100, 900, (*(-(-n // 3) for n in shape), channels))
    fine = rng.integers(0, 100, shape)[..., None] if np.prod(shape) < 1e5 else 0
    for axis in range(3):
        coarse = coarse.repeat(3, axis)
    volume = coarse[tuple(slice(n) for n in shape)] + fine
    mask = np.zeros(shape, bool)
    mask[tuple(slice(n // 8, n - n // 8) for n in shape)] = True
    return volume.astype(np.float32), mask


def _signatures(
    dense: DenseEncoder, modalities: Sequence[str], normalisation: str, format: str
) -> dict[str, Signature]:
    """Those that a format has, ``encode`` first."""
    encoder, channels = dense.encoder, dense.channels
    volume_specs = by_name(modalities, (None, None, None))
    names = list(volume_specs)
    raw = normalisation != "none"
    checks = format == "savedmodel"

    def encode(patch: tf.Tensor) -> dict[str, tf.Tensor]:
        def code() -> tf.Tensor:
            return tf.cast(encoder(patch, training=False), tf.float32)

        # TensorFlow's convolutions fail where there is nothing to convolve.
        some = (
            tf.cond(tf.size(patch) > 0, code, lambda: tf.zeros((0, dense.latent_dim))) if checks else code()
        )
        return {"latent": intensities.of_finite(patch, some, checks=checks)}

    def encode_raw(patch: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> dict[str, tf.Tensor]:
        ones = [1] * len(dense.patch_shape)
        low, high = (tf.reshape(value, (-1, *ones, channels)) for value in (low, high))
        code = encode(intensities.rescale(patch, low, high))["latent"]
        code = intensities.of_scale(low, high, code, checks=checks)
        return {"latent": intensities.of_finite(patch, code, checks=checks)}

    def codes(volume: tf.Tensor) -> dict[str, tf.Tensor]:
        if format == "savedmodel":
            return {"latent": dense.in_graph(volume)}
        whole = dense.slices_in_graph(dense.padded_in_graph(volume), 0, tf.shape(volume)[2])
        return {"latent": tf.transpose(whole, (1, 2, 0, 3))}

    def normalise(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        volume, mask = stacked(names, inputs)
        volume, low, high = intensities.normalise(volume, mask, normalisation, checks=checks)
        return {"volume": volume, "low": low, "high": high}

    def encode_volume(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        volume, mask = stacked(names, inputs)
        inside = tf.where(mask[..., tf.newaxis], volume, 0.0)[tf.newaxis]
        latent = codes(normalise(**inputs)["volume"])["latent"][tf.newaxis]
        return {"latent": intensities.of_finite(inside, latent, checks=checks)[0]}

    patch = tf.TensorSpec((None, *dense.patch_shape, channels), tf.float32)
    scale = tf.TensorSpec((None, channels), tf.float32)
    vectors = _Vectors(dense, names, normalisation)
    size = "x".join(map(str, dense.patch_shape))
    chosen = {
        "encode": Signature(
            encode,
            {"patch": patch},
            *vectors.patches(),
            about=f"{size} patches in [0, 1], cut from a normalised volume, to codes",
        )
    }
    if raw:
        chosen["encode_raw"] = Signature(
            encode_raw,
            {"patch": patch, "low": scale, "high": scale},
            *vectors.raw_patches(),
            about=f"raw {size} patches and the intensities that become 0 and 1 (n or 1 rows), to codes",
        )
    if format == "tflite":
        return chosen
    chosen["encode_volume"] = Signature(
        encode_volume,
        volume_specs,
        *vectors.volumes(),
        about=f"{'raw' if raw else 'normalised'} volumes and the brain mask to the code at every voxel",
        voxels=vectors.voxels,
    )
    if raw:
        chosen["normalise"] = Signature(
            normalise,
            volume_specs,
            *vectors.normalised(),
            about="raw volumes and the brain mask to the volume in [0, 1] and its scale, for encode_raw",
            voxels=vectors.voxels,
        )
    return chosen


_Vector = tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]


class _Vectors:
    """Test vectors ``(given, expected)``, the expected by NumPy and the encoder itself."""

    def __init__(self, dense: DenseEncoder, names: Sequence[str], normalisation: str):
        rng = np.random.default_rng(1)
        shape = tuple(size + 5 for size in (*dense.patch_shape, 1)[:3])
        self.dense, self.names = dense, names
        self.raw, self.mask = drawn_volume(shape, dense.channels)
        method = "unit" if normalisation == "none" else normalisation
        channels = [volumes.normalise(self.raw[..., c], self.mask, method) for c in range(dense.channels)]
        self.volume = np.stack([channel for channel, _ in channels], -1)
        self.raw = self.volume if normalisation == "none" else self.raw
        self.low, self.high = (
            np.array([[fit[end] for _, fit in channels]], np.float32) for end in ("low", "high")
        )
        voxels = np.argwhere(np.ones(shape, bool))
        self.voxels = voxels[np.sort(rng.choice(len(voxels), min(VOXELS, len(voxels)), replace=False))]

    def patches(self) -> _Vector:
        patch = self._cut(self.volume)
        return {"patch": patch}, {"latent": self._encode(patch)}

    def raw_patches(self) -> _Vector:
        patch = self._cut(np.where(self.mask[..., None], self.raw, self.low[0]))
        given = {"patch": patch, "low": self.low, "high": self.high}
        return given, {"latent": self._encode(self._cut(self.volume))}

    def volumes(self) -> _Vector:
        return self._named(self.raw), {"latent": self.dense(self.volume)[tuple(self.voxels.T)]}

    def normalised(self) -> _Vector:
        expected = {"volume": self.volume[tuple(self.voxels.T)], "low": self.low[0], "high": self.high[0]}
        return self._named(self.raw), expected

    def _cut(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        """Three patches."""
        shape, corners = (*self.dense.patch_shape, 1)[:3], [(0, 0, 0), (2, 1, 3), (5, 4, 2)]
        cut = [volume[tuple(slice(a, a + n) for a, n in zip(c, shape, strict=True))] for c in corners]
        return np.ascontiguousarray(np.stack(cut).reshape(len(cut), *self.dense.patch_shape, -1))

    def _encode(self, patch: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(tf.cast(self.dense.encoder(patch, training=False), tf.float32))

    def _named(self, volume: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        channels = (np.ascontiguousarray(volume[..., c]) for c in range(volume.shape[-1]))
        return dict(zip(self.names, (*channels, self.mask), strict=True))


def _notes(dense: DenseEncoder, format: str, precision: str) -> list[str]:
    notes = []
    if format == "savedmodel":
        notes.append(
            "Volumes are encoded a run of slices at a time; putting the result together takes three times "
            "its size in memory, and 64 MiB or a slice besides."
        )
    if format == "onnx":
        notes.append("Volumes are encoded at once: some tens of maps of the volume must fit in memory.")
    if format == "tflite":
        notes.append(
            "TFLite has no form for whole volumes here; encode patches, or take a SavedModel or ONNX."
        )
    if precision == "bfloat16":
        notes.append(
            "Weights and layers are bfloat16, inputs and outputs float32; whole volumes are convolved in "
            "float32 with the same rounded weights. Codes differ from float32 by about 1 %."
        )
    return notes
