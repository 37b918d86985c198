"""The view ``deviations``: how far the signs of a scan lie from those of the controls, at each voxel."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from epizoo.maps.signs import Signs, sign_maps
from epizoo.maps.smoothing import smooth
from epizoo.maps.view import Graph, View
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import Subject, subject_problems

if TYPE_CHECKING:
    import tensorflow as tf

FEWEST_CONTROLS = 3  # one is left out of its own mean, and two have a deviation
FARTHEST = 8.0  # standard deviations; what lies farther counts as this
LOWEST = 0.001  # of maps in [0, 1], in the brain: 0 is outside
SMALLEST_SD = 1e-3  # of signs
PRIOR_FREEDOM = 10  # degrees of freedom that the neighbourhood's variance counts for
PRIOR_FWHM = 8.0  # millimetres


class Deviations(Signs):
    """The signs of a scan in standard deviations from the controls' mean, where half of them have brain.

    The variance of so few controls is ``moderated``, and ``1 + 1/n`` for the doubt about the mean is in it.
    No standard deviation of a sign is taken to be less than .001 (``SMALLEST_SD``).
    **A control is held against the others alone**: its image is known, whatever it is called, and taken out
    of mean, variance and neighbourhood. So controls deviate as new healthy people do, and a network may learn
    from them what is normal. Normative modelling of this kind: Marquand et al. 2016, Biol Psychiatry 80:552.

    >>> view = Deviations(["T1w", "FLAIR"]).adapt(controls)  # doctest: +SKIP
    >>> view(subject).shape  # doctest: +SKIP
    (99, 117, 95, 3)

    Args:
        modalities: see :class:`View`.
        spread: standard deviations that [0, 1] reaches to either side of .5, for models that read values in
            [0, 1]; 0: the maps stay in standard deviations.

    Attributes:
        mask_: ``(x, y, z)`` bool, where there are deviations.
        count_: ``(x, y, z)`` int32, controls with brain at a voxel.
        mean_, squares_: ``(x, y, z, k)`` float32, of their signs: mean, sum of squared differences from it.
        prior_: ``(x, y, z, k)`` float32, the variance in the neighbourhood.
        images_: ``(n,)`` uint32, checksums of the controls' images.
    """

    name: ClassVar[str] = "deviations"
    fewest_controls: ClassVar[int] = FEWEST_CONTROLS
    mask_: NDArray[np.bool_]
    count_: NDArray[np.int32]
    mean_: NDArray[np.float32]
    squares_: NDArray[np.float32]
    prior_: NDArray[np.float32]
    images_: NDArray[np.uint32]

    def __init__(self, modalities: Sequence[str] | None = None, spread: float = 0.0):
        super().__init__(modalities)
        self.spread = float(spread)

    @property
    def about(self) -> str:
        scale = f", as .5 + z / {2 * self.spread:g}, 0 outside the brain" if self.spread else ""
        return (
            "Channels are not intensities but deviation maps, in standard deviations from the controls of "
            f"the run{scale}; the pipeline (--what pipeline) makes them of scans itself."
        )

    @property
    def limits(self) -> tuple[float, float]:
        return (0.0, 1.0) if self.spread else (-FARTHEST, FARTHEST)

    def adapt(self, controls: Iterable[Subject]) -> Self:
        """Learn mean and variance of the signs from scans of healthy people on one grid.

        Raises:
            InputError: fewer than three controls; controls that cannot be used together, all at once.
        """
        images: list[int] = []
        problems: list[str] = []
        first = None
        for subject in controls:
            first = first or subject
            shape, channels = first.image.shape[:3], first.image.shape[3]
            problems += subject_problems(subject, shape, first.affine, channels, f"sub-{first.subject}")
            if problems:
                continue
            brain, affine = subject.brain_mask, first.affine
            signs = sign_maps(subject.image, brain, subject.affine).astype(np.float64)
            if not images:
                count = np.zeros(brain.shape, np.int32)
                mean, squares = np.zeros(signs.shape), np.zeros(signs.shape)
            images.append(_checksum(subject))
            count += brain
            step = np.where(brain[..., None], signs - mean, 0)  # Welford's update
            mean += step / np.maximum(count, 1)[..., None]
            squares += step * np.where(brain[..., None], signs - mean, 0)
        if problems:
            raise InputError(problems)
        if len(images) < FEWEST_CONTROLS:
            raise InputError(f"{len(images)} controls: deviations need at least {FEWEST_CONTROLS}.")
        mask = (count >= FEWEST_CONTROLS) & (2 * count >= len(images))
        variance = np.where(mask[..., None], squares / np.maximum(count - 1, 1)[..., None], 0)
        self.mask_, self.count_ = mask, count
        self.mean_, self.squares_ = mean.astype(np.float32), squares.astype(np.float32)
        self.prior_ = _around(variance, mask, affine)
        self.images_ = np.array(images, np.uint32)
        return self

    def __call__(self, subject: Subject) -> NDArray[np.float32]:
        """Deviation maps ``(x, y, z, k)``: of each modality, then of the junction's width.

        0 outside the mask and the subject's brain, at most ``FARTHEST`` either way; with a spread
        ``.5 + z / (2 spread)``, in [.001, 1].

        Raises:
            InputError: not adapted; another grid or other modalities.
        """
        self._check_adapted()
        signs = sign_maps(subject.image, subject.brain_mask, subject.affine)
        if signs.shape != self.mean_.shape:
            raise InputError(
                f"sub-{subject.subject}: {signs.shape[3] - 1} modalities on a grid of {signs.shape[:3]}; "
                f"the controls have {self.mean_.shape[3] - 1} on {self.mean_.shape[:3]}."
            )
        mean, sd = self.moments(signs, subject)
        inside = (self.mask_ & subject.brain_mask)[..., None]
        z = np.clip((signs - mean) / sd, -FARTHEST, FARTHEST)
        if self.spread:
            z = np.clip(0.5 + z / (2 * self.spread), LOWEST, 1)
        return np.where(inside, z, 0).astype(np.float32)

    def moments(
        self, signs: NDArray[np.float32] | None = None, subject: Subject | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation of each sign, with which a scan is compared, ``(x, y, z, k)`` each.

        Args:
            signs: ``(x, y, z, k)`` of the subject; those of a control are taken out.
            subject: whose they are; a new scan if None.
        """
        self._check_adapted()
        n: NDArray[Any] = np.maximum(self.count_, FEWEST_CONTROLS)[..., None].astype(np.float32)
        mean, squares, prior = self.mean_, self.squares_, self.prior_
        if signs is not None and subject is not None and _checksum(subject) in self.images_:
            own = np.where(subject.brain_mask[..., None], signs - mean, 0)
            without = n - subject.brain_mask[..., None].astype(np.float32)
            mean = mean - own / without
            squares = np.maximum(squares - own**2 * n / without, 0)
            n = without
            prior = _around(squares / (n - 1), self.mask_, subject.affine)
        variance = moderated(squares / (n - 1), n - 1, prior)
        return mean, np.maximum(np.sqrt(variance * (1 + 1 / n)), SMALLEST_SD)

    def stands_for(self, view: View) -> bool:
        """For the signs, since a detector holds them against the same controls; for equal deviations."""
        return type(view) is Signs or super().stands_for(view)

    def parts(self, maps: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """The deviations in the direction of lesions, of signs whose direction is known."""
        if self.spread:
            maps = np.where(maps == 0, 0, (maps - 0.5) * (2 * self.spread))
        named = enumerate(zip(self.signs, self.directions, strict=True))
        return {sign: way * maps[..., k] for k, (sign, way) in named if way}

    def graph(self, shape: tuple[int, ...], affine: NDArray[np.floating[Any]]) -> Graph:
        import tensorflow as tf

        signs = super().graph(shape, affine)
        known, mean, sd = (
            tf.Variable(array, trainable=False) for array in (self.mask_[..., None], *self.moments())
        )

        def maps(volume: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
            z = tf.clip_by_value((signs(volume, mask) - mean) / sd, -FARTHEST, FARTHEST)
            if self.spread:
                z = tf.clip_by_value(0.5 + z / (2 * self.spread), LOWEST, 1.0)
            return tf.where(tf.logical_and(known, mask[..., tf.newaxis]), z, 0.0)

        return Graph(maps, [*signs.variables, known, mean, sd])

    def state(self) -> dict[str, NDArray[Any]]:
        return {name.removesuffix("_"): value for name, value in vars(self).items() if name.endswith("_")}

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        vars(self).update({f"{name}_": np.asarray(value) for name, value in state.items()})

    def _check_adapted(self) -> None:
        if "mean_" not in vars(self):
            raise InputError(
                f"view {self.name!r} holds a scan against controls and has seen none: call adapt(controls) "
                "first."
            )


def moderated(variance: NDArray[Any], freedom: Any, neighbourhood: NDArray[Any]) -> NDArray[Any]:
    """Variances of few samples, drawn to those of their neighbourhood: ``(f s^2 + f0 s0^2) / (f + f0)``.

    Smyth 2004 (Stat Appl Genet Mol Biol 3:3), ``f0`` = 10.
    """
    return np.asarray((freedom * variance + PRIOR_FREEDOM * neighbourhood) / (freedom + PRIOR_FREEDOM))


def _around(
    variance: NDArray[Any], mask: NDArray[np.bool_], affine: NDArray[np.floating[Any]]
) -> NDArray[np.float32]:
    """The variance in the neighbourhood of each voxel of a mask."""
    return smooth(np.asarray(variance, np.float32), mask, affine, PRIOR_FWHM)


def _checksum(subject: Subject) -> int:
    return zlib.crc32(np.ascontiguousarray(subject.image, np.float32).data)
