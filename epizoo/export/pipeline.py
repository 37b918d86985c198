"""A whole pipeline for other teams: template-space volumes to a calibrated score map, detector inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from epizoo.dense import DenseEncoder, in_runs
from epizoo.dense_convert import dilating_in_3d
from epizoo.detection import FittedDetector
from epizoo.detection.explained import maps_in_graph
from epizoo.detection.rarity import rarest_in_graph
from epizoo.detection.scorer import Scorer
from epizoo.detection.tail import LEVEL
from epizoo.export import folder as folders
from epizoo.export import intensities
from epizoo.export.encoder import NORMALISATIONS, VOXELS, by_name, drawn_volume, stacked
from epizoo.export.folder import Export
from epizoo.export.signature import Signature
from epizoo.registry import DETECTORS
from tfds_epilepsy import volumes
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import Subject

RUN = 1024  # voxels that are scored at once: their factors stay in cache


def export_pipeline(
    detector: FittedDetector,
    folder: str | Path,
    *,
    modalities: Sequence[str],
    normalisation: str | None = None,
    run: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a fitted detector with its encoder as one SavedModel.

    Its signature ``score`` (also ``serving_default``) takes one raw template-space volume (x, y, z) a
    modality, by its name, and ``mask`` (x, y, z) bool, the brain, on the detector's grid, and gives ``score``
    (x, y, z): what ``FittedDetector.score`` gives; and ``p``, what ``Tail.p`` gives of the highest score,
    unless an earlier version has fitted the detector. It normalises as the controls' images were; volumes
    that are normalised already stay as they are.

    What the detector has learnt is kept in variables, packed as in its own folder: the 2 GiB of a graph do
    not limit it. It is read a run of voxels at a time: memory is that of the variables and of a few slices.

    Example:
        >>> out = export_pipeline(done.detector, folder / "maps", modalities=["T1w", "FLAIR"])
        >>> (out / "saved_model.pb").is_file()
        True

    Args:
        detector: a fitted one that is ``exportable``, smoothed or not.
        folder: where the export goes; appears once it is whole and gives what the detector gives.
        modalities: names of the channels in order.
        normalisation: of raw intensities (see ``export_encoder``); ``none``: volumes are taken as the
            detector was fitted on them. By default what the controls' images were normalised by, if anything.
        run: facts of the run that it comes from, for card and metadata.
        overwrite: replace an export that exists.

    Returns:
        The folder.

    Raises:
        InputError: the folder exists; a detector, profiles or codes that have no form in TensorFlow
            operations; a normalisation that does not make images like the controls'.
    """
    folder = Path(folder)
    name, codes = detector.manifest["detector"], detector.codes
    problems = folders.check_target(folder, "savedmodel", overwrite)
    if not detector.detector.exportable:
        exportable = [known for known in DETECTORS if DETECTORS.get(known).exportable]
        problems.append(
            f"detector {name!r} has no form in TensorFlow operations: a pipeline can be exported with "
            f"{', '.join(exportable)}. Its encoder can be exported in any case (--what encoder)."
        )
    problems += [
        f"profile {kind.name!r} makes a map of its own that has no form in TensorFlow operations: give it an "
        "in_graph, or fit the detector on other profiles."
        for kind in detector.detector.kinds
        if not kind.has_graph
    ]
    if not codes.has_graph:
        problems.append(
            f"a detector that reads {type(codes).__name__} has no form in TensorFlow operations: of codes, "
            "those of an encoder and the maps of views have."
        )
    normalised = detector.manifest["normalised"]
    if normalisation is None:
        normalisation = normalised[0] if normalised else "none"
    elif normalised is not None and normalisation not in (*normalised, "none"):
        problems.append(
            f"normalisation {normalisation!r} would change the controls' images, and the pipeline would give "
            "other scores than the detector: take 'none', and give it volumes as the detector was fitted on."
        )
    if normalisation not in NORMALISATIONS:
        problems.append(f"normalisation {normalisation!r}: choose one of {', '.join(NORMALISATIONS)}.")
    if len(modalities) != detector.manifest["channels"]:
        problems.append(
            f"modalities {list(modalities)}: the detector takes {detector.manifest['channels']} channels."
        )
    if problems:
        raise InputError(problems)
    tail = detector.tail
    with dilating_in_3d(False):  # a SavedModel runs wherever TensorFlow does
        pipeline = _Pipeline(detector)
        export = Export(
            what="pipeline",
            format="savedmodel",
            precision="float32",
            signatures=_signatures(pipeline, detector, modalities, normalisation),
            variables=pipeline.variables,
            facts={
                "model": (run or {}).get("model", "encoder" if pipeline.dense else "none"),
                "detector": {
                    key: detector.manifest[key] for key in ("detector", "config", "fwhm", "code_size")
                },
                "channels": len(modalities),
                "modalities": list(modalities),
                "normalisation": normalisation,
                "voxel_size": float(detector.affine[0, 0]),
                "grid": {"shape": detector.mask.shape, "affine": detector.affine},
                "encoder": detector.manifest["encoder"],
                "controls": len(detector.subjects),
                "profiles": {kind.name: kind.words for kind in detector.detector.kinds},
                "tail": None if tail is None else {**vars(tail), "level": tail.level(LEVEL)},
            },
            run=run or {},
            notes=[
                *_notes(detector),
                f"What the detector has learnt: {pipeline.bytes / 2**20:.0f} MiB of variables.",
            ],
        )
        return folders.write(export, folder)


