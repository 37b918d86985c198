"""Profile: what one kind of change does to the maps of a scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.detector import MODEL
from epizoo.maps.signs import JUNCTION
from epizoo.maps.smoothing import smooth, smooth_in_graph
from epizoo.registry import PROFILES

if TYPE_CHECKING:
    import tensorflow as tf

SMALLEST_SD = 1e-3  # of a subject's map


class Profile:
    """What one kind of change does: its signs with their directions, its scale, and where it is looked for.

    Within a profile the signs add up, ``sum w_k z_k / |w|`` of deviations from the controls at the voxel
    (Stouffer). The sum is smoothed, and divided by its own standard deviation over the subject's brain: a
    noisy scan deviates more everywhere, and no more anywhere. Between profiles the rarest counts
    (``Profiles``).

    A profile is one file and one class; a group adds its own.

    >>> from epizoo.registry import register_profile
    >>> @register_profile("bright_spot")
    ... class BrightSpot(Profile):
    ...     words = "a bright spot"
    ...     weights = {"FLAIR": 1}
    ...     fwhm = 4

    Attributes:
        name: what the registry calls it.
        words: what was found, for a reader.
        weights: of maps of the views ``signs`` and ``tissue``, by their names (``T1w``, ``FLAIR``,
            ``junction``, ``gm``, ``wm``, ``csf`` ...), and of what the model says (``model``); negative for a
            map that is lowered. Those that a scan does not have count nothing.
        needs: names without which the profile is not used; at least one of the weights must be there.
        fwhm: of the smoothing, millimetres.
        share: of the lesions that are looked for, a guess: a place found by a profile of half the share must
            be twice as rare to count as much (weighted Bonferroni: Genovese et al. 2006, Biometrika 93:509).
        mirrored: whether the difference from the other side of the brain is added.
    """

    name: ClassVar[str]
    words: ClassVar[str]
    weights: ClassVar[Mapping[str, float]]
    needs: ClassVar[Sequence[str]] = ()
    fwhm: ClassVar[float] = 8.0
    share: ClassVar[float] = 1.0
    mirrored: ClassVar[bool] = False

    def region(self, shape: tuple[int, ...], affine: NDArray[np.floating[Any]]) -> NDArray[np.bool_] | None:
        """Where it is looked for, ``(x, y, z)`` on a grid of template space; None: everywhere."""
        return None

    @property
    def has_graph(self) -> bool:
        """Whether ``in_graph`` makes its map: not where a profile has a ``__call__`` of its own alone."""
        own = type(self)
        return own.__call__ is Profile.__call__ or own.in_graph is not Profile.in_graph

    def used(self, names: Sequence[str]) -> bool:
        """Whether scans with these maps show enough of it."""
        return set(self.needs) <= set(names) and any(name in self.weights for name in names)

    def weights_of(self, names: Sequence[str]) -> NDArray[np.float32]:
        """``(k,)``: the weight of each of some maps, of norm 1."""
        weights = np.array([self.weights.get(name, 0) for name in names], np.float32)
        return np.asarray(weights / np.linalg.norm(weights))

    def signs(self, names: Sequence[str]) -> dict[str, tuple[str, int]]:
        """What it looks for in each of some maps that it reads, in a reader's words, and the direction."""
        ways = {name: int(np.sign(self.weights[name])) for name in names if self.weights.get(name)}
        return {name: (_in_words(name, way), way) for name, way in ways.items()}

    def __call__(
        self,
        deviations: NDArray[np.float32],
        names: Sequence[str],
        inside: NDArray[np.bool_],
        affine: NDArray[np.floating[Any]],
    ) -> NDArray[np.float32]:
        """The map of a subject.

        Args:
            deviations: ``(x, y, z, k)``, standard deviations from the controls.
            names: of the k maps.
            inside: ``(x, y, z)``, where they are known.
            affine: ``(4, 4)``, voxel to world, mm.

        Returns:
            ``(x, y, z)``; NaN where it is not looked for.
        """
        where = self._where(inside, affine)
        summed = smooth(deviations @ self.weights_of(names), where, affine, self.fwhm)
        if self.mirrored:
            summed += np.where(where & where[::-1], summed - summed[::-1], 0)
        sd = float(summed[where].std()) if where.any() else 0.0
        return np.where(where, summed / max(sd, SMALLEST_SD), np.nan)

    def in_graph(
        self,
        deviations: tf.Tensor,
        names: Sequence[str],
        inside: tf.Tensor,
        affine: NDArray[np.floating[Any]],
    ) -> tf.Tensor:
        """The same in TensorFlow operations, for exported pipelines; see ``has_graph``."""
        import tensorflow as tf

        region = _region(self, tuple(inside.shape), tuple(np.ravel(affine)))
        where = inside if region is None else tf.logical_and(inside, region)
        weighted = tf.tensordot(deviations, tf.constant(self.weights_of(names)), 1)
        summed = smooth_in_graph(weighted, where, affine, self.fwhm)
        if self.mirrored:
            both = tf.logical_and(where, tf.reverse(where, [0]))
            summed += tf.where(both, summed - tf.reverse(summed, [0]), 0.0)
        sd = tf.math.reduce_std(tf.boolean_mask(summed, where))
        return tf.where(where, summed / tf.maximum(sd, SMALLEST_SD), np.nan)

    def _where(self, inside: NDArray[np.bool_], affine: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        region = _region(self, inside.shape, tuple(np.ravel(affine)))
        return inside if region is None else inside & region


def create_profile(name: str) -> Profile:
    """A profile by its name.

    Raises:
        InputError: an unknown name.
    """
    return PROFILES.get(name)()


@lru_cache(maxsize=16)
def _region(profile: Profile, shape: tuple[int, ...], affine: tuple[float, ...]) -> NDArray[np.bool_] | None:
    return profile.region(shape, np.reshape(affine, (4, 4)))


def _in_words(name: str, way: int) -> str:
    if name == MODEL:
        return "model"
    if name == JUNCTION:
        return "blurred junction" if way > 0 else "sharp junction"
    if name in TISSUE_WORDS:
        return f"{'more' if way > 0 else 'less'} {TISSUE_WORDS[name]}"
    return f"{'brighter' if way > 0 else 'darker'} {name}"


TISSUE_WORDS = {"gm": "grey matter", "wm": "white matter", "csf": "fluid"}
