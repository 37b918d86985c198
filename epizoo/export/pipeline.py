"""A whole pipeline for other teams: template-space volumes to a calibrated score map, detector inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from epizoo.dense import DenseEncoder, in_runs
from epizoo.dense_convert import dilating_in_3d
from epizoo.detection import NormativeModel
from epizoo.detection.codes import EncoderCodes, Intensities
from epizoo.detection.signs import SignMaps, Signs
from epizoo.export import folder as folders
from epizoo.export import intensities
from epizoo.export.encoder import NORMALISATIONS, VOXELS, by_name, drawn_volume, stacked
from epizoo.export.folder import Export
from epizoo.export.signature import Signature
from epizoo.maps.deviations import FARTHEST, LOWEST
from epizoo.maps.junction import tissue_weights
from tfds_epilepsy import volumes
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import Subject

RUN = 1024  # voxels that are scored at once: their factors stay in cache


def export_pipeline(
    normative: NormativeModel,
    folder: str | Path,
    *,
    modalities: Sequence[str],
    normalisation: str = "unit",
    run: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a fitted detector with its encoder as one SavedModel.

    Its signature ``score`` (also ``serving_default``) takes one raw template-space volume (x, y, z) a
    modality, by its name, and ``mask`` (x, y, z) bool, the brain, on the detector's grid, and gives ``score``
    (x, y, z): what ``NormativeModel.score`` gives. It normalises; volumes that are normalised already stay
    as they are.

    What the detector has learnt is kept in variables, packed as in its own folder: the 2 GiB of a graph do
    not limit it. It is read a run of voxels at a time: memory is that of the variables and of a few slices.

    Args:
        normative: a fitted detector: ``ocsvm``, ``gaussian``, ``knn``, ``reconstruction``, ``head``,
            ``signs``, ``zscore`` or ``flair``, smoothed or not.
        folder: where the export goes; appears once it is whole and gives what the detector gives.
        modalities: names of the channels in order.
        normalisation: of raw intensities (see ``export_encoder``).
        run: facts of the run that it comes from, for card and metadata.
        overwrite: replace an export that exists.

    Returns:
        The folder.

    Raises:
        InputError: the folder exists; a detector or codes that have no form in TensorFlow operations.
    """
    folder = Path(folder)
    name, codes = normative.manifest["detector"], normative.codes
    problems = folders.check_target(folder, "savedmodel", overwrite)
    if name not in SCORERS:
        problems.append(
            f"detector {name!r} has no form in TensorFlow operations: a pipeline can be exported with "
            f"{', '.join(SCORERS)}. Its encoder can be exported in any case (--what encoder)."
        )
    if type(codes) not in (EncoderCodes, SignMaps, Intensities):
        problems.append(
            f"a detector that reads {type(codes).__name__} has no form in TensorFlow operations: of codes, "
            "those of an encoder, signs and intensities have."
        )
    if normalisation not in NORMALISATIONS:
        problems.append(f"normalisation {normalisation!r}: choose one of {', '.join(NORMALISATIONS)}.")
    if len(modalities) != normative.manifest["modalities"]:
        problems.append(
            f"modalities {list(modalities)}: the detector takes {normative.manifest['modalities']} channels."
        )
    if problems:
        raise InputError(problems)
    with dilating_in_3d(False):  # a SavedModel runs wherever TensorFlow does
        pipeline = _Pipeline(normative)
        export = Export(
            what="pipeline",
            format="savedmodel",
            precision="float32",
            signatures=_signatures(pipeline, normative, modalities, normalisation),
            variables=pipeline.variables,
            facts={
                "model": (run or {}).get("model", "encoder" if pipeline.dense else "none"),
                "detector": {
                    key: normative.manifest[key] for key in ("detector", "config", "fwhm", "features")
                },
                "channels": len(modalities),
                "modalities": list(modalities),
                "normalisation": normalisation,
                "voxel_size": float(normative.affine[0, 0]),
                "grid": {"shape": normative.mask.shape, "affine": normative.affine},
                "encoder": normative.manifest["encoder"],
                "controls": len(normative.subjects),
            },
            run=run or {},
            notes=[
                f"What the detector has learnt: {pipeline.bytes / 2**20:.0f} MiB of variables.",
                "Scores are standard deviations above the training controls at each voxel; higher is more "
                "abnormal; 0 outside the brain.",
            ],
        )
        return folders.write(export, folder)