class _Pipeline:
    """A ``FittedDetector`` in TensorFlow operations."""

    def __init__(self, detector: FittedDetector):
        self.detector, self.tail = detector.detector, detector.tail
        self.affine, self.fwhm = detector.affine, detector.manifest["fwhm"]
        self.shape = detector.mask.shape
        encoded = detector.codes.encoded
        self.dense: DenseEncoder | None = None if encoded is None else encoded.dense
        self.stride = detector.codes.stride
        views = [] if encoded is None else [encoded.view]
        views += [view for view in detector.codes.views if view not in views]
        self.graphs = [view.graph(self.shape, self.affine) for view in views]
        self.beside = [views.index(view) for view in detector.codes.views]  # what is read beside the code
        self.mask = tf.Variable(detector.mask, trainable=False)
        self.mean = tf.Variable(detector.mean, trainable=False)
        self.sd = tf.Variable(detector.sd, trainable=False)
        self.shares = [kind.share for kind in self.detector.kinds]
        if self.shares:
            self.rarities = tf.Variable(detector.rarities, dtype=tf.float64, trainable=False)
        self.width = len(self.detector.numbers) if self.shares else 1
        self.slabs = [
            _Slab(self, slices, detector.mask, self.detector.graph(state, order))
            for slices, order, state in _states(detector)
        ]

    @property
    def variables(self) -> list[tf.Variable]:
        own = [
            self.mask,
            self.mean,
            self.sd,
            *([self.rarities] if self.shares else []),
            *(v for graph in self.graphs for v in graph.variables),
            *(v for slab in self.slabs for v in slab.variables),
        ]
        return own + ([v.value for v in self.dense.encoder.variables] if self.dense else [])

    @property
    def bytes(self) -> int:
        return sum(v.dtype.size * v.shape.num_elements() for slab in self.slabs for v in slab.variables)

    def score(self, volume: tf.Tensor, mask: tf.Tensor) -> dict[str, tf.Tensor]:
        """The map ``(x, y, z)`` of a normalised volume ``(x, y, z, m)``, and p of its highest score."""
        maps = [graph(volume, mask) for graph in self.graphs]
        read = [maps[i] for i in self.beside]
        padded = None
        if self.dense and self.stride > 1:
            read.append(self.dense.interpolated_in_graph(maps[0], self.stride))
        elif self.dense:
            padded = self.dense.padded_in_graph(maps[0])
        beside = tf.concat(read, -1) if read else None
        found = tf.concat([slab.evidence(padded, beside) for slab in self.slabs], 0)
        voxels = tf.concat([slab.voxels.value() for slab in self.slabs], 0)
        evidence = tf.scatter_nd(voxels, found, (*self.shape, self.width))
        inside = tf.logical_and(mask, self.mask)
        maps = maps_in_graph(self.detector, evidence, inside, self.affine, self.fwhm)
        if self.shares:
            z = rarest_in_graph((maps - self.mean) / self.sd, self.rarities, self.shares)
        else:
            z = (maps[..., 0] - self.mean) / self.sd
        known = tf.logical_and(inside, tf.not_equal(z, -np.inf))
        outputs = {"score": tf.where(known, z, 0.0)}
        if self.tail is not None:
            outputs["p"] = self.tail.p_in_graph(tf.reduce_max(tf.where(known, z, -np.inf)))
        return outputs


