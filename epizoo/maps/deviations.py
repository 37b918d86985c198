"""Deviation maps: how far the signs of a scan lie from those of the controls, at each voxel."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epizoo.maps.signs import sign_maps
from epizoo.maps.smoothing import smooth
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import Subject

FEWEST = 3  # controls: one is left out of its own mean, and two have a deviation
FARTHEST = 8.0  # standard deviations; what lies farther counts as this
LOWEST = 0.001  # of maps in [0, 1], in the brain: 0 is outside
SMALLEST_SD = 1e-3  # of signs
PRIOR_FREEDOM = 10  # degrees of freedom that the neighbourhood's variance counts for
PRIOR_FWHM = 8.0  # millimetres


@dataclass(frozen=True, eq=False)
class Deviations:
    """The signs of a scan in standard deviations from the controls' mean, where half of them have brain.

    The variance of so few controls is ``moderated``, and ``1 + 1/n`` for the doubt about the mean is in it.
    **A control is held against the others alone**: its image is known, whatever it is called, and taken out
    of mean and variance. So controls deviate as new healthy people do, and a network may learn from them
    what is normal. Normative modelling of this kind: Marquand et al. 2016, Biol Psychiatry 80:552.

    Args:
        mask: ``(x, y, z)`` bool.
        count: ``(x, y, z)``, controls with brain at a voxel.
        mean, squares: ``(x, y, z, k)`` float32, of their signs: mean, sum of squared differences from it.
        prior: ``(x, y, z, k)`` float32, the variance in the neighbourhood.
        images: ``(n,)`` uint32, checksums of the controls' images.
        spread: standard deviations that [0, 1] reaches to either side of .5, for models that read values in
            [0, 1]; 0: the maps stay in standard deviations.
    """

    mask: NDArray[np.bool_]
    count: NDArray[np.int32]
    mean: NDArray[np.float32]
    squares: NDArray[np.float32]
    prior: NDArray[np.float32]
    images: NDArray[np.uint32]
    spread: float = 0.0

    @classmethod
    def of_controls(cls, controls: Iterable[Subject], spread: float = 0.0) -> Deviations:
        """From scans of healthy people on one grid.

        Raises:
            InputError: fewer than three controls; grids that differ.
        """
        images: list[int] = []
        for subject in controls:
            brain = subject.brain_mask
            signs = sign_maps(subject.image, brain, subject.affine).astype(np.float64)
            if not images:
                count, affine = np.zeros(brain.shape, np.int32), subject.affine
                mean, squares = np.zeros(signs.shape), np.zeros(signs.shape)
            if signs.shape != mean.shape or not np.allclose(affine, subject.affine, atol=1e-3):
                raise InputError(
                    f"sub-{subject.subject}: signs of shape {signs.shape}, those of the controls before it "
                    f"{mean.shape}: preprocess all to one template space."
                )
            images.append(_checksum(subject))
            count += brain
            step = np.where(brain[..., None], signs - mean, 0)  # Welford's update
            mean += step / np.maximum(count, 1)[..., None]
            squares += step * np.where(brain[..., None], signs - mean, 0)
        if len(images) < FEWEST:
            raise InputError(f"{len(images)} controls: deviations need at least {FEWEST}.")
        mask = (count >= FEWEST) & (2 * count >= len(images))
        variance = np.where(mask[..., None], squares / np.maximum(count - 1, 1)[..., None], 0)
        prior = smooth(variance.astype(np.float32), mask, affine, PRIOR_FWHM)
        checksums = np.array(images, np.uint32)
        return cls(mask, count, mean.astype(np.float32), squares.astype(np.float32), prior, checksums, spread)

    def __call__(self, subject: Subject) -> NDArray[np.float32]:
        """Deviation maps ``(x, y, z, k)``: of each modality, then of the junction's width.

        0 outside the mask and the subject's brain, at most ``FARTHEST`` either way; with a spread
        ``.5 + z / (2 spread)``, in [.001, 1].

        Raises:
            InputError: another grid or other modalities.
        """
        signs = sign_maps(subject.image, subject.brain_mask, subject.affine)
        if signs.shape != self.mean.shape:
            raise InputError(
                f"sub-{subject.subject}: {signs.shape[3] - 1} modalities on a grid of {signs.shape[:3]}; "
                f"the controls have {self.mean.shape[3] - 1} on {self.mean.shape[:3]}."
            )
        mean, sd = self.moments(signs, subject)
        inside = (self.mask & subject.brain_mask)[..., None]
        z = np.clip((signs - mean) / sd, -FARTHEST, FARTHEST)
        if self.spread:
            z = np.clip(0.5 + z / (2 * self.spread), LOWEST, 1)
        return np.where(inside, z, 0).astype(np.float32)

    def moments(
        self, signs: NDArray[np.float32] | None = None, subject: Subject | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What a new scan is held against, ``(x, y, z, k)`` each; a control's own signs are taken out."""
        n: NDArray[Any] = np.maximum(self.count, FEWEST)[..., None].astype(np.float32)
        mean, squares = self.mean, self.squares
        if signs is not None and subject is not None and _checksum(subject) in self.images:
            own = np.where(subject.brain_mask[..., None], signs - mean, 0)
            without = n - subject.brain_mask[..., None].astype(np.float32)
            mean = mean - own / without
            squares = np.maximum(squares - own**2 * n / without, 0)
            n = without
        variance = moderated(squares / (n - 1), n - 1, self.prior)
        return mean, np.maximum(np.sqrt(variance * (1 + 1 / n)), SMALLEST_SD)

    @property
    def fingerprint(self) -> str:
        """Equal for equal controls."""
        digest = hashlib.sha256()
        for array in self.arrays().values():
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it, by the names of the arguments."""
        return dict(vars(self))


def moderated(variance: NDArray[Any], freedom: Any, neighbourhood: NDArray[Any]) -> NDArray[Any]:
    """Variances of few samples, drawn to those of their neighbourhood: ``(f s^2 + f0 s0^2) / (f + f0)``.

    Smyth 2004 (Stat Appl Genet Mol Biol 3:3), ``f0`` = 10.
    """
    return (freedom * variance + PRIOR_FREEDOM * neighbourhood) / (freedom + PRIOR_FREEDOM)


def _checksum(subject: Subject) -> int:
    return zlib.crc32(np.ascontiguousarray(subject.image, np.float32).data)