class _Pipeline:
    """A ``NormativeModel`` in TensorFlow operations."""

    def __init__(self, normative: NormativeModel):
        self.affine, self.fwhm = normative.affine, normative.manifest["fwhm"]
        self.shape = normative.mask.shape
        self.codes = codes = normative.codes
        encoder = codes.inner if isinstance(codes, SignMaps) else codes
        self.dense: DenseEncoder | None = encoder.dense if isinstance(encoder, EncoderCodes) else None
        self.mask = tf.Variable(normative.mask, trainable=False)
        self.mean = tf.Variable(normative.mean, trainable=False)
        self.sd = tf.Variable(normative.sd, trainable=False)
        deviations = encoder.deviations if isinstance(encoder, EncoderCodes) else None
        self.tissue: list[tf.Variable] = []  # of the grid; only signs and deviations read it
        if isinstance(codes, SignMaps) or deviations:
            weights = tissue_weights(self.shape, tuple(np.ravel(self.affine)))
            self.tissue.append(tf.Variable(weights, trainable=False))
        self.usual: list[tf.Variable] = []  # where signs are known, their mean and deviation there
        self.spread = float(deviations.spread) if deviations else 0.0
        if deviations:
            usual = (deviations.mask[..., None], *deviations.moments())
            self.usual += [tf.Variable(array, trainable=False) for array in usual]
        scorer = SCORERS[normative.manifest["detector"]]
        self.slabs = [
            _Slab(self, slices, normative.mask, scorer(state, order, normative.manifest["config"]))
            for slices, order, state in _states(normative)
        ]

    @property
    def variables(self) -> list[tf.Variable]:
        own = [
            self.mask,
            self.mean,
            self.sd,
            *self.tissue,
            *self.usual,
            *(v for slab in self.slabs for v in slab.variables),
        ]
        return own + ([v.value for v in self.dense.encoder.variables] if self.dense else [])

    @property
    def bytes(self) -> int:
        return sum(v.dtype.size * v.shape.num_elements() for slab in self.slabs for v in slab.variables)

    def score(self, volume: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """The map ``(x, y, z)`` of a normalised volume ``(x, y, z, m)``."""
        read = self._read(volume, mask)
        padded = self.dense.padded_in_graph(read) if self.dense else None
        features = self._features(volume, mask, read)
        scores = tf.concat([slab.score(padded, features) for slab in self.slabs], 0)
        voxels = tf.concat([slab.voxels.value() for slab in self.slabs], 0)
        raw = tf.scatter_nd(voxels, scores, self.shape)
        inside = tf.logical_and(mask, self.mask)
        if self.fwhm:
            raw = intensities.smooth(raw, inside, self.affine, self.fwhm)
        return tf.where(inside, (raw - self.mean) / self.sd, 0.0)

    def _read(self, volume: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """What the encoder reads: the volume, or its deviation maps."""
        if not self.usual:
            return volume
        known, mean, sd = self.usual
        z = (intensities.signs(volume, mask, self.affine, *self.tissue) - mean) / sd
        inside = tf.logical_and(known, mask[..., tf.newaxis])
        z = tf.clip_by_value(z, -FARTHEST, FARTHEST)
        if self.spread:
            z = tf.clip_by_value(0.5 + z / (2 * self.spread), LOWEST, 1.0)
        return tf.where(inside, z, 0.0)

    def _features(self, volume: tf.Tensor, mask: tf.Tensor, read: tf.Tensor) -> tf.Tensor | None:
        """What the detector reads beside the encoder's code, ``(x, y, z, k)``."""
        codes = self.codes
        if isinstance(codes, SignMaps):
            return read if self.usual else intensities.signs(volume, mask, self.affine, *self.tissue)
        if isinstance(codes, Intensities) and codes.fwhm:
            return intensities.smooth(volume, mask, self.affine, codes.fwhm)
        return volume if isinstance(codes, Intensities) else None


class _Slab:
    """Some axial slices: their voxels, slice by slice, and what the detector has learnt there."""

    def __init__(self, pipeline: _Pipeline, slices: range, mask: NDArray[np.bool_], scorer: _Scorer):
        z, x, y = np.nonzero(mask[:, :, slices.start : slices.stop].transpose(2, 0, 1))
        first = np.concatenate([[0], np.cumsum(np.bincount(z, minlength=len(slices)))])
        self.voxels = tf.Variable(np.stack([x, y, z + slices.start], 1).astype(np.int32), trainable=False)
        self.first = tf.Variable(first.astype(np.int32), trainable=False)
        self.slices, self.scorer, self.dense = slices, scorer, pipeline.dense

    @property
    def variables(self) -> list[tf.Variable]:
        return [self.voxels, self.first, *self.scorer.variables]

    def score(self, padded: tf.Tensor | None, features: tf.Tensor | None) -> tf.Tensor:
        """Scores ``(v,)`` of its voxels, as many slices at a time as fit in ``STEP_BYTES``."""
        slices_at_once = (
            1 if self.dense is None or padded is None else self.dense.slices_at_once(padded.shape)
        )

        def some_slices(start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
            begin, end = self.first[start], self.first[stop]
            voxels = self.voxels[begin:end]
            parts = [] if features is None else [tf.gather_nd(features, voxels)]
            if self.dense:
                z = self.slices.start
                parts.append(self.dense.slices_in_graph(padded, start + z, stop + z, voxels))
            latents = tf.concat(parts, 1)
            return in_runs(
                end - begin,
                RUN,
                lambda a, b: self.scorer.score(latents[a:b], begin + a, begin + b),
                tf.TensorSpec((None,), tf.float32),
            )

        return in_runs(len(self.slices), slices_at_once, some_slices, tf.TensorSpec((None,), tf.float32))


# === Detectors: what ``Detector.state`` holds, in the order of the slab's voxels, and a score ===


class _Scorer:
    """A detector at the voxels of a slab.

    Args:
        state: of ``Detector.state``.
        order: ``(v,)``: where in it each voxel of the slab stands.
        config: of the detector.
    """

    def __init__(
        self, state: Mapping[str, NDArray[Any]], order: NDArray[np.int64], config: Mapping[str, Any]
    ):
        self.variables: list[tf.Variable] = []

    def score(self, latents: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        """Scores ``(v,)`` of codes ``(v, d)`` at the voxels ``start:stop`` of the slab."""
        raise NotImplementedError

    def keep(self, array: NDArray[Any]) -> tf.Variable:
        variable = tf.Variable(array, trainable=False)
        self.variables.append(variable)
        return variable


class _OneClassSVM(_Scorer):
    """``rho - sum alpha exp(-gamma |x - y|^2)``."""

    def __init__(self, state: Any, order: Any, config: Any):
        super().__init__(state, order, config)
        first, rows = _reordered(np.cumsum(state["count"], dtype=np.int64), order)
        self.first = self.keep(first)
        self.support, self.alpha = self.keep(state["packed"][rows]), self.keep(state["alpha"][rows])
        self.low, self.step, self.rho = (self.keep(state[key][order]) for key in ("lowest", "step", "rho"))
        self.gamma = self.keep(state["gamma"][order].astype(np.float32))

    def score(self, latents: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        first = self.first[start : stop + 1]
        a, b = first[0], first[-1]
        voxel = tf.repeat(tf.range(stop - start), tf.cast(first[1:] - first[:-1], tf.int32))  # (s,)
        low, step = (tf.gather(v[start:stop], voxel)[:, tf.newaxis] for v in (self.low, self.step))
        support = low + step * tf.cast(self.support[a:b], tf.float32)  # (s, d)
        distance = tf.reduce_sum(tf.square(tf.gather(latents, voxel) - support), 1)
        kernel = self.alpha[a:b] * tf.exp(-tf.gather(self.gamma[start:stop], voxel) * distance)
        return self.rho[start:stop] - tf.math.unsorted_segment_sum(kernel, voxel, stop - start)


class _Gaussian(_Scorer):
    """``|U^-T (x - mean)|``."""

    def __init__(self, state: Any, order: Any, config: Any):
        super().__init__(state, order, config)
        self.mean, self.scale, self.factor = (self.keep(state[k][order]) for k in ("mean", "scale", "factor"))

    def score(self, latents: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        rows = tf.cast(self.factor[start:stop], tf.float32) * self.scale[start:stop, tf.newaxis]
        rest = latents - self.mean[start:stop]
        total, position = tf.zeros_like(rest[:, :1]), 0
        while rest.shape[1]:  # forward substitution along the rows of U, all voxels at once
            row = rows[:, position : position + rest.shape[1]]
            position += rest.shape[1]
            y = rest[:, :1] / row[:, :1]
            total += tf.square(y)
            rest = rest[:, 1:] - y * row[:, 1:]
        return tf.sqrt(total[:, 0])


class _KNN(_Scorer):
    """Mean distance to the k nearest controls."""

    def __init__(self, state: Any, order: Any, config: Any):
        super().__init__(state, order, config)
        packed = state["packed"].reshape(len(state["lowest"]), -1, state["packed"].shape[-1])
        self.packed = self.keep(packed[order])
        self.low, self.step = (self.keep(state[key][order]) for key in ("lowest", "step"))
        self.k = min(config["k"], packed.shape[1])

    def score(self, latents: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        low, step = (v[start:stop][:, tf.newaxis, tf.newaxis] for v in (self.low, self.step))
        controls = low + step * tf.cast(self.packed[start:stop], tf.float32)  # (v, n, d)
        distances = tf.norm(controls - latents[:, tf.newaxis], axis=2)
        return tf.reduce_mean(-tf.math.top_k(-distances, self.k, sorted=False)[0], 1)


class _Reconstruction(_Scorer):
    """Root of the mean square of the residual."""

    def score(self, latents: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        return tf.sqrt(tf.reduce_mean(tf.square(latents), 1))


class _Head(_Scorer):
    """The model's own logit."""

    def score(self, latents: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        return latents[:, 0]


class _ZScore(_Scorer):
    """The largest ``|z|`` of the modalities."""

    def __init__(self, state: Any, order: Any, config: Any):
        super().__init__(state, order, config)
        self.mean, self.sd = (self.keep(state[key][order]) for key in ("mean_", "sd_"))

    def score(self, latents: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        return tf.reduce_max(tf.abs(latents - self.mean[start:stop]) / self.sd[start:stop], 1)


class _Signs(_ZScore):
    """The sum of the signs, each in z units and in its direction."""

    def __init__(self, state: Any, order: Any, config: Any):
        super().__init__(state, order, config)
        self.weights = Signs(**config).weights(state["mean_"].shape[1])

    def score(self, latents: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        return tf.linalg.matvec((latents - self.mean[start:stop]) / self.sd[start:stop], self.weights)


class _Flair(_Scorer):
    """One modality as it is."""

    def __init__(self, state: Any, order: Any, config: Any):
        super().__init__(state, order, config)
        self.modality = config["modality"]

    def score(self, latents: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        return latents[:, self.modality]


SCORERS: dict[str, Callable[..., _Scorer]] = {
    "ocsvm": _OneClassSVM,
    "gaussian": _Gaussian,
    "knn": _KNN,
    "reconstruction": _Reconstruction,
    "head": _Head,
    "signs": _Signs,
    "zscore": _ZScore,
    "flair": _Flair,
}


def _states(normative: NormativeModel) -> Any:
    """Slices, order and state of each slab; voxels of a state lie in C order, here slice by slice."""
    for number, (start, stop) in enumerate(normative.manifest["slabs"]):
        z = np.nonzero(normative.mask[:, :, start:stop])[2]
        yield range(start, stop), np.argsort(z, kind="stable"), normative.state(number)


def _reordered(ends: NDArray[np.int64], order: NDArray[np.int64]) -> tuple[Any, Any]:
    """Runs of rows that end at ``ends``, in another order: their first rows, and which rows they are."""
    first = np.concatenate([[0], ends])
    counts = np.diff(first)[order]
    new = np.concatenate([[0], np.cumsum(counts)])
    return new, np.repeat(first[order] - new[:-1], counts) + np.arange(new[-1])


def _signatures(
    pipeline: _Pipeline, normative: NormativeModel, modalities: Sequence[str], normalisation: str
) -> dict[str, Signature]:
    specs = by_name(modalities, pipeline.shape)
    names = list(specs)

    def score(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        volume, mask = stacked(names, inputs)
        return {"score": pipeline.score(intensities.normalise(volume, mask, normalisation)[0], mask)}

    raw, mask = drawn_volume(pipeline.shape, len(modalities))
    method = "unit" if normalisation == "none" else normalisation
    channels = [volumes.normalise(raw[..., c], mask, method)[0] for c in range(len(modalities))]
    volume = np.stack(channels, -1)
    nobody = Subject("vector", "patient", volume, mask, np.zeros_like(mask), normative.affine)
    scores = normative.score(nobody)
    inside = np.argwhere(normative.mask & mask)
    chosen = np.random.default_rng(2).choice(len(inside), min(VOXELS, len(inside)), replace=False)
    voxels = inside[np.sort(chosen)]
    expected = {"score": scores[tuple(voxels.T)]}

    image = volume if normalisation == "none" else raw
    parts = (np.ascontiguousarray(image[..., c]) for c in range(len(modalities)))
    given = dict(zip(names, (*parts, mask), strict=True))
    kind = "volumes in [0, 1]" if normalisation == "none" else "raw volumes"
    about = f"{kind} and the brain mask to the score map, standard deviations above the controls"
    return {"score": Signature(score, specs, given, expected, about, voxels)}