class _Slab:
    """Some axial slices: their voxels, slice by slice, and what the detector has learnt there."""

    def __init__(self, pipeline: _Pipeline, slices: range, mask: NDArray[np.bool_], scorer: Scorer):
        z, x, y = np.nonzero(mask[:, :, slices.start : slices.stop].transpose(2, 0, 1))
        first = np.concatenate([[0], np.cumsum(np.bincount(z, minlength=len(slices)))])
        self.voxels = tf.Variable(np.stack([x, y, z + slices.start], 1).astype(np.int32), trainable=False)
        self.first = tf.Variable(first.astype(np.int32), trainable=False)
        self.slices, self.scorer, self.dense = slices, scorer, pipeline.dense
        self.spec = tf.TensorSpec((None, pipeline.width), tf.float32)

    @property
    def variables(self) -> list[tf.Variable]:
        return [self.voxels, self.first, *self.scorer.variables]

    def evidence(self, padded: tf.Tensor | None, maps: tf.Tensor | None) -> tf.Tensor:
        """Evidence ``(v, k)`` of its voxels, as many slices at a time as fit in ``STEP_BYTES``.

        Args:
            padded: what the encoder is to be asked about, if at every voxel.
            maps: ``(x, y, z, k)`` what is read besides, before the codes.
        """
        slices_at_once = (
            1 if self.dense is None or padded is None else self.dense.slices_at_once(padded.shape)
        )

        def some_slices(start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
            begin, end = self.first[start], self.first[stop]
            voxels = self.voxels[begin:end]
            parts = [] if maps is None else [tf.gather_nd(maps, voxels)]
            if self.dense and padded is not None:
                z = self.slices.start
                parts.append(self.dense.slices_in_graph(padded, start + z, stop + z, voxels))
            codes = tf.concat(parts, 1)
            return in_runs(
                end - begin,
                RUN,
                lambda a, b: self.scorer.evidence(codes[a:b], begin + a, begin + b),
                self.spec,
            )

        return in_runs(len(self.slices), slices_at_once, some_slices, self.spec)


def _states(detector: FittedDetector) -> Any:
    """Slices, order and state of each slab; voxels of a state lie in C order, here slice by slice."""
    for number, (start, stop) in enumerate(detector.manifest["slabs"]):
        z = np.nonzero(detector.mask[:, :, start:stop])[2]
        yield range(start, stop), np.argsort(z, kind="stable"), detector.state(number)


def _notes(detector: FittedDetector) -> list[str]:
    """What the outputs mean, for the card."""
    scale = "standard deviations above the training controls at each voxel"
    kinds = [kind.words for kind in detector.detector.kinds]
    notes = [f"Looked for: {'; '.join(kinds)}. The rarest of them counts at each voxel."] if kinds else []
    if kinds:
        scale = f"{scale}, of {kinds[0]} that are as rare among them"
    notes += [f"Scores are {scale}; higher is more abnormal; 0 outside the brain."]
    if detector.tail is not None:
        notes.append(
            "`p` is the probability that a healthy person has a score as high as the highest of the map "
            f"anywhere in the brain; it is {LEVEL:g} at a score of {detector.tail.level(LEVEL):.2f}."
        )
    return notes


def _signatures(
    pipeline: _Pipeline, detector: FittedDetector, modalities: Sequence[str], normalisation: str
) -> dict[str, Signature]:
    specs = by_name(modalities, pipeline.shape)
    names = list(specs)

    def score(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        volume, mask = stacked(names, inputs)
        return pipeline.score(intensities.normalise(volume, mask, normalisation)[0], mask)

    raw, mask = drawn_volume(pipeline.shape, len(modalities))
    method = "unit" if normalisation == "none" else normalisation
    channels = [volumes.normalise(raw[..., c], mask, method)[0] for c in range(len(modalities))]
    volume = np.stack(channels, -1)
    nobody = Subject("vector", "patient", volume, mask, np.zeros_like(mask), detector.affine)
    scores = detector.score(nobody)
    inside = np.argwhere(detector.mask & mask)
    chosen = np.random.default_rng(2).choice(len(inside), min(VOXELS, len(inside)), replace=False)
    voxels = inside[np.sort(chosen)]
    expected = {"score": scores[tuple(voxels.T)]}
    if detector.tail is not None:
        expected["p"] = detector.tail.p(scores[detector.mask & mask].max()).astype(np.float32)

    image = volume if normalisation == "none" else raw
    parts = (np.ascontiguousarray(image[..., c]) for c in range(len(modalities)))
    given = dict(zip(names, (*parts, mask), strict=True))
    kind = "volumes in [0, 1]" if normalisation == "none" else "raw volumes"
    about = f"{kind} and the brain mask to the score map, standard deviations above the controls"
    if detector.tail is not None:
        about += "; `p`: the probability that a healthy person has as high a score anywhere"
    return {"score": Signature(score, specs, given, expected, about, voxels)}
