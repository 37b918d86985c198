"""What a detector reads: a code at every voxel of a subject."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tfds_epilepsy.volumes import Subject

if TYPE_CHECKING:
    import keras

FWHM_TO_SIGMA = 1 / np.sqrt(8 * np.log(2))


class Codes:
    """A code at every voxel, in two steps: one a subject for whole volumes, one a slab for the rest."""

    version: ClassVar[int] = 1  # counts up when a class comes to compute other codes than before

    def volume(self, subject: Subject) -> NDArray[np.float32]:
        """What is kept of a subject: ``(x, y, z, c)`` float32, its image by default."""
        return subject.image

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
    """The latent code of an encoder's patch around each voxel."""

    def __init__(self, encoder: keras.Model):
        from epizoo.dense import DenseEncoder  # brings TensorFlow

        self.dense = DenseEncoder(encoder)
        self._fingerprint = encoder_fingerprint(encoder)

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
    return EncoderCodes(getattr(encoder, "encoder", encoder))


def smooth(
    volume: NDArray[np.floating], mask: NDArray[np.bool_], affine: NDArray[np.floating], fwhm: float
) -> NDArray[np.float32]:
    """Gaussian smoothing that takes nothing from outside the mask (normalised convolution); 0 outside it.

    Args:
        volume: ``(x, y, z)`` or, each channel by itself, ``(x, y, z, c)``.
        mask: ``(x, y, z)`` bool.
        affine: ``(4, 4)``, gives the voxel size.
        fwhm: full width at half maximum, millimetres.
    """
    matrices = gaussian_matrices(mask.shape, affine, fwhm)

    def blur(values: NDArray[np.float32]) -> NDArray[np.float32]:
        for matrix in reversed(matrices):
            values = np.tensordot(matrix, values, (1, 2))  # the last axis, which becomes the first
        return values

    weights = np.maximum(blur(mask.astype(np.float32)), 1e-6)
    smoothed = np.zeros(volume.shape, np.float32)
    for c in np.ndindex(volume.shape[3:]):
        values = np.where(mask, volume[(..., *c)], 0).astype(np.float32)
        smoothed[(..., *c)] = np.where(mask, blur(values) / weights, 0)
    return smoothed


def gaussian_matrices(
    shape: Sequence[int], affine: NDArray[np.floating], fwhm: float
) -> list[NDArray[np.float32]]:
    """Gaussian smoothing along each axis as a matrix ``(n, n)``, zeros beyond the ends.

    Three products are quicker than convolutions where the Gaussian is wide, and the same numbers.

    Args:
        shape: ``(x, y, z)``.
        affine: ``(4, 4)``, gives the voxel size.
        fwhm: full width at half maximum, millimetres.
    """
    sigma = fwhm * FWHM_TO_SIGMA / np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    return [
        ndimage.gaussian_filter1d(np.eye(n, dtype=np.float32), s, axis=0, mode="constant")
        for n, s in zip(shape, sigma, strict=True)
    ]


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
