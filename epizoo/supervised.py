"""The supervised reference: a small two-pathway CNN that learns from annotated lesions.

The upper bound that unsupervised methods are held against, after DeepMedic (Kamnitsas et al. 2017, Medical
Image Analysis 36:61-78): one pathway sees the tissue at full resolution, the other the same place three times
coarser and wider; both are valid 3x3x3 convolutions that end on the same centre. It needs annotated patients
that are no part of any other split, and is never a default: no hospital has them for the lesions that it
seeks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray
from rich.console import Console

import tfds_epilepsy
from epizoo.detection.explained import Explained
from epizoo.method import Work
from epizoo.models import loading
from epizoo.models.callbacks import Checkpoint, History, ProgressBar, save
from epizoo.run_config import NO_DETECTOR, RunConfig, data_name
from epizoo.run_folder import RunFolder
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import write_json
from tfds_epilepsy.lesions import LesionSpec, implant_in_subject
from tfds_epilepsy.phantom import PhantomConfig
from tfds_epilepsy.tfds_epilepsy_dataset_builder import Builder, EpilepsyConfig
from tfds_epilepsy.volumes import Subject

SCALE = 3  # the context is seen 3 times coarser
DEPTH = 4  # convolutions a pathway: 9 voxels at full resolution, 27 through the context
MARGIN = DEPTH * SCALE  # voxels on each side of the output that the context needs
SEGMENT = 9  # edge of the output of a training segment, a multiple of SCALE
SLAB = 30  # planes that are scored at once, a multiple of SCALE
CALIBRATION = 10  # training patients whose healthy tissue gives scores their unit
VERSION = 1
ANNOTATED_KINDS = ("fcd_2a", "fcd_2b", "fcd_1")  # of the lesions implanted in controls
PATIENTS = 60  # annotated ones, in no split of the cohort
TRAINING: dict[str, Any] = {"epochs": 20, "steps_per_epoch": 50, "batch_size": 16}  # 16 000 segments


def supervised_config(
    data: str | Path,
    *,
    patients: int = PATIENTS,
    seed: int = 0,
    modalities: Sequence[str] | None = None,
    reading: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The settings of a run of the supervised reference.

    Args:
        data, modalities, reading: as of every run.
        patients: annotated ones that it is trained on.
        seed: of weights and segments; the patients are the same for every seed.

    Raises:
        InputError: no patient.
    """
    if patients < 1:
        raise InputError(f"{patients} annotated patients: the supervised reference needs at least 1.")
    return RunConfig(
        data=data_name(data),
        method="supervised",
        model="two_pathways",
        detector=NO_DETECTOR,
        model_config={"patients": patients},
        seed=seed,
        fwhm=0.0,
        modalities=None if modalities is None else list(modalities),
        reading=dict(reading or {}),
        **TRAINING,
    )


class Supervised:
    """The method of a run whose maps are those of the supervised reference: an upper bound, no competitor.

    Its annotated patients are in no split of the cohort. For a phantom they are of another cohort with the
    same settings; for a folder they are its training controls with implanted lesions. ``metadata.json`` says
    ``supervised`` and ``fitted_on``.
    """

    def check(self, run: Work) -> None:
        """It reads every modality and grid."""

    def learnt_from(self, run: Work) -> dict[str, Any]:
        n = run.config.model_config["patients"]
        phantom = run.builder.builder_config.phantom is not None
        source = "patients of another phantom cohort" if phantom else "lesions implanted in training controls"
        return {"supervised": True, "fitted_on": f"{n} annotated {source}"}

    def train(self, run: Work) -> None:
        """The network has no encoder to train before: ``fit`` trains all of it."""

    def fit(self, run: Work) -> SupervisedReference:
        """Train the network, or go on after the last whole epoch."""
        config, folder = run.config, run.folder
        if folder.manifest.is_file():
            return self.load(folder)
        with run.step("fit"):
            n = config.model_config["patients"]
            subjects = list(run.progress(_annotated(run, n), n, "annotated patients"))
            reference = fit_supervised(
                subjects,
                epochs=config.epochs,
                steps_per_epoch=config.steps_per_epoch,
                batch_size=config.batch_size,
                seed=config.seed,
                folder=folder.path,
                console=run.console,
            )
            reference.save(folder.detector)
            (folder.path / "checkpoint.keras").unlink()
        return reference

    def load(self, folder: RunFolder) -> SupervisedReference:
        return SupervisedReference.load(folder.detector)

    def saw(self, run: Work) -> list[str]:
        return self.load(run.folder).subjects


