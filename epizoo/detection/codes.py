"""What a detector reads: a code at every voxel of a subject."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from epizoo.maps.image import Image
from epizoo.maps.view import View, create_view
from tfds_epilepsy.volumes import Subject

if TYPE_CHECKING:
    import keras

Maps = NDArray[np.float32]


class Codes(ABC):
    """A code at every voxel, in two steps: one per subject for whole volumes, one per slab for the rest.

    Attributes:
        views: whose maps are part of the code, before what an encoder adds.
        encoded: the part of the code that an encoder makes; None without one.
        has_graph: whether an exported pipeline can make the same codes.
    """

    views: Sequence[View] = ()
    encoded: EncoderCodes | None = None
    has_graph: ClassVar[bool] = False

    @abstractmethod
    def volume(self, subject: Subject) -> Maps:
        """What is kept of a subject: ``(x, y, z, c)`` float32."""

    @abstractmethod
    def at(self, volume: Maps, mask: NDArray[np.bool_], z: slice) -> NDArray[np.float32]:
        """The codes ``(v, d)`` at the voxels of a mask in some axial slices.

        Args:
            volume: ``(x, y, z, c)``.
            mask: ``(x, y, z)`` bool.
            z: the slices.

        Returns:
            in the order of ``np.nonzero(mask[:, :, z])``.
        """

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Equal for equal codes."""

    def with_stride(self, stride: int) -> Codes:
        """Codes whose encoder is asked at every ``stride``-th voxel (``DenseEncoder.codes_at``).

        They are these codes themselves where nothing is encoded, or where each voxel counts.
        """
        return self

    @property
    def stride(self) -> int:
        """Voxels from one at which an encoder is asked to the next."""
        return 1 if self.encoded is None else self.encoded.asked_every

    def parts(self, volume: Maps) -> dict[str, Maps]:
        """Maps ``(x, y, z)`` that say what a score is due to, by name (``View.parts``); none for most codes.

        Args:
            volume: ``(x, y, z, c)``.
        """
        return {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the maps of the views; empty where the modalities are not known."""
        return tuple(name for view in self.views for name in view.names)

    @property
    def signs(self) -> tuple[str, ...]:
        """What a lesion does to each of these maps, in words."""
        return tuple(sign for view in self.views for sign in view.signs)

    @property
    def directions(self) -> tuple[int, ...]:
        """How lesions change each of these maps: 1 up, -1 down, 0 where that is not known."""
        return tuple(way for view in self.views for way in view.directions)

    @property
    def modalities(self) -> tuple[str, ...] | None:
        """Names of the images' channels, where a view knows them."""
        return next((view.modalities for view in self._all_views if view.modalities is not None), None)

    @property
    def whole_brain(self) -> bool:
        """Whether a map at a voxel depends on more of the brain than the voxels of the patch around it."""
        return any(view.whole_brain for view in self._all_views)

    @property
    def _all_views(self) -> Sequence[View]:
        return [*self.views, *([] if self.encoded is None else [self.encoded.view])]


class EncoderCodes(Codes):
    """The code of the patch around each voxel.

    Args:
        encoder: functional Keras model.
        view: what its patches are cut from.
        asked_every: the voxels from one at which the encoder is asked to the next.
    """

    has_graph = True

    def __init__(self, encoder: keras.Model, view: View, asked_every: int = 1):
        from epizoo.dense import DenseEncoder  # brings TensorFlow

        self.dense = DenseEncoder(encoder)
        self.view, self.asked_every = view, asked_every
        self.encoded = self
        self.encoder_fingerprint = encoder_fingerprint(encoder)

    def volume(self, subject: Subject) -> Maps:
        return self.view(subject)

    def parts(self, volume: Maps) -> dict[str, Maps]:
        return self.view.parts(volume)

    def at(self, volume: Maps, mask: NDArray[np.bool_], z: slice) -> NDArray[np.float32]:
        if self.asked_every > 1:  # one lattice for all slabs
            return self.dense.codes_at(np.asarray(volume), mask, z, self.asked_every)
        halo = self.dense.patch_shape[2] // 2 if len(self.dense.patch_shape) == 3 else 0
        begin, end = max(z.start - halo, 0), min(z.stop + halo, volume.shape[2])
        return self.dense.codes_at(
            np.asarray(volume[:, :, begin:end]), mask[:, :, begin:end], slice(z.start - begin, z.stop - begin)
        )

    @property
    def fingerprint(self) -> str:
        asked = [] if self.asked_every == 1 else [f"stride {self.asked_every}".encode()]
        return _digest([self.encoder_fingerprint.encode(), self.view.fingerprint.encode(), *asked])

    def with_stride(self, stride: int) -> EncoderCodes:
        codes = copy(self)
        codes.asked_every, codes.encoded = stride, codes
        return codes


class ViewCodes(Codes):
    """The maps of views and, beside them, the code of an encoder.

    Where the maps that the encoder is fed stand for a view's (``View.stands_for``: deviations of the signs,
    for the signs), they are computed once and come first.

    Args:
        views: whose maps are read.
        encoded: read after them, if any.
    """

    has_graph = True

    def __init__(self, views: Sequence[View], encoded: EncoderCodes | None = None):
        self.encoded = encoded
        others = [view for view in views if encoded is None or not encoded.view.stands_for(view)]
        shared = [encoded.view] if encoded is not None and len(others) < len(views) else []
        self.views = [*shared, *others]

    def volume(self, subject: Subject) -> Maps:
        """The maps that the encoder reads, then those of each further view."""
        maps = [] if self.encoded is None else [self.encoded.volume(subject)]
        maps += [view(subject) for view in self.views if not self._is_fed(view)]
        return maps[0] if len(maps) == 1 else np.concatenate(maps, -1, dtype=np.float32)

    def at(self, volume: Maps, mask: NDArray[np.bool_], z: slice) -> NDArray[np.float32]:
        first = 0 if self.encoded is None else self.encoded.dense.channels
        begin = 0 if any(map(self._is_fed, self.views)) else first
        maps = np.ascontiguousarray(volume[:, :, z, begin:][mask[:, :, z]])
        if self.encoded is None:
            return maps
        own = self.encoded.at(volume[..., :first], mask, z)
        return np.concatenate([maps, own], axis=1, dtype=np.float32)

    @property
    def fingerprint(self) -> str:
        views = [view.fingerprint.encode() for view in self.views]
        return _digest([*views, b"" if self.encoded is None else self.encoded.fingerprint.encode()])

    def with_stride(self, stride: int) -> ViewCodes:
        codes = copy(self)
        codes.encoded = None if self.encoded is None else self.encoded.with_stride(stride)
        return codes

    def _is_fed(self, view: View) -> bool:
        """Whether it is the view that the encoder reads."""
        return self.encoded is not None and view is self.encoded.view


class Homotopic(Codes):
    """The code of a voxel less that of its mirror: of the mirrored brain at the same place.

    Axis 0 of the grid must mirror the brain, as it does in template space.
    """

    def __init__(self, codes: Codes):
        self.inner, self.encoded = codes, codes.encoded

    def volume(self, subject: Subject) -> Maps:
        return self.inner.volume(subject)

    def at(self, volume: Maps, mask: NDArray[np.bool_], z: slice) -> NDArray[np.float32]:
        return self.inner.at(volume, mask, z) - self.inner.at(volume[::-1], mask, z)

    @property
    def fingerprint(self) -> str:
        return _digest([b"homotopic", self.inner.fingerprint.encode()])


class WithPosition(Codes):
    """A code and, beside it, the voxel's position on the grid, in [-1, 1] times a weight."""

    def __init__(self, codes: Codes, weight: float = 1.0):
        self.inner, self.weight, self.encoded = codes, weight, codes.encoded

    def volume(self, subject: Subject) -> Maps:
        return self.inner.volume(subject)

    def at(self, volume: Maps, mask: NDArray[np.bool_], z: slice) -> NDArray[np.float32]:
        indices = np.argwhere(mask[:, :, z]) + np.array([0, 0, z.start])
        position = self.weight * (2 * (indices + 0.5) / mask.shape - 1)
        return np.concatenate([self.inner.at(volume, mask, z), position], axis=1, dtype=np.float32)

    @property
    def fingerprint(self) -> str:
        return _digest([f"position {self.weight}".encode(), self.inner.fingerprint.encode()])


def codes_of(
    model: Any, *, network: keras.Model | None = None, modalities: Sequence[str] | None = None
) -> EncoderCodes:
    """The codes of a model.

    Args:
        model: a ``PatchModel``, whose view is read; or a Keras model with an ``encoder``, or an encoder
            itself, which are fed intensities.
        network: from ``patch`` to what is read of the model; its encoder if None.
        modalities: names of the images' channels, for a model that does not know them.

    Raises:
        InputError: something else than a model.
    """
    from epizoo.models.patch_model import PatchModel, encoder_of  # brings TensorFlow

    view = create_view(model.view if isinstance(model, PatchModel) else Image(), modalities)
    return EncoderCodes(encoder_of(model) if network is None else network, view)


def encoder_fingerprint(encoder: keras.Model) -> str:
    """Equal for encoders of equal architecture and weights, whatever their layers are called."""
    parts = [json.dumps(_nameless(encoder.get_config()), sort_keys=True, default=_name).encode()]
    for weights in encoder.get_weights():
        parts += [f"{weights.dtype}{weights.shape}".encode(), np.ascontiguousarray(weights).tobytes()]
    return _digest(parts)


def _nameless(config: Any) -> Any:
    """A configuration without names, which count up with each model built in a process."""
    if isinstance(config, dict):
        skipped = ("name", "keras_history", "input_layers", "output_layers", "build_config", "seed")
        return {key: _nameless(value) for key, value in config.items() if key not in skipped}
    if isinstance(config, list | tuple):
        return [_nameless(value) for value in config]
    return config


def _name(value: Any) -> str:
    return type(value).__name__


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
