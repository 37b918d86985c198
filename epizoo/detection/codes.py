"""What a detector reads: a code at every voxel of a subject."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from epizoo.maps.signs import directions, sign_names
from epizoo.maps.smoothing import smooth
from tfds_epilepsy.volumes import Subject

if TYPE_CHECKING:
    import keras

    from epizoo.maps.deviations import Deviations


class Codes:
    """A code at every voxel, in two steps: one per subject for whole volumes, one per slab for the rest."""

    version: ClassVar[int] = 1  # counts up when a class comes to compute other codes than before

    def volume(self, subject: Subject) -> NDArray[np.float32]:
        """What is kept of a subject: ``(x, y, z, c)`` float32, its image by default."""
        return subject.image

    def parts(self, volume: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Maps ``(x, y, z)`` that say what a score is due to, by name; none for most codes.

        Args:
            volume: ``(x, y, z, c)``.
        """
        return {}

    def latents(self, volume: NDArray[np.float32], mask: NDArray[np.bool_], z: slice) -> NDArray[np.float32]:
        """The codes ``(v, d)`` at the voxels of a mask in some axial slices.

        Args:
            volume: ``(x, y, z, c)``.
            mask: ``(x, y, z)`` bool.
            z: the slices.

        Returns:
            in the order of ``np.nonzero(mask[:, :, z])``.
        """
        return np.ascontiguousarray(volume[:, :, z][mask[:, :, z]])

    @property
    def fingerprint(self) -> str:
        """Equal for equal codes: class, its version and attributes."""
        what = [type(self).__name__, self.version, vars(self)]
        return _digest([json.dumps(what, sort_keys=True, default=_name).encode()])