def two_pathways(channels: int = 2, filters: int = 24) -> keras.Model:
    """The network, for segments and whole volumes alike.

    Args:
        channels: modalities.
        filters: of each convolution; DeepMedic's grow from 30 to 50.

    Returns:
        A model from ``(b, x + 24, y + 24, z + 24, channels)`` to logits ``(b, x, y, z, 1)``; x, y, z
        multiples of 3.
    """
    image = keras.Input((None, None, None, channels), name="segment")
    local = layers.Cropping3D(MARGIN - DEPTH, name="local_crop")(image)
    context = layers.AveragePooling3D(SCALE, name="context_pool")(image)
    for i in range(DEPTH):
        local = _convolution(local, filters, 3, f"local_{i + 1}")
        context = _convolution(context, filters, 3, f"context_{i + 1}")
    context = layers.UpSampling3D(SCALE, name="context_up")(context)
    joint = layers.Concatenate(name="joint")([local, context])
    joint = _convolution(joint, 2 * filters, 1, "joint_1")
    logit = layers.Conv3D(1, 1, name="logit")(joint)
    return keras.Model(image, logit, name="two_pathways")


class Segments(keras.utils.PyDataset):
    """Batches of training segments, half of them centred on a lesion voxel; a function of the seed.

    Args:
        subjects: annotated patients (and controls, if any).
        batch_size: segments per batch.
        steps: batches per epoch.
        seed: of places, mirroring and intensity changes.
        epoch: the first one.

    Raises:
        InputError: no subject with a lesion, or images that differ in modalities.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        *,
        batch_size: int = 16,
        steps: int = 100,
        seed: int = 0,
        epoch: int = 0,
    ):
        super().__init__()
        channels = sorted({subject.image.shape[-1] for subject in subjects})
        if len(channels) > 1:
            raise InputError(f"subjects have {channels} modalities; all must have the same.")
        self._subjects = list(subjects)
        self._brains = [np.flatnonzero(s.brain_mask).astype(np.int32) for s in subjects]
        lesions = [np.flatnonzero(s.lesion_mask & s.brain_mask).astype(np.int32) for s in subjects]
        self._lesions = [(i, at) for i, at in enumerate(lesions) if len(at)]
        if not self._lesions:
            raise InputError(
                "no subject has a lesion mask: the supervised reference learns from annotated patients."
            )
        self._batch_size, self._steps, self._seed, self._epoch = batch_size, steps, seed, epoch

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Segments ``(b, 33, 33, 33, m)`` and their targets ``(b, 9, 9, 9, 2)``: lesion, brain."""
        rng = np.random.default_rng([self._seed, self._epoch, index])
        images, targets = [], []
        for i in range(self._batch_size):
            if i % 2:
                number, at = self._lesions[rng.integers(len(self._lesions))]
            else:
                number = int(rng.integers(len(self._brains)))
                at = self._brains[number]
            subject = self._subjects[number]
            centre = np.unravel_index(at[rng.integers(len(at))], subject.brain_mask.shape)
            image = _around(subject.image, centre, SEGMENT // 2 + MARGIN)
            lesion, brain = (
                _around(mask, centre, SEGMENT // 2) for mask in (subject.lesion_mask, subject.brain_mask)
            )
            target = np.stack([lesion & brain, brain], axis=-1)
            if rng.random() < 0.5:  # mirrored left to right, as in DeepMedic
                image, target = image[::-1], target[::-1]
            shift, gain = rng.normal(0, 0.02, image.shape[-1]), rng.normal(1, 0.05, image.shape[-1])
            images.append(np.where(image > 0, image * gain + shift, 0))
            targets.append(target)
        return np.asarray(images, np.float32), np.asarray(targets, np.float32)

    def on_epoch_end(self) -> None:
        self._epoch += 1


class SupervisedReference:
    """A trained two-pathway CNN with the interface of every scorer: ``score(subject)`` and ``subjects``.

    Attributes:
        model: the network.
        subjects: labels of the subjects that it was trained on (``check_no_leak`` refuses to test on them).
        healthy: mean and deviation of the log-odds in healthy tissue, where scores are 0 and 1.
        tail: None; how high healthy people score is not known.
    """

    tail = None

    def __init__(self, model: keras.Model, subjects: Sequence[str], healthy: tuple[float, float] = (0, 1)):
        self.model = model
        self.subjects = sorted(set(subjects))
        self.healthy = healthy

    @property
    def manifest(self) -> dict[str, Any]:
        """What a run keeps beside the network, with the names of a fitted detector's."""
        return {
            "version": VERSION,
            "detector": "supervised",
            "encoder": self.model.name,
            "supervised": True,
            "subjects": self.subjects,
            "healthy": list(self.healthy),
            "units": "log-odds of lesion, in deviations above healthy tissue of the training patients",
        }

    def score(self, subject: Subject) -> NDArray[np.float32]:
        """Log-odds of lesion, scaled to healthy tissue: ``(x, y, z)`` float32, 0 outside the brain mask.

        Raises:
            InputError: another number of modalities than it was trained on.
        """
        channels = self.model.input_shape[-1]
        if subject.image.shape[-1] != channels:
            raise InputError(
                f"sub-{subject.subject} has {subject.image.shape[-1]} modalities; "
                f"the supervised reference was trained on {channels}."
            )
        shape = subject.brain_mask.shape
        extra = [-n % SCALE for n in shape]
        padded = np.pad(subject.image, [*[(MARGIN, MARGIN + e) for e in extra], (0, 0)]).astype(np.float32)
        slabs = []
        for start in range(0, shape[0] + extra[0], SLAB):
            slab = padded[None, start : start + SLAB + 2 * MARGIN]
            slabs.append(keras.ops.convert_to_numpy(self.model(slab, training=False))[0, ..., 0])
        logits = np.concatenate(slabs)[: shape[0], : shape[1], : shape[2]]
        mean, sd = self.healthy
        return np.where(subject.brain_mask, (logits - mean) / sd, 0).astype(np.float32)

    def explain(self, subject: Subject) -> Explained:
        """The map, and nothing beside it: a network does not say what its scores are made of."""
        return Explained(self.score(subject))

    def calibrate(self, subjects: Iterable[Subject]) -> None:
        """Set ``healthy`` from the brains of subjects that it was trained on, outside their lesions."""
        self.healthy = (0, 1)
        values = np.concatenate([self.score(s)[s.brain_mask & ~s.lesion_mask] for s in subjects])
        self.healthy = float(values.mean()), max(float(values.std()), 1e-6)

    def save(self, folder: str | Path) -> Path:
        """Write ``supervised.keras``, then ``manifest.json``, into ``folder``, each atomically."""
        folder = Path(folder)
        save(self.model, folder / "supervised.keras")
        write_json(folder / "manifest.json", self.manifest)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> SupervisedReference:
        """Read what ``save`` wrote.

        Raises:
            InputError: it is not there, or of another version.
        """
        folder = Path(folder)
        try:
            content = json.loads((folder / "manifest.json").read_text())
            if content["version"] != VERSION:
                raise InputError(f"{folder}: version {content['version']}; this epizoo reads {VERSION}.")
            model = loading.load(folder / "supervised.keras")
            return cls(model, content["subjects"], tuple(content["healthy"]))
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{folder}: holds no supervised reference ({error}); train one first."
            ) from error


def fit_supervised(
    subjects: Sequence[Subject],
    *,
    epochs: int = 20,
    steps_per_epoch: int = 50,
    batch_size: int = 16,
    filters: int = 24,
    seed: int = 0,
    folder: str | Path | None = None,
    console: Console | None = None,
) -> SupervisedReference:
    """Train the supervised reference.

    Args:
        subjects: annotated patients of their own: in no split of the cohort that is evaluated. All are kept
            in memory.
        epochs, steps_per_epoch, batch_size: 16 000 segments by default.
        filters: of each convolution.
        seed: of weights and segments.
        folder: gets ``history.csv`` and, after each epoch, ``checkpoint.keras``: called again after a kill,
            training goes on after the last whole epoch. Nothing is kept without it.
        console: where progress is shown; nowhere if None.

    Raises:
        InputError: no subject has a lesion, or they differ in modalities.
    """
    keras.utils.set_random_seed(seed)
    checkpoint = None if folder is None else Path(folder) / "checkpoint.keras"
    if checkpoint is not None and checkpoint.is_file():
        model = loading.load(checkpoint)
    else:
        model = two_pathways(subjects[0].image.shape[-1], filters)
        # Cosine decay to zero: the last epochs settle, so no validation set is needed to choose one.
        rate = keras.optimizers.schedules.CosineDecay(2e-3, epochs * steps_per_epoch)
        model.compile(optimizer=keras.optimizers.Adam(rate), loss=masked_crossentropy, jit_compile=False)
    model.steps = int(model.optimizer.iterations)
    model.epochs = done = model.steps // steps_per_epoch
    data = Segments(subjects, batch_size=batch_size, steps=steps_per_epoch, seed=seed, epoch=done)
    callbacks: list[keras.callbacks.Callback] = []
    if checkpoint is not None:
        callbacks += [History(checkpoint.with_name("history.csv"), done), Checkpoint(checkpoint)]
    progress = ProgressBar(console or Console(quiet=True))
    try:
        model.fit(
            data,
            epochs=epochs,
            initial_epoch=done,
            shuffle=False,
            verbose=0,
            callbacks=[*callbacks, progress],
        )
    finally:
        progress.close()
    reference = SupervisedReference(model, [subject.subject for subject in subjects])
    reference.calibrate(subjects[:CALIBRATION])
    return reference


def _annotated(run: Work, n: int) -> Iterator[Subject]:
    config = run.builder.builder_config.phantom
    if config is not None:
        prepared = Path(run.builder.data_dir).parents[2]  # <prepared>/tfds_epilepsy/<config>/<version>
        return annotated_phantoms(config, n, data_dir=prepared)
    return annotated_controls(run.read("train"), run.builder.modalities, n)


def annotated_phantoms(
    config: PhantomConfig, n: int = 60, *, seed: int = 1, data_dir: str | Path | None = None
) -> Iterator[Subject]:
    """Annotated patients of another phantom cohort, like those of ``config`` in all but their seed.

    Args:
        config: the cohort that will be evaluated.
        n: number of patients.
        seed: added to the cohort's own, so that no subject of it comes back; at least 1.
        data_dir: where prepared data sets live: the patients are made once and kept there; TFDS's default if
            None.

    Returns:
        Subjects labelled ``annotated001``, ``annotated002``, ...

    Raises:
        InputError: a seed below 1.
    """
    if seed < 1:
        raise InputError(
            f"seed {seed}: at least 1 is needed, or the patients are those of the cohort itself."
        )
    other = replace(
        config,
        seed=config.seed + seed,
        n_train=0,
        n_validation_controls=0,
        n_validation_patients=0,
        n_test_controls=0,
        n_test_patients=n,
    )
    kept = EpilepsyConfig(
        name=f"phantom_{config.voxel_size}mm_annotated",
        description="Annotated patients that the supervised reference learns from.",
        phantom=other,
    )
    builder = Builder(config=kept, data_dir=None if data_dir is None else str(data_dir)).prepare()
    for number, made in enumerate(tfds_epilepsy.read(builder, "test"), start=1):
        yield replace(made, subject=f"annotated{number:03d}")


def annotated_controls(
    controls: Iterable[Subject], modalities: Sequence[str], n: int = 60, *, seed: int = 0
) -> Iterator[Subject]:
    """Controls with implanted lesions, for cohorts that have no annotated patients to spare.

    Each control is used as often as it takes to make ``n``, with another lesion each time; its label stays
    its own, so that a test on it is refused.

    Args:
        controls: training controls.
        modalities: names of their channels.
        n: number of lesions.
        seed: of the lesions.
    """
    controls = list(controls)

    def lesion(number: int) -> tuple[LesionSpec, list[int]]:
        kind = ANNOTATED_KINDS[number % len(ANNOTATED_KINDS)]
        return LesionSpec.draw(np.random.default_rng([seed, number]), kind), [seed, number, 1]

    for first, control in enumerate(controls[:n]):
        numbers = range(first, n, len(controls))
        yield from implant_in_subject(control, modalities, map(lesion, numbers))


@keras.saving.register_keras_serializable("epizoo")
def masked_crossentropy(target: Any, logit: Any) -> Any:
    """Mean binary cross-entropy over the voxels of the brain.

    Args:
        target: ``(b, x, y, z, 2)``: lesion, brain.
        logit: ``(b, x, y, z, 1)``.
    """
    lesion, brain = target[..., 0], target[..., 1]
    entropy = keras.ops.binary_crossentropy(lesion, logit[..., 0], from_logits=True)
    return keras.ops.sum(entropy * brain) / keras.ops.maximum(keras.ops.sum(brain), 1)


def _convolution(x: Any, filters: int, size: int, name: str) -> Any:
    x = layers.Conv3D(filters, size, use_bias=False, kernel_initializer="he_normal", name=name)(x)
    # 0.9: the statistics of some hundred steps must be enough.
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def _around(volume: NDArray[Any], centre: Sequence[Any], half: int) -> NDArray[Any]:
    """The cube around a voxel, zero where it leaves the volume; a further axis stays whole."""
    places = [np.arange(int(c) - half, int(c) + half + 1) for c in centre]
    inside = [(at >= 0) & (at < n) for at, n in zip(places, volume.shape, strict=False)]
    cube = volume[np.ix_(*(at.clip(0, n - 1) for at, n in zip(places, volume.shape, strict=False)))]
    keep = inside[0][:, None, None] & inside[1][:, None] & inside[2]
    return np.asarray(cube * keep.reshape(*keep.shape, *[1] * (volume.ndim - 3)))
