"""The supervised reference: a small two-pathway CNN that learns from annotated lesions.

The upper bound that unsupervised methods are held against, after DeepMedic (Kamnitsas et al. 2017, Medical
Image Analysis 36:61-78): one pathway sees the tissue at full resolution, the other the same place three times
coarser and wider; both are valid 3x3x3 convolutions that end on the same centre. It needs annotated patients
that are no part of any other split, and is never a default: no hospital has them for the lesions that it
seeks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from tfds_epilepsy import phantom
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import replacing, write_json
from tfds_epilepsy.phantom import PhantomConfig
from tfds_epilepsy.volumes import Subject

SCALE = 3  # the context is seen 3 times coarser
DEPTH = 4  # convolutions a pathway: 9 voxels at full resolution, 27 through the context
MARGIN = DEPTH * SCALE  # voxels on each side of the output that the context needs
SEGMENT = 9  # edge of the output of a training segment, a multiple of SCALE
SLAB = 30  # planes that are scored at once, a multiple of SCALE
VERSION = 1


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
        batch_size: segments a batch.
        steps: batches an epoch.
        seed: of places, mirroring and intensity changes.

    Raises:
        InputError: no subject with a lesion, or images that differ in modalities.
    """

    def __init__(self, subjects: Sequence[Subject], *, batch_size: int = 16, steps: int = 100, seed: int = 0):
        super().__init__()
        channels = sorted({subject.image.shape[-1] for subject in subjects})
        if len(channels) > 1:
            raise InputError(f"subjects have {channels} modalities; all must have the same.")
        self._lesions = [
            (i, at) for i, s in enumerate(subjects) if len(at := np.argwhere(s.lesion_mask & s.brain_mask))
        ]
        if not self._lesions:
            raise InputError(
                "no subject has a lesion mask: the supervised reference learns from annotated patients."
            )
        self._brains = [np.argwhere(subject.brain_mask) for subject in subjects]
        half = SEGMENT // 2 + MARGIN
        pad = [(half, half)] * 3
        self._images = [np.pad(subject.image, [*pad, (0, 0)]) for subject in subjects]
        # Channel 0: lesion, channel 1: brain, the voxels that the loss counts.
        self._targets = [
            np.pad(np.stack([s.lesion_mask & s.brain_mask, s.brain_mask], axis=-1), [*pad, (0, 0)])
            for s in subjects
        ]
        self._half, self._batch_size, self._steps, self._seed, self._epoch = half, batch_size, steps, seed, 0

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Segments ``(b, 33, 33, 33, m)`` and their targets ``(b, 9, 9, 9, 2)``: lesion, brain."""
        rng = np.random.default_rng([self._seed, self._epoch, index])
        images, targets = [], []
        for i in range(self._batch_size):
            if i % 2:
                subject, at = self._lesions[rng.integers(len(self._lesions))]
            else:
                subject = int(rng.integers(len(self._brains)))
                at = self._brains[subject]
            centre = at[rng.integers(len(at))] + self._half
            image = self._images[subject][_around(centre, self._half)]
            target = self._targets[subject][_around(centre, SEGMENT // 2)]
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
        supervised: True: tables and reports mark it.
    """

    supervised = True

    def __init__(self, model: keras.Model, subjects: Sequence[str]):
        self.model = model
        self.subjects = list(subjects)

    def score(self, subject: Subject) -> NDArray[np.float32]:
        """Log-odds of lesion at every voxel: ``(x, y, z)`` float32, 0 outside the brain mask.

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
        return np.where(subject.brain_mask, logits, 0).astype(np.float32)

    def save(self, folder: str | Path) -> Path:
        """Write ``supervised.keras`` and ``supervised.json`` into ``folder``, each atomically."""
        folder = Path(folder)
        with replacing(folder / "supervised.keras") as partial:
            self.model.save(partial)
        write_json(folder / "supervised.json", {"version": VERSION, "subjects": self.subjects})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> SupervisedReference:
        """Read what ``save`` wrote.

        Raises:
            InputError: it is not there, or of another version.
        """
        folder = Path(folder)
        try:
            content = json.loads((folder / "supervised.json").read_text())
            if content["version"] != VERSION:
                raise InputError(f"{folder}: version {content['version']}; this epizoo reads {VERSION}.")
            return cls(keras.saving.load_model(folder / "supervised.keras"), content["subjects"])
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
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: Any = 0,
) -> SupervisedReference:
    """Train the supervised reference.

    Args:
        subjects: annotated patients of their own: in no split of the cohort that is evaluated. All are kept
            in memory.
        epochs, steps_per_epoch, batch_size: 16 000 segments by default.
        filters: of each convolution.
        seed: of weights and segments.
        callbacks: more Keras callbacks.
        verbose: as in ``keras.Model.fit``.

    Raises:
        InputError: no subject has a lesion, or they differ in modalities.
    """
    data = Segments(subjects, batch_size=batch_size, steps=steps_per_epoch, seed=seed)
    keras.utils.set_random_seed(seed)
    model = two_pathways(subjects[0].image.shape[-1], filters)
    # Cosine decay to zero: the last epochs settle, so no validation set is needed to choose one.
    rate = keras.optimizers.schedules.CosineDecay(2e-3, epochs * steps_per_epoch)
    model.compile(optimizer=keras.optimizers.Adam(rate), loss=masked_crossentropy, jit_compile=False)
    model.fit(data, epochs=epochs, shuffle=False, callbacks=list(callbacks), verbose=verbose)
    return SupervisedReference(model, [subject.subject for subject in subjects])


def annotated_phantoms(config: PhantomConfig, n: int = 40, *, seed: int = 1) -> Iterator[Subject]:
    """Annotated patients of another phantom cohort, like those of ``config`` in all but their seed.

    Args:
        config: the cohort that will be evaluated.
        n: number of patients.
        seed: added to the cohort's own, so that no subject of it comes back; at least 1.

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
    for number, label in enumerate(phantom.cohort(other)["test"], start=1):
        yield replace(phantom.subject(other, label), subject=f"annotated{number:03d}")


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


def _around(centre: NDArray[np.integer], half: int) -> tuple[slice, ...]:
    return tuple(slice(int(c) - half, int(c) + half + 1) for c in centre)