class EncoderCodes(Codes):
    """The latent code of an encoder's patch around each voxel.

    Args:
        encoder: functional Keras model.
        model: the ``PatchModel`` that it is a part of, whose ``view`` says what its patches are cut from.
    """

    def __init__(self, encoder: keras.Model, model: Any = None):
        from epizoo.dense import DenseEncoder  # brings TensorFlow

        self.dense = DenseEncoder(encoder)
        self.view: Callable[[Subject], Subject] | None = getattr(model, "view", None)
        self.deviations: Deviations | None = getattr(model, "deviations", None)
        self.modalities: Sequence[str] = getattr(model, "modalities", None) or ()
        self._fingerprint = encoder_fingerprint(encoder)
        if self.deviations is not None:
            self._fingerprint = _digest([self._fingerprint.encode(), self.deviations.fingerprint.encode()])

    def volume(self, subject: Subject) -> NDArray[np.float32]:
        return subject.image if self.view is None else self.view(subject).image

    def parts(self, volume: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """The deviations, in the direction of lesions, of scans whose modalities are known."""
        if self.deviations is None or not self.modalities:
            return {}
        signs = zip(sign_names(self.modalities), directions(self.modalities), strict=True)
        return {name: sign * volume[..., k] for k, (name, sign) in enumerate(signs) if sign}

    def latents(self, volume: NDArray[np.float32], mask: NDArray[np.bool_], z: slice) -> NDArray[np.float32]:
        halo = self.dense.patch_shape[2] // 2 if len(self.dense.patch_shape) == 3 else 0
        begin, end = max(z.start - halo, 0), min(z.stop + halo, volume.shape[2])
        return self.dense.latents(
            np.asarray(volume[:, :, begin:end]), mask[:, :, begin:end], slice(z.start - begin, z.stop - begin)
        )

    @property
    def fingerprint(self) -> str:
        return self._fingerprint


class Intensities(Codes):
    """The intensities of all modalities, smoothed inside the brain.

    Args:
        fwhm: of the Gaussian, in millimetres; 0 leaves them as they are.
    """

    def __init__(self, fwhm: float = 0.0):
        self.fwhm = fwhm

    def volume(self, subject: Subject) -> NDArray[np.float32]:
        if not self.fwhm:
            return subject.image
        return smooth(subject.image, subject.brain_mask, subject.affine, self.fwhm)


class Homotopic(Codes):
    """The code of a voxel less that of its mirror: of the mirrored brain at the same place.

    Axis 0 of the grid must mirror the brain, as it does in template space.
    """

    def __init__(self, codes: Codes):
        self.inner = codes

    def volume(self, subject: Subject) -> NDArray[np.float32]:
        return self.inner.volume(subject)

    def latents(self, volume: NDArray[np.float32], mask: NDArray[np.bool_], z: slice) -> NDArray[np.float32]:
        return self.inner.latents(volume, mask, z) - self.inner.latents(volume[::-1], mask, z)


class WithPosition(Codes):
    """A code and, beside it, the voxel's position on the grid, in [-1, 1] times a weight."""

    def __init__(self, codes: Codes, weight: float = 1.0):
        self.inner, self.weight = codes, weight

    def volume(self, subject: Subject) -> NDArray[np.float32]:
        return self.inner.volume(subject)

    def latents(self, volume: NDArray[np.float32], mask: NDArray[np.bool_], z: slice) -> NDArray[np.float32]:
        indices = np.argwhere(mask[:, :, z]) + np.array([0, 0, z.start])
        position = self.weight * (2 * (indices + 0.5) / mask.shape - 1)
        return np.concatenate([self.inner.latents(volume, mask, z), position], axis=1, dtype=np.float32)


def as_codes(encoder: Any) -> Codes:
    """The codes of a Keras encoder or of a model that has one (``PatchModel``), or the codes themselves."""
    if isinstance(encoder, Codes):
        return encoder
    return EncoderCodes(getattr(encoder, "encoder", encoder), encoder)


def encoder_fingerprint(encoder: keras.Model) -> str:
    """Equal for encoders of equal architecture and weights, whatever their layers are called."""
    parts = [json.dumps(_nameless(encoder.get_config()), sort_keys=True, default=_name).encode()]
    for weights in encoder.get_weights():
        parts += [f"{weights.dtype}{weights.shape}".encode(), np.ascontiguousarray(weights).tobytes()]
    return _digest(parts)


def check_grid(
    subject: Subject, shape: tuple[int, ...], affine: NDArray[np.floating], channels: int, what: str
) -> list[str]:
    """The problems of one subject on a grid of ``(x, y, z)`` and some modalities."""
    problems = []
    name = f"sub-{subject.subject}"
    if subject.image.shape[:3] != tuple(shape) or not np.allclose(subject.affine, affine, atol=1e-3):
        problems.append(
            f"{name}: grid {_grid(subject.image.shape[:3], subject.affine)}; {what} lies on "
            f"{_grid(shape, affine)}: preprocess it to the same template space."
        )
    elif subject.image.shape[3] != channels:
        problems.append(f"{name}: {subject.image.shape[3]} modalities; {what} has {channels}.")
    if subject.brain_mask.shape != subject.image.shape[:3]:
        problems.append(
            f"{name}: brain mask of shape {subject.brain_mask.shape}, image {subject.image.shape[:3]}."
        )
    elif not subject.brain_mask.any():
        problems.append(f"{name}: the brain mask is empty.")
    if not np.isfinite(subject.image).all():
        problems.append(
            f"{name}: {np.count_nonzero(~np.isfinite(subject.image))} values are NaN or infinite."
        )
    return problems


def _grid(shape: tuple[int, ...], affine: NDArray[np.floating]) -> str:
    size, origin = np.diag(affine)[:3].round(3), affine[:3, 3].round(1)
    return f"{tuple(shape)} of {size.tolist()} mm with its origin at {origin.tolist()}"


def _nameless(config: Any) -> Any:
    """A configuration without names, which count up with each model built in a process."""
    if isinstance(config, dict):
        skipped = ("name", "keras_history", "input_layers", "output_layers", "build_config", "seed")
        return {key: _nameless(value) for key, value in config.items() if key not in skipped}
    if isinstance(config, list | tuple):
        return [_nameless(value) for value in config]
    return config


def _name(value: Any) -> str:
    return value.fingerprint if isinstance(value, Codes) else type(value).__name__


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
